"""Pools whose processes are killed: an error within seconds, and nothing is left in the temporary folder."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest
from deap import base

import deap_prune as dp
from deap_prune.errors import ConfigError, RunError
from deap_prune.evolution.generation import evaluate_invalid
from deap_prune.evolution.pool_map import SafeToolbox, safe_map
from tests.helpers.fakes import Fake, fake_genome

FORK = multiprocessing.get_context("fork")


def dying(number: int) -> int:
    """A worker that is killed as it evaluates the third item."""
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("moment", ["busy", "idle"])
def test_a_killed_process_of_a_pool_is_an_error(moment: str) -> None:
    """An idle process holds the lock of the queue, which then stays locked."""
    toolbox = SafeToolbox()
    begun = time.monotonic()
    with FORK.Pool(2) as pool:
        toolbox.register("map", pool.map, chunksize=1)
        if moment == "idle":
            time.sleep(0.3)
            assert pool._pool[0].pid is not None
            os.kill(pool._pool[0].pid, signal.SIGKILL)
        with pytest.raises(RunError, match="a process of the pool died, and the pool ended with it; it may lack"):
            toolbox.map(dying, range(6))
    pool.join()
    assert time.monotonic() - begun < 8


def test_a_killed_process_of_an_executor_is_an_error() -> None:
    toolbox = SafeToolbox()
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        toolbox.register("map", pool.map)
        with pytest.raises(RunError, match="a process of the executor died"):
            toolbox.map(dying, range(6))


def test_ended_processes_that_pools_replace_are_none_that_died() -> None:
    with FORK.Pool(1, maxtasksperchild=1) as pool:
        assert safe_map(partial(pool.map, chunksize=1))(abs, [-1, -2]) == [1, 2]
        assert safe_map(pool.imap)(abs, [-3]) == [3] and safe_map(len) is len and safe_map(partial(len)).func is len
        for method in (pool.imap_unordered, pool.starmap, pool.map_async):
            with pytest.raises(ConfigError, match=r"whose results are not in the order of map's; register pool\.map"):
                SafeToolbox().register("map", method)


def test_toolboxes_of_deap_are_safe_in_our_loops() -> None:
    genome = fake_genome()
    toolbox, plain = dp.make_toolbox(genome, Fake(genome.space), seed=0), base.Toolbox()
    with ThreadPool(1) as pool:
        plain.register("map", pool.map)
        plain.register("evaluate", toolbox.evaluate)
        assert len(evaluate_invalid(toolbox.population(n=2), plain)) == 2


class Slow(Fake):
    """Says that a worker evaluates, and takes long."""

    pipe = 0

    def __call__(self, masks: dp.Masks) -> tuple[float, ...]:
        os.write(self.pipe, b"x")
        time.sleep(60)
        return super().__call__(masks)


def drive(pipe: int, pool_class: Any) -> None:
    """Evaluate in two other processes."""
    genome = fake_genome()
    toolbox = dp.make_toolbox(genome, Slow(genome.space), seed=0)
    Slow.pipe = pipe
    with pool_class(2) as pool:
        toolbox.register("map", pool.map)
        toolbox.map(toolbox.evaluate, toolbox.population(n=2))


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
@pytest.mark.parametrize("pool_class", [FORK.Pool, partial(ProcessPoolExecutor, mp_context=FORK)])
def test_nothing_stays_of_a_driver_that_is_killed(
    pool_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file with network and data, and no worker."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    reader, writer = os.pipe()
    if (driver := os.fork()) == 0:
        try:
            drive(writer, pool_class)
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == os.read(reader, 1) == b"x"
    os.kill(driver, signal.SIGKILL)
    os.waitpid(driver, 0)
    assert select.select([reader], [], [], 20)[0] and os.read(reader, 1) == b""  # the workers have ended
    os.close(reader)
    assert not list(tmp_path.iterdir())
