"""The fitness as evolution sees it: one protocol, and an adapter for evaluators that only map masks to values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from deap_prune.errors import ConfigError
from deap_prune.structure.masks import Masks

Values = tuple[float, ...]


def fitness_values(returned: Any, count: int) -> Values:
    """What ``toolbox.evaluate`` returned, as plain numbers.

    Args:
        returned: The result.
        count: Number of the fitness's weights.

    Raises:
        ConfigError: If it is no sequence of so many numbers, or a number is NaN.
    """
    try:
        values = tuple(map(_number, returned))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"toolbox.evaluate returned {returned!r}; DEAP needs a tuple of numbers: (value,)") from error
    if len(values) != count or any(math.isnan(value) for value in values):
        raise ConfigError(f"toolbox.evaluate returned {values}; the fitness needs {count} numbers, none of them NaN")
    return values


def _number(value: Any) -> float:
    number = value.item() if hasattr(value, "item") else value
    return number if isinstance(number, int) else float(number)


Error = Callable[[Masks], float]
Compute = Callable[[list[Masks]], Iterable[Values]]


class Evaluate(Protocol):
    """The least that an evaluator needs to be evolved; ``many(masks)``, if it has it, evaluates a whole population."""

    @property
    def names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def weights(self) -> Values: ...  # noqa: D102
    @property
    def settings(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def dense(self) -> dict[str, Any]: ...  # noqa: D102

    def __call__(self, masks: Masks) -> Values: ...  # noqa: D102


class Fitness(Evaluate, Protocol):
    """What searches use of an evaluator; ``dp.Evaluator`` is one.

    Attributes:
        cache: Values of all candidates so far.
        compensates: Whether ``surrogate`` says how good a candidate is.
        learns: Whether ``learned`` gives an error that is fitted to the evaluated candidates.
    """

    @property
    def cache(self) -> Mapping[Masks, Values]: ...  # noqa: D102
    @property
    def compensates(self) -> bool: ...  # noqa: D102
    @property
    def learns(self) -> bool: ...  # noqa: D102

    def many(self, masks: Iterable[Masks], *, compute: Compute | None = None) -> list[Values]: ...  # noqa: D102
    def compute(self, masks: Masks) -> Values: ...  # noqa: D102
    def costs(self, masks: Masks) -> list[float]: ...  # noqa: D102
    def surrogate(self, masks: Masks) -> float: ...  # noqa: D102
    def output_distance(self, masks: Masks) -> float: ...  # noqa: D102
    def learned(self) -> Error | None: ...  # noqa: D102


@runtime_checkable
class _Estimating(Protocol):
    """The methods that tell a whole :class:`Fitness` from a plain evaluator."""

    def many(self, masks: Iterable[Masks], *, compute: Compute | None = None) -> list[Values]: ...
    def compute(self, masks: Masks) -> Values: ...
    def costs(self, masks: Masks) -> list[float]: ...
    def surrogate(self, masks: Masks) -> float: ...
    def output_distance(self, masks: Masks) -> float: ...
    def learned(self) -> Error | None: ...


@runtime_checkable
class _Batched(Protocol):
    def many(self, masks: Iterable[Masks]) -> list[Values]: ...


def as_fitness(evaluate: Evaluate) -> Fitness:
    """The evaluator itself if it is a :class:`Fitness`, else the evaluator with what it lacks."""
    return evaluate if isinstance(evaluate, _Estimating) else PlainFitness(evaluate)  # type: ignore[return-value]


class PlainFitness:
    """A :class:`Fitness` around an evaluator without cache, costs and surrogate.

    Args:
        evaluate: Function of masks to values, with names, weights, settings and dense.
    """

    compensates = False
    learns = False

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self.cache: Mapping[Masks, Values] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objectives."""
        return self._evaluate.names

    @property
    def weights(self) -> Values:
        """+1 to maximise, -1 to minimise."""
        return self._evaluate.weights

    @property
    def settings(self) -> dict[str, Any]:
        """How candidates are evaluated."""
        return self._evaluate.settings

    @property
    def dense(self) -> dict[str, Any]:
        """The dense network's costs and values."""
        return self._evaluate.dense

    def __call__(self, masks: Masks) -> Values:
        """The values of a candidate."""
        return self._evaluate(masks)

    def many(self, masks: Iterable[Masks], *, compute: Compute | None = None) -> list[Values]:
        """Values of several candidates, in order."""
        if compute is not None:
            masks = list(masks)
            distinct = list(dict.fromkeys(masks))
            values = dict(zip(distinct, compute(distinct), strict=True))
            return [values[m] for m in masks]
        if isinstance(self._evaluate, _Batched):
            return list(self._evaluate.many(masks))
        return [self._evaluate(m) for m in masks]

    def compute(self, masks: Masks) -> Values:
        """The values of a candidate."""
        return self._evaluate(masks)

    def costs(self, masks: Masks) -> list[float]:
        """No objective is known to follow from the masks alone."""
        return []

    def surrogate(self, masks: Masks) -> float:
        """The same for all masks: nothing is known of them."""
        return 0.0

    def output_distance(self, masks: Masks) -> float:
        """The same for all masks: nothing is known of them."""
        return 0.0

    def learned(self) -> None:
        """There is no surrogate to fit."""
