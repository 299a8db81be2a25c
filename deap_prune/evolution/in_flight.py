"""Candidates on workers: sent one by one, and returned in any order.

:class:`InFlight` answers from the evaluator's cache, sends equal networks once, and keeps the global generators. Where
the evaluations run is behind one protocol, :class:`Workers`: here, on ``concurrent.futures``, or on Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from deap import base

from deap_prune.errors import ConfigError
from deap_prune.evolution.fitness import fitness_values
from deap_prune.evolution.pool_map import PoolMap, safe_map
from deap_prune.evolution.problem import BlendProblem, problem_of
from deap_prune.randomness import generators_kept
from deap_prune.structure.masks import Masks

Values = tuple[float, ...]
MAX_DEATHS = 5
"""How often workers may die with one candidate."""


class Workers(Protocol):
    """Where evaluations run."""

    def free(self) -> int:
        """Number of candidates that would begin to be evaluated at once."""

    def send(self, number: int, individual: Any, masks: Masks | None) -> None:
        """Evaluate a candidate; its values come back under this number.

        Args:
            number: Its number.
            individual: What ``toolbox.evaluate`` takes.
            masks: Its network; None if ``toolbox.evaluate`` is no problem's own.
        """

    def wait(self) -> dict[int, Values]:
        """Wait until a candidate comes back or a worker joins; the values by number, perhaps none.

        Raises:
            RunError: If workers keep dying.
        """

    def forget(self) -> None:
        """Drop the candidates that have not come back."""


@runtime_checkable
class MapOnWorkers(Protocol):
    """A ``map`` whose workers also take single candidates; ``dp.distributed`` makes them."""

    def workers_for(self, evaluate: Callable[..., Any]) -> Workers:
        """The workers, for this ``toolbox.evaluate``."""


class Here:
    """Evaluate in this process, by ``toolbox.map``: one candidate at a time."""

    def __init__(self, toolbox: base.Toolbox) -> None:
        self._toolbox, self._sent = toolbox, dict[int, Any]()

    def free(self) -> int:
        """One, unless a candidate is waiting."""
        return int(not self._sent)

    def send(self, number: int, individual: Any, masks: Masks | None) -> None:
        """Keep the individual until :meth:`wait` evaluates it."""
        self._sent[number] = individual

    def wait(self) -> dict[int, Values]:
        """Evaluate the individual."""
        number, individual = next(iter(self._sent.items()))
        (values,) = self._toolbox.map(self._toolbox.evaluate, [individual])
        del self._sent[number]
        return {number: values}

    def forget(self) -> None:
        """Drop the individual."""
        self._sent.clear()


def workers_of(toolbox: base.Toolbox) -> Workers:
    """Where a toolbox's candidates are evaluated: on the workers that ``toolbox.map`` stands for, or here.

    Raises:
        ConfigError: If ``map`` is that of an executor or of a multiprocessing pool.
    """
    function = getattr(toolbox.map, "func", toolbox.map)
    if isinstance(function, MapOnWorkers):
        return function.workers_for(toolbox.evaluate)
    if isinstance(safe_map(function), PoolMap):
        raise ConfigError(
            "toolbox.map is that of a pool, which evaluates whole populations; for a steady-state loop register "
            "dp.distributed.executor_map(lambda: ProcessPoolExecutor(2), workers=2), or a ray_map"
        )
    return Here(toolbox)


class InFlight:
    """The candidates that were sent and have not come back.

    Args:
        toolbox: Its ``evaluate`` is what the workers compute.
        workers: Where they are evaluated.
    """

    def __init__(self, toolbox: base.Toolbox, workers: Workers) -> None:
        self._workers = workers
        self._problem = problem_of(toolbox.evaluate)
        self._ready: dict[int, Values] = {}
        self._sent: dict[int, Masks | None] = {}
        self._count = 0  # of the individuals' fitness values
        self._equal: dict[Masks, list[int]] = {}  # candidates that wait for the network that was sent

    def __len__(self) -> int:
        return len(self._ready) + len(self._sent) + sum(map(len, self._equal.values()))

    def free(self) -> int:
        """Number of candidates that the workers would begin with at once; none while one is ready to return."""
        with generators_kept():
            return 0 if self._ready else self._workers.free()

    def send(self, number: int, individual: Any) -> None:
        """Send a candidate, unless it has values, they are in the cache, or its network is on a worker already."""
        if individual.fitness.valid:  # an unchanged copy of a parent
            self._ready[number] = tuple(individual.fitness.values)
            return
        problem, self._count = self._problem, len(individual.fitness.weights)
        masks = None if problem is None else _masks(problem, individual)
        if problem is not None and masks is not None:
            if masks in problem.fitness.cache:
                (self._ready[number],) = problem.fitness.many([masks])
                return
            if masks in self._equal:
                self._equal[masks].append(number)
                return
            self._equal[masks] = []
        with generators_kept():
            self._workers.send(number, individual, masks)
        self._sent[number] = masks

    def wait(self) -> dict[int, Values]:
        """Values of the candidates that came back, by number; empty if only a worker joined."""
        if not self._ready:
            with generators_kept():
                returned = self._workers.wait()
            for number in sorted(returned):
                self._take(number, fitness_values(returned[number], self._count))
        ready, self._ready = self._ready, {}
        return ready

    def _take(self, number: int, values: Values) -> None:
        """Keep the values of a candidate that came back, and of those that wait for the same network."""
        self._ready[number] = values
        masks = self._sent.pop(number)
        if masks is not None:
            self._cache(masks, values)
            self._ready |= dict.fromkeys(self._equal.pop(masks), values)

    def recall(self, individual: Any, values: Values) -> None:
        """Give the evaluator's cache the values of an earlier evaluation."""
        if self._problem is not None:
            self._cache(_masks(self._problem, individual), values)

    def _cache(self, masks: Masks, values: Values) -> None:
        if self._problem is not None and masks not in self._problem.fitness.cache:
            self._problem.fitness.many([masks], compute=lambda missing: [values] * len(missing))

    def forget(self) -> None:
        """Drop the candidates that have not come back."""
        self._workers.forget()
        self._ready, self._sent, self._equal = {}, {}, {}


def _masks(problem: BlendProblem, individual: Any) -> Masks:
    (masks,) = problem.genome.decode_many([individual])
    return masks
