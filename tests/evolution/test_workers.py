"""More than one process: the result is that of one, whoever dies; pickles stay light."""

from __future__ import annotations

import builtins
import copy
import gc
import importlib.util
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Digits

import deap_prune as dp
from deap_prune.errors import ConfigError, RunError
from deap_prune.evolution import worker_pickles
from deap_prune.evolution import workers as ray_workers
from deap_prune.fitness.evaluator import Counters
from tests.helpers.fakes import Fake, fake_genome
from tests.helpers.pruning import prepared
from tests.helpers.runs import files, search


class Known(Fake):
    """A fake with a cache and counters; a file tells it to kill its process, or to raise."""

    def __init__(self, space: dp.PruningSpace, orders: Path | None = None) -> None:
        super().__init__(space)
        self.cache: dict[dp.Masks, tuple[float, ...]] = {}
        self.counters = Counters()
        self.orders, self.driver = orders, os.getpid()

    def __call__(self, masks: dp.Masks) -> tuple[float, ...]:
        if self.orders is not None and os.getpid() != self.driver:
            with (self.orders.parent / "log").open("a") as log:
                log.write(f"{os.getpid()}\n")
            if self.orders.exists() and self.orders.read_text() == "raise":
                raise dp.errors.MaskError("no such masks")
            if self.orders.exists() and self.orders.read_text() == "always die":
                os._exit(1)
            try:
                self.orders.unlink()  # whoever takes the order away dies
            except FileNotFoundError:
                pass
            else:
                os._exit(1)
        return super().__call__(masks)


