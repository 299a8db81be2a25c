"""Steady-state loops: with one worker the serial loop, with several a function of seed and order of returns."""

from __future__ import annotations

import os
import random
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deap import algorithms, base, creator, tools

import deap_prune as dp
from deap_prune.errors import ConfigError, RunError
from deap_prune.evolution.returns import Return, Returns
from tests.helpers.fakes import CachedFake, fake_genome
from tests.helpers.scrambled import ScrambledMap

steady_state = dp.algorithms.steady_state


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most time of these tests would be the disk's."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Counting(CachedFake):
    """A cached fake that may not evaluate, or that fails after some evaluations."""

    def __init__(self, space: dp.PruningSpace, objectives: int = 2, most: int | None = None) -> None:
        super().__init__(space, objectives)
        self.most = most

    def __call__(self, masks: dp.Masks) -> tuple[float, ...]:
        if self.most is not None and self.calls >= self.most:
            raise KeyboardInterrupt
        return super().__call__(masks)


def toolbox_of(objectives: int = 2, most: int | None = None, workers: Any = None, seed: int = 0) -> base.Toolbox:
    genome = fake_genome()
    toolbox = dp.make_toolbox(genome, Counting(genome.space, objectives, most), seed=seed)
    if workers is not None:
        toolbox.register("map", workers)
    return toolbox


def fitness_of(toolbox: base.Toolbox) -> Counting:
    return toolbox.evaluate.func.__self__.fitness


def run(toolbox: base.Toolbox, ngen: int = 3, **options: Any) -> tuple[Any, ...]:
    """Everything that a run returns, and the state of the generators after it."""
    hall = tools.ParetoFront()
    stats = tools.Statistics(lambda ind: ind.fitness.values[0])
    stats.register("best", max)
    population, logbook = steady_state(toolbox.population(n=8), toolbox, 0.4, 0.5, ngen, stats, hall, False, **options)
    found = [[(list(ind), ind.fitness.values) for ind in individuals] for individuals in (population, hall)]
    return *found, list(logbook), random.getstate(), np.random.get_state()[1].tolist()


# ------------------------------------------------------------------ one worker
def test_one_worker_is_deaps_loop_with_one_child() -> None:
    toolbox = toolbox_of()
    population, _ = steady_state(toolbox.population(n=8), toolbox, 0.4, 0.5, 3, verbose=False)
    after = random.getstate()
    toolbox = toolbox_of()
    stock, _ = algorithms.eaMuPlusLambda(toolbox.population(n=8), toolbox, 8, 1, 0.4, 0.5, 24, verbose=False)
    assert [(list(i), i.fitness.values) for i in population] == [(list(i), i.fitness.values) for i in stock]
    assert random.getstate() == after


def test_one_objective_is_ageing_evolution() -> None:
    """Against Real et al.'s loop, written down plainly."""
    toolbox = toolbox_of(1)
    population, _ = steady_state(toolbox.population(n=8), toolbox, 0.4, 0.5, 5, verbose=False)
    toolbox = toolbox_of(1)
    living = toolbox.population(n=8)
    for individual in living:
        individual.fitness.values = toolbox.evaluate(individual)
    for _ in range(40):
        parent = max(random.choices(living, k=2), key=lambda ind: ind.fitness)
        (child,) = toolbox.mutate(toolbox.clone(parent))
        child.fitness.values = toolbox.evaluate(child)
        living = [*living[1:], child]
    assert [list(ind) for ind in population] == [list(ind) for ind in living]


def test_the_registered_algorithm_is_the_same_loop() -> None:
    toolbox = toolbox_of()
    population, _ = steady_state(toolbox.population(n=8), toolbox, 0.4, 0.5, 3, verbose=False)
    loop = dp.algorithms.Loop("steady_state", toolbox_of(), dp.algorithms.Variation(8, 0.4, 0.5))
    assert [list(ind) for ind in loop.run(loop.start(8), 3).population] == [list(ind) for ind in population]


