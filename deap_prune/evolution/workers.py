"""A map for ``toolbox.map`` that evaluates on Ray actors.

The driver decodes, looks into its cache, and sends masks (a few kilobytes); network and data travel once. A value
depends on the masks alone, so neither the number of workers nor their deaths change a result.
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
from typing import Any

import numpy as np
import torch

from deap_prune.errors import ConfigError, RunError
from deap_prune.evolution.fitness import Evaluate, Values, as_fitness
from deap_prune.evolution.worker_pickles import Parcel
from deap_prune.structure.masks import Masks

MAX_DEATHS = 5
PATIENCE = 300  # seconds until the first worker must be up


class RayMap:
    """``map`` on Ray: evaluates a population's new masks on actors that hold network and data.

    Made by :func:`ray_map`. Workers that die are replaced, and their candidates are evaluated again; workers that
    start late join, and so do those that a growing cluster has room for. Close it, or use it in a ``with`` statement,
    to stop the workers.

    Args:
        evaluate: The evaluator that the toolbox was made with; candidates in its cache are not sent.
        capacity: Function to the number of workers that should run now.
        threads: torch's threads in each worker.
        options: Options of Ray's actors: the resources of a worker.
        owned: Whether Ray was started for this map, and stops with it.

    Attributes:
        deaths: Workers lost so far.
    """

    def __init__(
        self, evaluate: Evaluate, capacity: Callable[[], int], threads: int, options: dict[str, float], owned: bool
    ) -> None:
        import ray

        self._evaluate, self._fitness, self._capacity = evaluate, as_fitness(evaluate), capacity
        self._threads, self._owned = threads, owned
        remote: Any = ray.remote
        self._actor = remote(max_restarts=0, max_task_retries=0, **options)(_Worker)
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[int, Any]] = {}
        self.deaths, self._stillborn = 0, 0
        try:
            self._stored = _put(evaluate)
            self._spawn()
            while not self._idle:  # an evaluator that can't work there fails here, before a run begins
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
        """Values of several candidates, in order; equal ones are evaluated once, cached ones not at all.

        Raises:
            RunError: If workers keep dying, or none starts.
            PruneError: The error that an evaluation raised.
        """
        return self._fitness.many(masks, compute=self._compute)

    def _compute(self, masks: Sequence[Masks]) -> list[Values]:
        with _global_generators_kept():
            return self._distribute(masks)

    def _distribute(self, masks: Sequence[Masks]) -> list[Values]:
        """Hand out the masks, one to each idle worker, until all are evaluated."""
        waiting, deaths = list(range(len(masks)))[::-1], [0] * len(masks)
        results: dict[int, Values] = {}
        self._spawn()
        while len(results) < len(masks):
            while waiting and self._idle:
                number, actor = waiting.pop(), self._idle.pop()
                self._running[actor.evaluate.remote(masks[number])] = number, actor
            results |= self._event(waiting, deaths)
        return [results[number] for number in range(len(masks))]

    def _event(self, waiting: list[int], deaths: list[int]) -> dict[int, Values]:
        """Wait until a worker has started, has died or has evaluated; the result by candidate number."""
        import ray

        pending = [*self._running, *self._starting]
        done, _ = ray.wait(pending, num_returns=1, timeout=None if self._running else PATIENCE)
        if not done:
            raise RunError(f"no Ray worker started in {PATIENCE} s; the cluster has {_resources()}")
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
        return {number: _values_or_raise(answer)}

    def _bury(self, reference: Any, waiting: list[int], deaths: list[int], error: Exception) -> None:
        """Put a dead worker's candidate back into the queue, and start another worker."""
        self.deaths += 1
        if self._starting.pop(reference, None) is not None:
            self._stillborn += 1
            if self._stillborn >= MAX_DEATHS:
                raise RunError(f"{MAX_DEATHS} Ray workers in a row died as they started: {error}") from error
        else:
            number, _ = self._running.pop(reference)
            deaths[number] += 1
            if deaths[number] >= MAX_DEATHS:
                raise RunError(f"{MAX_DEATHS} Ray workers died evaluating one candidate; give more memory (cpus=2)")
            waiting.insert(0, number)  # last in the queue: the cause may be over by then
        self._spawn()

    def _spawn(self) -> None:
        """Start workers up to the capacity; they join when they are ready."""
        present = len(self._idle) + len(self._starting) + len(self._running)
        for _ in range(self._capacity() - present):
            actor = self._actor.remote(self._threads, sys.path)
            self._starting[actor.load.remote(self._stored)] = actor


