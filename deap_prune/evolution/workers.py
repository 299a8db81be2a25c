"""Maps for ``toolbox.map``: ``ray_map`` evaluates on Ray actors, ``executor_map`` on a ``concurrent.futures`` pool.

The driver decodes, looks into its cache, and sends masks (a few kilobytes); network and data travel once. A value
depends on the masks alone, so neither the number of workers nor their deaths change a result.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from deap_prune.errors import ConfigError, RunError
from deap_prune.evolution.executor_map import executor_map as executor_map
from deap_prune.evolution.fitness import Evaluate, Values, as_fitness
from deap_prune.evolution.in_flight import MAX_DEATHS
from deap_prune.evolution.problem import problem_of
from deap_prune.evolution.ray_cluster import cluster_resources, connect, import_ray, worker_lost
from deap_prune.evolution.worker_pickles import Parcel
from deap_prune.randomness import generators_kept
from deap_prune.structure.masks import Masks

PATIENCE = 300  # seconds until the first worker must be up
LOOK = 5  # seconds between two looks at the cluster's size


class RayMap:
    """``map`` on Ray: evaluates a population's new masks on actors that hold network and data.

    Made by :func:`ray_map`. Workers that die are replaced, and their candidates are evaluated again; workers that
    start late join, and so do those that a growing cluster has room for. Close it, or use it in a ``with`` statement,
    to stop the workers. Steady-state loops send single candidates to it (see :class:`Workers`).

    Args:
        evaluate: The evaluator that the toolbox was made with; candidates in its cache are not sent.
        capacity: Function to the number of workers that should run now.
        threads: torch's threads in each worker.
        batch: Most candidates in one call of a worker.
        options: Options of Ray's actors: the resources of a worker.
        owned: Whether Ray was started for this map, and stops with it.

    Attributes:
        deaths: Workers lost so far.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        capacity: Callable[[], int],
        *,
        threads: int,
        batch: int,
        options: dict[str, float],
        owned: bool,
    ) -> None:
        import ray

        self._evaluate, self._fitness, self._capacity = evaluate, as_fitness(evaluate), capacity
        self._threads, self._batch, self._owned = threads, batch, owned
        remote: Any = ray.remote
        self._actor = remote(max_restarts=0, max_task_retries=0, **options)(_Worker)
        self._waiting: deque[tuple[int, Masks]] = deque()
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[list[tuple[int, Masks]], Any]] = {}
        self._lost: Counter[int] = Counter()
        self.deaths, self._stillborn = 0, 0
        self._last_event = self._last_look = time.monotonic()
        try:
            self._stored = _put(evaluate)
            self._spawn()
            while not self._idle:  # an evaluator that can't work there fails here, before a run begins
                self.wait()
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
        self._waiting.clear()
        if self._owned and ray.is_initialized():
            ray.shutdown()

    # ------------------------------------------------------------------ a whole population
    def __call__(self, function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
        """What stock loops call: ``toolbox.map(toolbox.evaluate, individuals)``; other functions run here."""
        problem = problem_of(function)
        if problem is None or problem.evaluator is not self._evaluate or len(items) != 1:
            return list(map(function, *items))
        return self.many(problem.genome.decode_many(list(items[0])))

    def many(self, masks: Sequence[Masks]) -> list[Values]:
        """Values of several candidates, in order; equal ones are evaluated once, cached ones not at all.

        Raises:
            RunError: If workers keep dying, or none starts.
            PruneError: The error that an evaluation raised.
        """
        return self._fitness.many(masks, compute=self._compute)

    def _compute(self, masks: Sequence[Masks]) -> Iterator[Values]:
        """The values in order, each as soon as it and those before it are there."""
        results: dict[int, Values] = {}
        self.forget()
        self._waiting.extend(enumerate(masks))
        for number in range(len(masks)):
            while number not in results:
                with generators_kept():
                    results |= self.wait()
            yield results[number]

    # ------------------------------------------------------------------ single candidates
    def workers_for(self, evaluate: Callable[..., Any]) -> RayMap:
        """This map, to send single candidates to it.

        Raises:
            ConfigError: If the workers hold another evaluator than that of ``toolbox.evaluate``.
        """
        problem = problem_of(evaluate)
        if problem is None or problem.evaluator is not self._evaluate:
            raise ConfigError(
                "the Ray workers hold another evaluator than toolbox.evaluate, or it is decorated; make toolbox and "
                "ray_map with the same evaluator"
            )
        self.forget()
        return self

    def free(self) -> int:
        """Number of candidates that idle workers would begin with at once."""
        return max(0, len(self._idle) * self._batch - len(self._waiting))

    def send(self, number: int, individual: Any, masks: Masks | None) -> None:
        """Evaluate a candidate; its values come back under this number."""
        if masks is not None:
            self._waiting.append((number, masks))

    def wait(self) -> dict[int, Values]:
        """Hand out candidates, and wait until a worker has started, died or returned; the values by number, or none.

        Raises:
            RunError: If workers keep dying, or none starts.
            PruneError: The error that an evaluation raised.
        """
        import ray

        if time.monotonic() - self._last_look >= LOOK or not (self._running or self._starting):
            self._spawn()
        self._hand_out()
        done, _ = ray.wait([*self._running, *self._starting], num_returns=1, timeout=LOOK)
        if not done:
            self._check_patience()
            return {}
        self._last_event = time.monotonic()
        try:
            answers = ray.get(done[0])
        except worker_lost() as error:
            self._bury(done[0], error)
            return {}
        except ray.exceptions.RayError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]  # after its traceback
            raise RunError(f"a Ray worker can't take the evaluator: {reason}") from error
        if done[0] in self._starting:
            self._idle.append(self._starting.pop(done[0]))
            self._stillborn = 0
            return {}
        candidates, actor = self._running.pop(done[0])
        self._idle.append(actor)
        return {number: _values_or_raise(a) for (number, _), a in zip(candidates, answers, strict=False)}

    def forget(self) -> None:
        """Drop the candidates that have not come back; their workers finish them, and are idle then."""
        self._waiting.clear()
        self._lost.clear()
        self._running = {reference: ([], actor) for reference, (_, actor) in self._running.items()}

    # ------------------------------------------------------------------ workers
    def _hand_out(self) -> None:
        """Send the waiting candidates to idle workers, in batches; one that lost its worker is sent alone."""
        while self._waiting and self._idle:
            size = min(self._batch, -(-len(self._waiting) // len(self._idle)))
            candidates = [self._waiting.popleft()]
            while len(candidates) < size and not self._lost[candidates[0][0]] and not self._lost[self._waiting[0][0]]:
                candidates.append(self._waiting.popleft())
            actor = self._idle.pop()
            self._running[actor.evaluate.remote([masks for _, masks in candidates])] = candidates, actor

    def _check_patience(self) -> None:
        if not self._running and time.monotonic() - self._last_event > PATIENCE:
            raise RunError(f"no Ray worker started in {PATIENCE} s; the cluster has {cluster_resources()}")

    def _bury(self, reference: Any, error: Exception) -> None:
        """Put a dead worker's candidates back into the queue, and start another worker."""
        import ray

        self.deaths += 1
        ray.kill(self._starting[reference] if reference in self._starting else self._running[reference][1])
        if self._starting.pop(reference, None) is not None:
            self._stillborn += 1
            if self._stillborn >= MAX_DEATHS:
                raise RunError(f"{MAX_DEATHS} Ray workers in a row died as they started: {error}") from error
        else:
            candidates, _ = self._running.pop(reference)
            self._lost.update(number for number, _ in candidates)
            if any(self._lost[number] >= MAX_DEATHS for number, _ in candidates):
                raise RunError(f"{MAX_DEATHS} Ray workers died evaluating one candidate; give more memory (num_cpus=2)")
            self._waiting.extend(candidates)  # last in the queue: the cause may be over by then
        self._spawn()

    def _spawn(self) -> None:
        """Start workers up to the capacity; they join when they are ready."""
        self._last_look = time.monotonic()
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

    def evaluate(self, batch: list[Masks]) -> list[tuple[Values | Exception, list[str]]]:
        """For each candidate the values, or the error that the evaluation raised, and its warnings."""
        return [self._evaluated(masks) for masks in batch]

    def _evaluated(self, masks: Masks) -> tuple[Values | Exception, list[str]]:
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
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    batch: int = 1,
) -> RayMap:
    """A ``map`` for ``toolbox.register("map", ...)`` that evaluates on Ray.

    Args:
        evaluate: The evaluator that the toolbox was made with; sent to each worker once.
        address: ``"local"``: a cluster of this machine alone, bound to 127.0.0.1 (if Ray was not imported before);
            else the address of a running cluster (``"auto"`` looks for it).
        workers: Number of workers; by default as many as the cluster's CPUs (or GPUs, if ``num_gpus`` is set) allow.
            A cluster that scales itself grows only if a number is given.
        threads: torch's threads in each worker; the driver's number by default, so that sums round alike.
        num_cpus: CPU cores that Ray reserves for each worker.
        num_gpus: GPUs for each worker; a fraction is allowed (0.25: four workers share one).
        batch: Most candidates in one call of a worker; more than one pays if an evaluation takes milliseconds.

    Raises:
        ConfigError: If Ray is not installed, the numbers are not legal, or the evaluator can't be pickled.
        RunError: If there is no cluster at the address, no worker starts, or none can unpack the evaluator.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; give 1 or more, or leave it out to use the whole cluster")
    if batch < 1:
        raise ConfigError(f"batch is {batch}; give the candidates of a worker's call: 1 or more")
    if num_cpus < 0 or num_gpus < 0 or not num_cpus + num_gpus:
        raise ConfigError(f"num_cpus is {num_cpus}, num_gpus {num_gpus}; give a worker a share of at least one of them")
    ray = import_ray(address)

    def capacity() -> int:
        there = cluster_resources()
        room = there.get("GPU", 0.0) / num_gpus if num_gpus else there.get("CPU", 1.0) / num_cpus
        return workers or max(1, int(room))

    options = {"num_cpus": num_cpus, "num_gpus": num_gpus}
    with generators_kept():
        owned = not ray.is_initialized()
        if owned:
            connect(address)
        how: dict[str, Any] = {"threads": threads or torch.get_num_threads(), "batch": batch, "options": options}
        return RayMap(evaluate, capacity, owned=owned, **how)