def test_any_deap_toolbox(capsys: pytest.CaptureFixture[str]) -> None:
    """OneMax, with a creator's class and without our aliases; the logbook is printed."""
    creator.create("FitnessOnes", base.Fitness, weights=(1.0,))
    creator.create("Ones", list, fitness=creator.FitnessOnes)
    try:
        toolbox = base.Toolbox()
        toolbox.register("individual", tools.initRepeat, creator.Ones, lambda: random.randint(0, 1), 20)
        toolbox.register("evaluate", lambda ind: (sum(ind),))
        toolbox.register("mutate", tools.mutFlipBit, indpb=0.1)
        random.seed(0)
        population = [toolbox.individual() for _ in range(16)]
        first = max(map(sum, population))
        returned, logbook = steady_state(population, toolbox, 0.5, 0.5, 8)
        assert returned is population and max(map(sum, population)) > first
        assert [record["nevals"] for record in logbook] == [16] * 9
        assert capsys.readouterr().out.splitlines()[0].split() == ["gen", "nevals"]
    finally:
        del creator.FitnessOnes, creator.Ones


# ------------------------------------------------------------------ replay
@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_scrambled_order_of_returns_is_replayed(objectives: int, seed: int, tmp_path: Path) -> None:
    """Law 5 of a steady-state run: seed and journal give the whole run, without an evaluation."""
    path, workers = tmp_path / "returns.jsonl", ScrambledMap(seed=seed)
    first = run(toolbox_of(objectives, workers=workers), journal=path)
    assert workers.order != sorted(workers.order) and workers.lost > 0
    text = path.read_bytes()
    toolbox = toolbox_of(objectives, most=0)
    assert run(toolbox, journal=path) == first
    assert path.read_bytes() == text and fitness_of(toolbox).calls == 0
    assert first != run(toolbox_of(objectives))  # the order counts
    longer = run(toolbox_of(objectives), ngen=4, journal=path)
    assert longer[2][:4] == first[2] and len(longer[2]) == 5


@pytest.mark.parametrize("workers", [1, 4])
def test_killed_at_any_moment(workers: int, tmp_path: Path) -> None:
    """The journal cut anywhere: what was written is not evaluated again; with one worker the run is the same."""
    whole = run(toolbox_of(), 2)
    scrambled = {} if workers == 1 else {"workers": ScrambledMap(workers)}
    run(toolbox_of(**scrambled), 2, journal=tmp_path / "first.jsonl")
    text = (tmp_path / "first.jsonl").read_bytes()
    chance = random.Random(0)
    for number in range(5):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(text[: chance.randrange(len(text))])
        kept = max(0, path.read_bytes().count(b"\n") - 1)
        toolbox = toolbox_of(**scrambled)
        resumed = run(toolbox, 2, journal=path)
        lines = path.read_text().splitlines()
        assert lines[1 : kept + 1] == text.decode().splitlines()[1 : kept + 1] and len(lines) == 25
        assert fitness_of(toolbox).calls <= 24 - kept
        assert run(toolbox_of(most=0), 2, journal=path) == resumed
        if workers == 1:
            assert resumed == whole and path.read_bytes() == text


def test_an_interrupted_run_goes_on_between_generations(tmp_path: Path) -> None:
    whole = run(toolbox_of())
    for most in (3, 13):
        path = tmp_path / f"{most}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            run(toolbox_of(most=most), journal=path)
        toolbox = toolbox_of()
        assert run(toolbox, journal=path) == whole
        assert fitness_of(toolbox).calls + most == fitness_of(toolbox).counters.candidates