def draws(n: int) -> list[dp.Masks]:
    return [dp.Masks.random(prepared("residual").space, keep=0.5, seed=s) for s in range(n)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra 'ray'")
    ray = ray_workers._import_ray("local")
    ray_workers._connect("local")
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_ray_finds_what_one_process_finds(cluster: Any, tmp_path: Path) -> None:
    """In order, each once, warnings and errors included; a cluster of this machine alone."""
    assert all(node["NodeManagerAddress"] == "127.0.0.1" for node in cluster.nodes())
    state = random.getstate()
    alone, evaluate = Known(prepared("residual").space), Known(prepared("residual").space, tmp_path / "orders")
    masks = draws(6)
    with ray_workers.ray_map(evaluate, workers=1) as workers:
        assert workers.many([*masks, masks[0]]) == [alone(m) for m in [*masks, masks[0]]]
        assert list(evaluate.cache) == masks and evaluate.counters.candidates == 6
        assert workers.many(masks[:2]) == [alone(m) for m in masks[:2]]
        assert evaluate.counters.candidates == 6 and evaluate.counters.cache_hits == 3
        assert random.getstate() == state  # Ray draws from it, and must not change the run
        genome = fake_genome()
        toolbox = dp.make_toolbox(genome, evaluate, seed=0)
        toolbox.register("map", workers)
        population = toolbox.population(n=5)
        assert toolbox.map(toolbox.evaluate, population) == [alone(m) for m in genome.decode_many(population)]
        assert toolbox.map(len, population) == [len(population[0])] * 5
        assert workers.deaths == 0 and len((tmp_path / "log").read_text().split()) == len(evaluate.cache)
        # a worker dies: nothing is lost, and another one comes
        (tmp_path / "orders").write_text("die")
        more = draws(12)[6:]
        assert workers.many(more) == [alone(m) for m in more] and workers.deaths == 1
        (tmp_path / "orders").write_text("raise")
        with pytest.raises(dp.errors.MaskError, match="no such masks"):
            workers.many(draws(14)[12:13])
        (tmp_path / "orders").write_text("always die")
        with pytest.raises(RunError, match="5 Ray workers died judging one candidate; give each more memory"):
            workers.many(draws(14)[13:])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_number_of_workers_changes_nothing(cluster: Any, workers: int, tmp_path: Path, digits: Digits) -> None:
    """Law 5, on a real network."""

    def run(map_: Any) -> list[Any]:
        evaluate = digits.evaluator()
        toolbox = dp.make_toolbox(digits.genome(), evaluate, seed=0)
        if map_:
            toolbox.register("map", map_(evaluate))
        state = dp.algorithms.eaBlend(toolbox.population(n=8), toolbox, 8, 0.5, 0.5, 2)
        return [(list(ind), ind.fitness.values) for ind in state.archive]

    assert run(lambda evaluate: ray_workers.ray_map(evaluate, workers=workers, cpus=0.4)) == run(None)


@pytest.mark.slow
def test_a_search_on_ray_is_the_search(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra 'ray'")
    ray_workers._import_ray("local").shutdown()
    search(tmp_path / "one")
    search(tmp_path / "two", ray="local")
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert (tmp_path / "two/cache.jsonl").read_bytes() == (tmp_path / "one/cache.jsonl").read_bytes()


@pytest.mark.slow
def test_workers_killed_every_few_seconds(cluster: Any, digits: Digits) -> None:
    """A run whose workers are killed ends where an undisturbed one does."""

    def killer(state: dp.algorithms.Generation) -> None:
        for actor in [*workers._idle][:1]:
            cluster.kill(actor)  # at the turn of a generation: dead before it gets its next candidate

    evaluate = digits.evaluator()
    toolbox = dp.make_toolbox(digits.genome(), evaluate, seed=0)
    with ray_workers.ray_map(evaluate, workers=2, cpus=0.5) as workers:
        toolbox.register("map", workers)
        state = dp.algorithms.eaBlend(toolbox.population(n=8), toolbox, 8, 0.5, 0.5, 3, callbacks=[killer])
        assert workers.deaths >= 2
    toolbox = dp.make_toolbox(digits.genome(), digits.evaluator(), seed=0)
    whole = dp.algorithms.eaBlend(toolbox.population(n=8), toolbox, 8, 0.5, 0.5, 3)
    assert [(list(i), i.fitness.values) for i in state.archive] == [(list(i), i.fitness.values) for i in whole.archive]


class Slowly:
    """A forward function that takes its time in other processes than the one that made it."""

    def __init__(self) -> None:
        self.driver = os.getpid()

    def __call__(self, model: Any, batch: Any) -> Any:
        time.sleep(2 * (os.getpid() != self.driver))
        return model(batch[0]), batch[1]


@pytest.mark.slow
def test_a_worker_killed_every_twenty_seconds(tmp_path: Path) -> None:
    """SIGKILL for the process of one of them, again and again: the run's files are those of a run without Ray."""
    pytest.importorskip("ray").shutdown()
    done, killed, others, chance = threading.Event(), list[int](), set(worker_processes()), random.Random(0)

    def kill() -> None:
        while not done.wait(20):
            if workers := sorted({*worker_processes()} - others):
                killed.append(chance.choice(workers))
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        search(tmp_path / "ray", ray="local", forward=Slowly(), population=8, generations=9)
    finally:
        done.set()
        killer.join()
    assert len(killed) >= 3 and len(set(killed)) == len(killed)
    search(tmp_path / "alone", population=8, generations=9)
    assert files(tmp_path / "ray") == files(tmp_path / "alone")
    assert (tmp_path / "ray/cache.jsonl").read_bytes() == (tmp_path / "alone/cache.jsonl").read_bytes()


def worker_processes() -> list[int]:
    """Ray names the processes of its actors after their class."""
    named = ((path.parent.name, path) for path in Path("/proc").glob("[0-9]*/cmdline"))
    return [int(number) for number, path in named if read(path).startswith(b"ray::_Worker")]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


class Locked:
    """A forward function that can't be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, model: Any, batch: Any) -> Any:
        return model(batch[0]), batch[1]


@pytest.mark.slow
def test_ray_fails_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster, or an evaluator that can't be sent, or can't be read there: no run folder, and no Ray left behind."""
    ray = pytest.importorskip("ray")
    ray.shutdown()
    for address in ("127.0.0.1:1", "nowhere.invalid:6379"):
        with pytest.raises(RunError, match=f"no Ray cluster at '{address}': .*; 'local' starts one on this machine"):
            search(tmp_path / "run", ray=address)
    with pytest.raises(ConfigError, match=r"can't be sent to Ray's workers: .*; forward and modules must not hold"):
        search(tmp_path / "run", ray="local", forward=Locked())
    assert not ray.is_initialized()
    monkeypatch.setattr(worker_pickles.Parcel, "__getstate__", lambda self: {"evaluate": BornDead()})
    with pytest.raises(RunError, match=r"a Ray worker can't take the evaluator: .*born dead"):
        search(tmp_path / "run", ray="local")
    assert not ray.is_initialized() and not list(tmp_path.iterdir())


class BornDead:
    """Pickles; and can't be read."""

    def __reduce__(self) -> Any:
        return _born_dead, ()


def _born_dead() -> None:
    raise ValueError("born dead")


@pytest.mark.parametrize("option", [{"racing": 0.99}, {"redraw": True, "images": 9}])
def test_what_follows_the_run_stays_in_one_process(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="racing, redraw and refine_from above 0 follow the run from"):
        search(tmp_path / "run", ray="local", **option)
    assert not list(tmp_path.iterdir())


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"Ray is not installed; pip install 'deap-prune\[ray\]'"):
        ray_workers.ray_map(Known(prepared("residual").space))
    with pytest.raises(ConfigError, match="Ray is not installed"):
        search(tmp_path / "run", ray="local")
    assert not list(tmp_path.iterdir())


def test_bad_numbers_and_settings() -> None:
    evaluate = Known(prepared("residual").space)
    with pytest.raises(ConfigError, match="workers is 0; give 1 or more"):
        ray_workers.ray_map(evaluate, workers=0)
    evaluate.options = type("Options", (), {"by_generation": True})()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="racing, redraw and refine_from above 0 follow the run from"):
        ray_workers.ray_map(evaluate)
    with pytest.raises(ConfigError, match="racing, redraw and refine_from above 0 follow the run from"):
        pickle.dumps(dp.algorithms.BlendProblem(fake_genome(), evaluate))