class _Worker:
    """A Ray actor that holds one evaluator."""

    def __init__(self, threads: int, path: list[str]) -> None:
        torch.set_num_threads(threads)
        sys.path += [entry for entry in path if entry not in sys.path and Path(entry).exists()]

    def load(self, parcel: Parcel) -> None:
        """Unpack the evaluator, after the driver's module path has been set."""
        self._fitness = as_fitness(parcel.evaluate)

    def evaluate(self, masks: Masks) -> tuple[Values | Exception, list[str]]:
        """The values, or the error that the evaluation raised, and its warnings."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result: Values | Exception = self._fitness.compute(masks)
            except Exception as error:
                result = error
        return result, [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


def _put(evaluate: Evaluate) -> Any:
    """The evaluator in Ray's store."""
    import ray

    try:
        return ray.put(Parcel(evaluate))
    except Exception as error:  # pickling fails in many ways
        raise ConfigError(
            f"the evaluator can't be sent to Ray's workers: {str(error).splitlines()[0]}; forward and modules must not "
            "hold locks, open files or generators"
        ) from error


def _values_or_raise(answer: tuple[Values | Exception, list[str]]) -> Values:
    result, messages = answer
    for message in messages:
        warnings.warn(message, stacklevel=2)
    if isinstance(result, Exception):
        raise result
    return result


def ray_map(
    evaluate: Evaluate,
    *,
    address: str = "local",
    workers: int | None = None,
    threads: int | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> RayMap:
    """A ``map`` for ``toolbox.register("map", ...)`` that evaluates on Ray.

    Args:
        evaluate: The evaluator that the toolbox was made with; sent to each worker once.
        address: ``"local"``: a cluster of this machine alone, bound to 127.0.0.1 (if Ray was not imported before);
            else the address of a running cluster (``"auto"`` looks for it).
        workers: Number of workers; by default as many as the cluster's CPUs (or GPUs, if ``gpus`` is set) allow.
        threads: torch's threads in each worker; the driver's number by default, so that sums round alike.
        cpus: CPU cores that Ray reserves for each worker.
        gpus: GPUs for each worker; a fraction is allowed.

    Raises:
        ConfigError: If Ray is not installed, the numbers are not legal, or the evaluator can't be pickled.
        RunError: If there is no cluster at the address, no worker starts, or none can unpack the evaluator.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; give 1 or more, or leave it out to use the whole cluster")
    ray = _import_ray(address)

    def capacity() -> int:
        resources = _resources()
        room = resources.get("GPU", 0.0) / gpus if gpus else resources.get("CPU", 1.0) / cpus
        return workers or max(1, int(room))

    options = {"num_cpus": cpus, "num_gpus": gpus}
    with _global_generators_kept():
        owned = not ray.is_initialized()
        if owned:
            _connect(address)
        return RayMap(evaluate, capacity, threads or torch.get_num_threads(), options, owned)


def _resources() -> dict[str, float]:
    import ray

    resources: Any = ray.cluster_resources
    return dict(resources())


@contextmanager
def _global_generators_kept() -> Iterator[None]:
    """Restore the global generators at the end: Ray draws from them (for ports), which would change the run."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _import_ray(address: str) -> Any:
    """Import Ray; for a local cluster, set it up beforehand to listen on 127.0.0.1 alone."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns that it will change
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster for one run reports nothing
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