def test_a_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "returns.jsonl"
    run(toolbox_of(), journal=path)
    with pytest.raises(RunError, match=r"return \d+ in the journal is of another run: seed, population, operators or"):
        run(toolbox_of(seed=1), journal=path)
    with pytest.raises(RunError, match="was run with other settings: seed 0, now 1"):
        Returns(_with_seed(tmp_path / "a.jsonl", 0), {"settings": '{"seed": 1}'})
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RunError, match="is no journal of returns of this version; move it away"):
        Returns(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(RunError, match=r"the journal '.*' can't be read: .*; move it away to begin anew"):
        Returns(path)


def _with_seed(path: Path, seed: int) -> Path:
    Returns(path, {"settings": f'{{"seed": {seed}}}'}).append([Return(0, 0, 1, "", (1.0,))])
    return path


def test_damage_in_a_journal(tmp_path: Path) -> None:
    """Lines after a damaged one are lost; the run goes on before it, with one worker as if nothing had been."""
    path = tmp_path / "returns.jsonl"
    whole = run(toolbox_of(), journal=path)
    text = path.read_text()
    lines = text.splitlines()
    path.write_text("\n".join([*lines[:10], lines[10].replace("[", "{"), *lines[11:]]) + "\n")
    with pytest.warns(UserWarning, match="is damaged after 9 returns; 23 are lost"):
        assert run(toolbox_of(), journal=path) == whole
    assert path.read_text() == text
    path.write_text("\n".join(lines[:10]) + "\n")
    with pytest.warns(UserWarning, match="the run goes on from its checkpoint, but it can't be replayed from its"):
        assert Returns(path).after(20) == []
    path.write_text("\n".join([*lines[:10], *lines[12:]]) + "\n")
    with pytest.warns(UserWarning, match="has a gap; the returns after it are dropped"):
        assert len(Returns(path).after(0)) == 9
    assert path.read_text().splitlines() == lines[:10]


def test_values_that_are_not_finite_are_replayed(tmp_path: Path) -> None:
    path = tmp_path / "returns.jsonl"
    Returns(path).append([Return(0, 0, 1, "", (float("inf"), float("-inf"), 0.1 + 0.2))])
    assert Returns(path).after(0) == [Return(0, 0, 1, "", (float("inf"), float("-inf"), 0.1 + 0.2))]


# ------------------------------------------------------------------ candidates in flight
def test_equal_networks_are_evaluated_once() -> None:
    """A child equal to one on a worker waits for it, one in the cache returns at once, a copy too."""
    toolbox = toolbox_of(workers=ScrambledMap(6))
    run(toolbox, ngen=12)
    fitness = fitness_of(toolbox)
    assert fitness.calls == len(fitness.cache) == fitness.counters.candidates < 8 * 13


def test_a_stop_waits_for_what_is_in_flight(tmp_path: Path) -> None:
    """A generation that a stop cut short is recorded; it is completed when the run goes on."""

    def loop(toolbox: base.Toolbox, *stops: Any, **options: Any) -> Any:
        variation = dp.algorithms.Variation(8, 0.4, 0.5)
        return dp.algorithms.Loop("steady_state", toolbox, variation, stops=stops, **options)

    whole = loop(toolbox_of()).run(loop(toolbox_of()).start(8), 3)
    toolbox = toolbox_of()
    first = loop(toolbox, lambda state: fitness_of(toolbox).calls >= 13)
    state = first.run(first.start(8), 3)
    assert state.number == 1 and 0 < state.logbook[-1]["nevals"] < 8
    state = loop(toolbox).run(state, 3)
    assert list(state.logbook) == list(whole.logbook)
    assert [list(ind) for ind in state.archive] == [list(ind) for ind in whole.archive]
    path, workers = tmp_path / "returns.jsonl", ScrambledMap(5)
    toolbox = toolbox_of(workers=workers)
    stopped = loop(toolbox, lambda state: fitness_of(toolbox).calls >= 13, journal=Returns(path))
    state = stopped.run(stopped.start(8), 3)
    assert not workers._sent and len(Returns(path).after(0)) >= sum(r["nevals"] for r in state.logbook) > 13
    seen: list[int] = []
    halted = dp.algorithms.Loop(
        "steady_state",
        toolbox_of(),
        dp.algorithms.Variation(8),
        callbacks=[lambda state: seen.append(state.number), lambda state: setattr(state, "stop", state.number == 2)],
    )
    halted.run(halted.start(8), 9)
    assert seen == [0, 1, 2]


# ------------------------------------------------------------------ executors
class BreakingExecutor(Executor):
    """Evaluates here; every so many candidates it breaks, as a pool does whose process was killed."""

    made = 0

    def __init__(self, after: int) -> None:
        type(self).made += 1
        self.left, self.broken = after, False

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        if self.broken:
            raise BrokenExecutor("broken")
        future: Future[Any] = Future()
        self.left -= 1
        if self.left < 0:
            self.broken = True
            future.set_exception(BrokenExecutor("broken"))
        else:
            future.set_result(function(*arguments))
        return future


def test_candidates_of_a_broken_executor_are_sent_again(tmp_path: Path) -> None:
    BreakingExecutor.made = 0
    with dp.distributed.executor_map(lambda: BreakingExecutor(7), workers=1) as workers:
        assert run(toolbox_of(workers=workers), journal=tmp_path / "returns.jsonl") == run(toolbox_of())
    assert BreakingExecutor.made >= 3
    with pytest.raises(RunError, match="5 executors broke evaluating one candidate"):
        run(toolbox_of(workers=dp.distributed.executor_map(lambda: BreakingExecutor(0), workers=2)))
    with pytest.raises(RunError, match="a process of the executor died, which ends the executor; give executor_map a"):
        run(toolbox_of(workers=dp.distributed.executor_map(BreakingExecutor(3), workers=1)))


def test_executors_that_cannot_serve_are_refused() -> None:
    with ThreadPoolExecutor(2) as threads, ThreadPool(1) as pool:
        for map_ in (threads.map, pool.map):
            with pytest.raises(ConfigError, match=r"toolbox\.map is that of a pool, which evaluates whole populations"):
                run(toolbox_of(workers=map_))
        with pytest.raises(ConfigError, match="threads would narrow one network in place at once"):
            run(toolbox_of(workers=dp.distributed.executor_map(threads, workers=2)))
        one = dp.distributed.executor_map(threads, workers=1)
        assert run(toolbox_of(workers=one)) == run(toolbox_of())
        assert one(abs, [-1, 2]) == [1, 2]
        with pytest.raises(ConfigError, match="workers is 0; give a whole number from 1 up"):
            dp.distributed.executor_map(threads, workers=0)
    plain = toolbox_of(1)
    plain.register("evaluate", sum)
    with pytest.raises(ConfigError, match=r"toolbox\.evaluate returned .*; DEAP needs a tuple of numbers"):
        run(plain)
    assert len(run(toolbox_of(), ngen=-1)[0]) == 8  # as in DEAP's loops, the first population is evaluated
    with pytest.raises(ConfigError, match="the population is empty"):
        steady_state([], toolbox_of(), 0.5, 0.5, 1)


def _dies_once(individual: Any, path: str) -> tuple[float]:
    try:
        Path(path).unlink()  # the process that removes the file dies
    except FileNotFoundError:
        return (sum(individual),)
    os._exit(1)


@pytest.mark.slow
def test_processes_one_of_which_dies(tmp_path: Path) -> None:
    """On a real pool: all candidates come back, and the journal replays the run."""
    (tmp_path / "die").touch()

    def toolbox(evaluate: Any) -> base.Toolbox:
        own = toolbox_of(1)
        own.register("evaluate", evaluate, path=str(tmp_path / "die"))
        return own

    def pool() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(2, mp_context=get_context("forkserver"))

    own = toolbox(_dies_once)
    with dp.distributed.executor_map(pool, workers=2) as workers:
        own.register("map", workers)
        first = run(own, journal=tmp_path / "returns.jsonl")
    assert not (tmp_path / "die").exists() and [r["nevals"] for r in first[2]] == [8, 8, 8, 8]
    assert run(toolbox(None), journal=tmp_path / "returns.jsonl") == first