# ------------------------------------------------------------------ pools
def test_pickles_are_light(digits: Digits) -> None:
    """What a pool pickles for every chunk is a name; the network and the data are written once, without the cache."""
    evaluate = digits.evaluator()
    toolbox = dp.make_toolbox(digits.genome(), evaluate, seed=0)
    (individual,) = toolbox.population(n=1)
    values = toolbox.evaluate(individual)
    data = pickle.dumps(toolbox.evaluate)
    problem = toolbox.evaluate.func.__self__
    assert len(data) < 1000 and pickle.dumps(toolbox.evaluate) == data
    assert pickle.loads(data).func.__self__ is problem
    parcel = Path(problem._folder) / "problem.pt"
    assert parcel.stat().st_mode & 0o77 == 0 or parcel.parent.stat().st_mode & 0o77 == 0
    _, _, sent = torch.load(parcel, weights_only=False)
    assert sent.evaluate.cache == {} and len(evaluate.cache) == 1
    assert "_executor" in vars(evaluate) and "_executor" not in vars(sent.evaluate)  # made anew where it is needed
    assert tuple(sent.evaluate(digits.genome().decode(individual))) == values
    folder = parcel.parent
    del toolbox, problem, sent
    gc.collect()
    assert not folder.exists()


def test_what_only_this_process_needs_stays_here(digits: Digits) -> None:
    """The user's model with its hooks, the guard's images and what was judged; what arrives judges alike."""
    model = copy.deepcopy(digits.model)
    model.register_forward_hook(lambda *args: None)  # nobody could pickle it
    data = {"calibration": digits.calibration, "validation": digits.validation, "guard": digits.validation}
    evaluate = dp.Evaluator(model, digits.space, **data, device="cpu")
    masks = dp.Masks.random(digits.space, keep=0.6)
    fresh = len(pickle.dumps(worker_pickles.Parcel(evaluate)))
    values, guarded = evaluate(masks), evaluate.on_guard(masks)
    sent = pickle.dumps(worker_pickles.Parcel(evaluate))
    there = pickle.loads(sent).evaluate
    assert not there._guard and there._user_model is there.network and there.cache == there._guarded == {}
    grams = len(pickle.dumps(evaluate._build.moments))  # collected once, here
    assert len(sent) < fresh + grams + 1000
    assert there(masks) == values and evaluate.cache == {masks: values} and evaluate.on_guard(masks) == guarded


def test_what_can_not_be_sent_is_said(digits: Digits) -> None:
    evaluate = digits.evaluator(forward=lambda model, batch: (model(batch[0]), batch[1]))
    problem = dp.algorithms.BlendProblem(digits.genome(), evaluate)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"can't be sent to other processes: .*lambda.*; define"):
            pickle.dumps(problem.evaluate)


def test_each_process_reads_the_problem_once(digits: Digits, tmp_path: Path) -> None:
    problem = dp.algorithms.BlendProblem(fake_genome(), Known(prepared("residual").space))
    individual = problem.individual(problem.genome.single("a"))
    (tmp_path / "evaluate").write_bytes(pickle.dumps(problem.evaluate))
    code = """
import pickle, sys
one, two = (pickle.loads(open(sys.argv[1], "rb").read()) for _ in range(2))
print(one.__self__ is two.__self__, one(eval(sys.argv[2])))
"""
    here = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{here}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", code, str(tmp_path / "evaluate"), repr(list(individual))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == f"True {problem.evaluate(individual)}", done.stderr
    folder, key = problem._folder, problem._key
    worker_pickles._remove(Path(folder), os.getpid())
    worker_pickles._LOADED.pop(key)
    with pytest.raises(RunError, match="the process that pickled this toolbox has ended"):
        worker_pickles.received(key, folder)
    Path(folder).mkdir()
    (Path(folder) / "problem.pt").touch()  # for the clean-up at the end


FORKED = """
import multiprocessing, sys
import torch
sys.path[:0] = {paths!r}
from tests.helpers.networks import NETWORKS
import deap_prune as dp

torch.set_num_threads(2)
torch.manual_seed(0)
model, example = NETWORKS["residual"]()
data = torch.randn(64, 3, 32, 32), torch.randint(5, (64,))
space = dp.trace(model, example)
evaluate = dp.Evaluator(model, space, calibration=data, validation=data, device="cpu")
genome = dp.Genome(space, scores := dp.score(model, space, data, criteria=("l1", "taylor_gate")), dp.cluster(scores))
toolbox = dp.make_toolbox(genome, evaluate, seed=0)
population = toolbox.population(n=4)
here = toolbox.map(toolbox.evaluate, population)
with multiprocessing.get_context("fork").Pool(2) as pool:
    there = pool.map(toolbox.evaluate, population)
assert all(abs(a - b) < 0.05 for one, other in zip(here, there) for a, b in zip(one, other)), (here, there)
print("judged")
"""


def test_a_forked_pool_does_not_wait_for_the_parents_threads() -> None:
    """OpenMP's threads are not forked; whoever asks for them in a child waits for ever."""
    code = FORKED.format(paths=[str(Path(__file__).parents[2])])
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout == "judged\n", done.stderr
