"""Evaluation on Ray: the result is that of one process, even if workers die."""

from __future__ import annotations

import builtins
import importlib.util
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Digits

import deap_prune as dp
from deap_prune.errors import ConfigError, RunError
from deap_prune.evolution import ray_cluster, worker_pickles
from deap_prune.evolution import workers as ray_workers
from tests.helpers.fakes import CachedFake, fake_genome
from tests.helpers.pruning import prepared
from tests.helpers.runs import files, search


class Ordered(CachedFake):
    """A cached fake; the text of the file ``orders`` makes a worker die or raise an error."""

    def __init__(self, space: dp.PruningSpace, orders: Path | None = None) -> None:
        super().__init__(space)
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
                self.orders.unlink()  # the worker that removes the file dies
            except FileNotFoundError:
                pass
            else:
                os._exit(1)
        return super().__call__(masks)


def random_masks(n: int) -> list[dp.Masks]:
    return [dp.Masks.random(prepared("residual").space, keep=0.5, seed=s) for s in range(n)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra 'ray'")
    ray = ray_cluster.import_ray("local")
    ray.init(address="local", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_ray_gives_the_values_of_one_process(cluster: Any, tmp_path: Path) -> None:
    """In order, each candidate once, with its errors; the cluster is this machine alone."""
    assert all(node["NodeManagerAddress"] == "127.0.0.1" for node in cluster.nodes())
    state = random.getstate()
    alone, evaluate = Ordered(prepared("residual").space), Ordered(prepared("residual").space, tmp_path / "orders")
    masks = random_masks(6)
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
        # a worker dies: nothing is lost, and another one is started
        (tmp_path / "orders").write_text("die")
        more = random_masks(12)[6:]
        assert workers.many(more) == [alone(m) for m in more] and workers.deaths == 1
        (tmp_path / "orders").write_text("raise")
        with pytest.raises(dp.errors.MaskError, match="no such masks"):
            workers.many(random_masks(14)[12:13])
        (tmp_path / "orders").write_text("always die")
        with pytest.raises(RunError, match="5 Ray workers died evaluating one candidate; give more memory"):
            workers.many(random_masks(14)[13:])


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

    assert run(lambda evaluate: ray_workers.ray_map(evaluate, workers=workers, num_cpus=0.4)) == run(None)


@pytest.mark.slow
def test_a_search_on_ray_equals_a_search_without(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra 'ray'")
    ray_cluster.import_ray("local").shutdown()
    search(tmp_path / "one")
    search(tmp_path / "two", ray="local")
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert (tmp_path / "two/cache.jsonl").read_bytes() == (tmp_path / "one/cache.jsonl").read_bytes()


@pytest.mark.slow
def test_workers_killed_between_generations(cluster: Any, digits: Digits) -> None:
    """A run whose workers are killed ends as an undisturbed one."""

    def killer(state: dp.algorithms.Generation) -> None:
        for actor in [*workers._idle][:1]:
            cluster.kill(actor)  # between generations: it is dead before it gets its next candidate

    evaluate = digits.evaluator()
    toolbox = dp.make_toolbox(digits.genome(), evaluate, seed=0)
    with ray_workers.ray_map(evaluate, workers=2, num_cpus=0.5) as workers:
        toolbox.register("map", workers)
        state = dp.algorithms.eaBlend(toolbox.population(n=8), toolbox, 8, 0.5, 0.5, 3, callbacks=[killer])
        assert workers.deaths >= 2
    toolbox = dp.make_toolbox(digits.genome(), digits.evaluator(), seed=0)
    whole = dp.algorithms.eaBlend(toolbox.population(n=8), toolbox, 8, 0.5, 0.5, 3)
    assert [(list(i), i.fitness.values) for i in state.archive] == [(list(i), i.fitness.values) for i in whole.archive]


@pytest.mark.slow
def test_steady_state_on_workers_that_die(cluster: Any, tmp_path: Path) -> None:
    """A worker's candidates are sent again, in batches too; the journal replays the run without workers."""
    for batch in (1, 3):
        evaluate, folder = Ordered(prepared("residual").space, tmp_path / str(batch) / "orders"), tmp_path / str(batch)
        folder.mkdir()
        (folder / "orders").write_text("die")

        def run(evaluate: Ordered, map_: Any, path: Path = folder / "returns.jsonl") -> list[Any]:
            toolbox = dp.make_toolbox(fake_genome(), evaluate, seed=0)
            if map_ is not None:
                toolbox.register("map", map_)
            population = toolbox.population(n=8)
            _, logbook = dp.algorithms.steady_state(population, toolbox, 0.5, 0.5, 4, verbose=False, journal=path)
            return [[(list(ind), ind.fitness.values) for ind in population], list(logbook)]

        with ray_workers.ray_map(evaluate, workers=2, num_cpus=0.5, batch=batch) as workers:
            first = run(evaluate, workers)
            assert workers.deaths == 1 and not (folder / "orders").exists()
            assert sorted(workers.many(list(evaluate.cache))) == sorted(evaluate.cache.values())
            with pytest.raises(ConfigError, match=r"the Ray workers hold another evaluator than toolbox\.evaluate"):
                run(Ordered(prepared("residual").space), workers)
        silent = Ordered(prepared("residual").space)
        assert run(silent, None) == first and silent.calls == 0
        assert len({*evaluate.cache}) == evaluate.counters.candidates


@pytest.mark.slow
def test_a_worker_that_ray_ends_for_its_memory(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises an error of its own for that; the candidate is sent again."""
    evaluate, masks, get, raised = Ordered(prepared("residual").space), random_masks(4), cluster.get, list[int]()

    def ended(reference: Any) -> Any:
        answer = get(reference)
        if answer is not None and not raised:
            raised.append(1)
            raise cluster.exceptions.OutOfMemoryError("out of memory")
        return answer

    with ray_workers.ray_map(evaluate, workers=1, num_cpus=0.5) as workers:
        monkeypatch.setattr(cluster, "get", ended)
        assert workers.many(masks) == [Ordered(prepared("residual").space)(m) for m in masks]
        assert workers.deaths == 1


class Slowly:
    """A forward function that is slow in other processes than the one that made it."""

    def __init__(self) -> None:
        self.driver = os.getpid()

    def __call__(self, model: Any, batch: Any) -> Any:
        time.sleep(2 * (os.getpid() != self.driver))
        return model(batch[0]), batch[1]


@pytest.mark.slow
def test_a_worker_killed_every_twenty_seconds(tmp_path: Path) -> None:
    """SIGKILL for one worker process after the other: the run's files are those of a run without Ray."""
    pytest.importorskip("ray").shutdown()
    done, killed, earlier, chance = threading.Event(), list[int](), set(worker_processes()), random.Random(0)

    def kill() -> None:
        while not done.wait(20):
            if workers := sorted({*worker_processes()} - earlier):
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
    """Process ids of Ray's actors; Ray names the processes after the class."""
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


def test_a_local_ray_that_does_not_start_is_not_called_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def init(**_: Any) -> None:
        raise RuntimeError("The current node timed out during startup")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RunError, match=r"^Ray did not start on this machine: .* timed out .*; try again when"):
        ray_cluster.connect("local")


@pytest.mark.slow
def test_ray_fails_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster, or an evaluator that can't be sent or unpacked: no run folder is made, and Ray is stopped."""
    ray = pytest.importorskip("ray")
    ray.shutdown()
    for address in ("127.0.0.1:1", "nowhere.invalid:6379"):
        with pytest.raises(RunError, match=f"no Ray cluster at '{address}': .*; 'local' starts one on this machine"):
            search(tmp_path / "run", ray=address)
    with pytest.raises(ConfigError, match=r"can't be sent to Ray's workers: .*; forward and modules must not hold"):
        search(tmp_path / "run", ray="local", forward=Locked())
    assert not ray.is_initialized()
    monkeypatch.setattr(worker_pickles.Parcel, "__getstate__", lambda self: {"evaluate": Unreadable()})
    with pytest.raises(RunError, match=r"a Ray worker can't take the evaluator: .*unreadable"):
        search(tmp_path / "run", ray="local")
    assert not ray.is_initialized() and not list(tmp_path.iterdir())


class Unreadable:
    """It can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return _unreadable, ()


def _unreadable() -> None:
    raise ValueError("unreadable")


def test_a_missing_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"Ray is not installed; pip install 'deap-prune\[ray\]'"):
        ray_workers.ray_map(CachedFake(prepared("residual").space))
    with pytest.raises(ConfigError, match="Ray is not installed"):
        search(tmp_path / "run", ray="local")
    assert not list(tmp_path.iterdir())


def test_the_number_of_workers_is_at_least_one() -> None:
    evaluate = CachedFake(prepared("residual").space)
    with pytest.raises(ConfigError, match="workers is 0; give 1 or more"):
        ray_workers.ray_map(evaluate, workers=0)
    with pytest.raises(ConfigError, match="batch is 0; give the candidates of a worker's call: 1 or more"):
        ray_workers.ray_map(evaluate, batch=0)
    with pytest.raises(
        ConfigError, match=r"num_cpus is 0, num_gpus 0\.0; give a worker a share of at least one of them"
    ):
        ray_workers.ray_map(evaluate, num_cpus=0)
