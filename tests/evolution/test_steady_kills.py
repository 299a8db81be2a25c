"""SIGKILL for worker processes and for the driver of a steady-state run: nothing is lost, the replay is equal."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from deap import base, tools

import deap_prune as dp
from deap_prune.evolution.individual import BlendIndividual, fitness_class

SIZE, GENERATIONS = 10, 19


def evaluate(individual: Any) -> tuple[float, ...]:
    time.sleep(0.005 + 0.03 * random.Random(individual[0]).random())
    return (sum(individual), individual[0])


def refused(individual: Any) -> tuple[float, ...]:
    raise AssertionError("a candidate is evaluated")


def run(path: Path, function: Any, map_: Any = map) -> list[Any]:
    toolbox = base.Toolbox()
    toolbox.register("evaluate", function)
    toolbox.register("map", map_)
    toolbox.register("mate", tools.cxTwoPoint)
    toolbox.register("mutate", tools.mutGaussian, mu=0, sigma=1, indpb=0.3)
    toolbox.register("select", tools.selNSGA2)
    random.seed(0)
    fitness = fitness_class((1.0, -1.0))
    population = [BlendIndividual([random.random() for _ in range(6)], fitness()) for _ in range(SIZE)]
    _, logbook = dp.algorithms.steady_state(population, toolbox, 0.5, 0.5, GENERATIONS, verbose=False, journal=path)
    return [[(list(ind), ind.fitness.values) for ind in population], list(logbook)]


def drive(path: Path) -> int:
    """A process that runs the loop on two workers; its id."""
    if pid := os.fork():
        return pid
    try:

        def pool() -> ProcessPoolExecutor:
            return ProcessPoolExecutor(2, mp_context=get_context("fork"))

        with dp.distributed.executor_map(pool, workers=2) as workers:
            run(path, evaluate, workers)
    finally:
        os._exit(0)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in tasks for child in path.read_text().split()]


def returns(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:] if path.exists() else []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
def test_ten_workers_and_three_drivers_are_killed(tmp_path: Path) -> None:
    path, chance, killed = tmp_path / "returns.jsonl", random.Random(0), {"worker": 0, "driver": 0}
    driver = drive(path)
    for kind in chance.sample(["worker"] * 10 + ["driver"] * 3, 13):
        moment = len(returns(path)) + chance.randint(5, 12)
        while len(returns(path)) < moment or len(children(driver)) < 2:
            time.sleep(0.01)
        workers = children(driver)
        killed[kind] += 1
        if kind == "worker":
            os.kill(chance.choice(workers), signal.SIGKILL)
            continue
        os.kill(driver, signal.SIGKILL)
        os.waitpid(driver, 0)
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        before = returns(path)
        driver = drive(path)
        while len(returns(path)) <= len(before):
            time.sleep(0.01)
        whole = before[:-1]  # the last line may have been cut
        assert returns(path)[: len(whole)] == whole
    os.waitpid(driver, 0)
    assert killed == {"worker": 10, "driver": 3}
    assert len(returns(path)) == SIZE * (GENERATIONS + 1)
    first = run(path, refused)
    assert first == run(path, refused) and sum(record["nevals"] for record in first[1]) <= SIZE * (GENERATIONS + 1)
