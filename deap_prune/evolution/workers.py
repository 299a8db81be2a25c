"""More than one process: a map for ``toolbox.map`` that judges on Ray actors.

The driver decodes, asks its cache, and sends masks (a few kilobytes); the network and the data travel once. A result
depends on the masks alone, so that neither the number of workers nor their deaths change it.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from deap_prune.errors import ConfigError, RunError
from deap_prune.evolution.worker_pickles import Parcel, check_alone
from deap_prune.structure.masks import Masks

Values = tuple[float, ...]
MAX_DEATHS = 5
PATIENCE = 300  # seconds until the first worker must be up


class Judge(Protocol):
    """What is needed of an evaluator: a function of masks, with a cache and counters."""

    cache: dict[Masks, Values]
    counters: Any

    def __call__(self, masks: Masks) -> Values: ...  # noqa: D102


class RayMap:
    """``map`` on Ray: judges a population's new masks on actors that hold network and data.

    Made by :func:`ray_map`. Workers that die are replaced, and what they were judging is judged again; workers that
    come up late join, and so do those that a growing cluster has room for. Close it, or use it in a ``with``
    statement, to stop the workers.

    Args:
        evaluate: Judges; its cache is asked first, and filled.
        wanted: Gives the number of workers that there should be.
        threads: torch's threads in each.
        options: Of Ray's actors: the resources of a worker.
        owned: Ray was started for this map, and stops with it.

    Attributes:
        deaths: Workers lost so far.
    """

    def __init__(
        self, evaluate: Judge, wanted: Callable[[], int], threads: int, options: dict[str, float], owned: bool
    ) -> None:
        import ray

        self._evaluate, self._wanted, self._threads, self._owned = evaluate, wanted, threads, owned
        remote: Any = ray.remote
        self._actor = remote(max_restarts=0, max_task_retries=0, **options)(_Worker)
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[int, Any]] = {}
        self.deaths, self._stillborn = 0, 0
        try:
            self._stored = _put(evaluate)
            self._spawn()
            while not self._idle:  # one is up: an evaluator that can't work there is found out before a run begins
                self._event([], [])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RayMap:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers, and Ray if it was started for them."""
        import ray

        for actor in [*self._idle, *self._starting.values(), *(actor for _, actor in self._running.values())]:
            ray.kill(actor)
        self._idle, self._starting, self._running = [], {}, {}
        if self._owned and ray.is_initialized():
            ray.shutdown()

    def __call__(self, function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
        """What stock loops call: ``toolbox.map(toolbox.evaluate, individuals)``; other functions run here."""
        problem: Any = getattr(getattr(function, "func", function), "__self__", None)
        if getattr(problem, "evaluator", None) is not self._evaluate or len(items) != 1:
            return list(map(function, *items))
        return self.many(problem.genome.decode_many(list(items[0])))

    def many(self, masks: Sequence[Masks]) -> list[Values]:
        """Values of several candidates, in order; equal ones are judged once, known ones not at all.

        Raises:
            RunError: If workers keep dying, or none comes up.
            PruneError: What judging raised.
        """
        cache, counters = self._evaluate.cache, self._evaluate.counters
        missing = [m for m in dict.fromkeys(masks) if m not in cache]
        with _undisturbed():
            found = self._judge(missing)
        cache.update(zip(missing, found, strict=True))  # in order: the cache is that of a run without workers
        counters.candidates += len(missing)
        counters.cache_hits += len(masks) - len(missing)
        return [cache[m] for m in masks]

    def _judge(self, masks: Sequence[Masks]) -> list[Values]:
        """Hand out the masks, one to each idle worker, until all are judged."""
        waiting, deaths = list(range(len(masks)))[::-1], [0] * len(masks)
        results: dict[int, Values] = {}
        self._spawn()
        while len(results) < len(masks):
            while waiting and self._idle:
                number, actor = waiting.pop(), self._idle.pop()
                self._running[actor.judge.remote(masks[number])] = number, actor
            results |= self._event(waiting, deaths)
        return [results[number] for number in range(len(masks))]

    def _event(self, waiting: list[int], deaths: list[int]) -> dict[int, Values]:
        """Wait until a worker is up, is dead, or has judged; gives what it judged."""
        import ray

        watched = [*self._running, *self._starting]
        done, _ = ray.wait(watched, num_returns=1, timeout=None if self._running else PATIENCE)
        if not done:
            raise RunError(f"no Ray worker came up in {PATIENCE} s; the cluster has {_resources()}")
        try:
            answer = ray.get(done[0])
        except ray.exceptions.RayActorError as error:
            self._bury(done[0], waiting, deaths, error)
            return {}
        except ray.exceptions.RayError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]  # after its traceback
            raise RunError(f"a Ray worker can't take the evaluator: {reason}") from error
        if done[0] in self._starting:
            self._idle.append(self._starting.pop(done[0]))
            self._stillborn = 0
            return {}
        number, actor = self._running.pop(done[0])
        self._idle.append(actor)
        return {number: _opened(answer)}

    def _bury(self, reference: Any, waiting: list[int], deaths: list[int], error: Exception) -> None:
        """A worker died: what it was judging waits again, and another worker starts."""
        self.deaths += 1
        if self._starting.pop(reference, None) is not None:
            self._stillborn += 1
            if self._stillborn >= MAX_DEATHS:
                raise RunError(f"{MAX_DEATHS} Ray workers in a row died as they started: {error}") from error
        else:
            number, _ = self._running.pop(reference)
            deaths[number] += 1
            if deaths[number] >= MAX_DEATHS:
                raise RunError(f"{MAX_DEATHS} Ray workers died judging one candidate; give each more memory (cpus=2)")
            waiting.insert(0, number)  # last: whatever kills may be over by then
        self._spawn()

    def _spawn(self) -> None:
        """Start workers up to the number wanted; they join when they are up."""
        there = len(self._idle) + len(self._starting) + len(self._running)
        for _ in range(self._wanted() - there):
            actor = self._actor.remote(self._threads, sys.path)
            self._starting[actor.load.remote(self._stored)] = actor


class _Worker:
    """An actor: one evaluator, for good."""

    def __init__(self, threads: int, path: list[str]) -> None:
        torch.set_num_threads(threads)
        sys.path += [entry for entry in path if entry not in sys.path and Path(entry).exists()]

    def load(self, parcel: Parcel) -> None:
        """Take the evaluator; only now, so that its modules are found where the driver found them."""
        self._evaluate = parcel.evaluate

    def judge(self, masks: Masks) -> tuple[Values | Exception, list[str]]:
        """The values, or the error that judging raised, and what it warned of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found: Values | Exception = self._evaluate(masks)
            except Exception as error:
                found = error
            self._evaluate.cache.clear()
        return found, [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


def _put(evaluate: Judge) -> Any:
    """The evaluator in Ray's store."""
    import ray

    try:
        return ray.put(Parcel(evaluate))
    except Exception as error:  # pickling fails in many ways
        raise ConfigError(
            f"the evaluator can't be sent to Ray's workers: {str(error).splitlines()[0]}; forward and modules must not "
            "hold locks, open files or generators"
        ) from error


def _opened(answer: tuple[Values | Exception, list[str]]) -> Values:
    found, messages = answer
    for message in messages:
        warnings.warn(message, stacklevel=2)
    if isinstance(found, Exception):
        raise found
    return found


def ray_map(
    evaluate: Judge,
    *,
    address: str = "local",
    workers: int | None = None,
    threads: int | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> RayMap:
    """A ``map`` for ``toolbox.register("map", ...)`` that judges on Ray.

    Args:
        evaluate: The evaluator that the toolbox was made with; sent to each worker once.
        address: ``"local"``: a cluster of this machine alone, bound to 127.0.0.1 (if Ray was not imported before);
            else the address of a running one (``"auto"`` finds it).
        workers: How many; by default as many as the cluster's CPUs (or GPUs, if ``gpus`` is set) allow.
        threads: torch's threads in each worker; the driver's number if left out, so that sums round alike.
        cpus: CPU cores that Ray reserves for each worker.
        gpus: GPUs for each worker; a share is fine.

    Raises:
        ConfigError: If Ray is not installed, the numbers are not legal, candidates are judged by who came before, or
            the evaluator can't be pickled.
        RunError: If there is no cluster at the address, no worker comes up, or none can take the evaluator.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; give 1 or more, or leave it out to use the whole cluster")
    check_alone(evaluate)
    ray = _import_ray(address)

    def wanted() -> int:
        there = _resources()
        room = there.get("GPU", 0.0) / gpus if gpus else there.get("CPU", 1.0) / cpus
        return workers or max(1, int(room))

    resources = {"num_cpus": cpus, "num_gpus": gpus}
    with _undisturbed():
        owned = not ray.is_initialized()
        if owned:
            _connect(address)
        return RayMap(evaluate, wanted, threads or torch.get_num_threads(), resources, owned)


def _resources() -> dict[str, float]:
    import ray

    found: Any = ray.cluster_resources
    return dict(found())


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The global generators as they were: Ray draws from them (for ports, say), and so would change the run."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _import_ray(address: str) -> Any:
    """Ray; where a cluster of this machine is wanted, set up beforehand to listen on 127.0.0.1 alone."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns that it will change
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster for one run reports to nobody
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray reads this on import: no other machine
    try:
        import ray
    except ImportError as error:
        raise ConfigError("Ray is not installed; pip install 'deap-prune[ray]'") from error
    return ray


def _connect(address: str) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    try:
        if address == "local":
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            if host and port.isdecimal():  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises plain ones, too
        raise RunError(f"no Ray cluster at '{address}': {error}; 'local' starts one on this machine") from error
