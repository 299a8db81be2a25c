"""The protocol of costs, and their registry: what a pruned network needs, as a function of its widths alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deap_prune.arguments import checked
from deap_prune.errors import BudgetError, ConfigError
from deap_prune.registry import Registry
from deap_prune.structure.cost_polynomial import CostPolynomial

if TYPE_CHECKING:
    from deap_prune.structure.masks import Masks
    from deap_prune.structure.space import PruningSpace

Amounts = NDArray[Any]
UNITS: Mapping[str, Mapping[str, float]] = {
    "": {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12},
    "ms": {"us": 1e-3, "ms": 1, "s": 1e3},
    "bytes": {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
}
"""Unit of a cost to the units in which an amount may be written, with their factors."""


class CostFunction(Protocol):
    """A cost of one network: from kept counts of shape (..., groups), whole or not, to amounts of shape (...)."""

    def __call__(self, kept: ArrayLike) -> Amounts: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A registered cost.

    Attributes:
        name: Registry name.
        bind: Function of a pruning space to the :class:`CostFunction` of its network.
        monotone: Whether more kept filters never cost less.
        unit: ``""`` (a count), ``"ms"`` or ``"bytes"``; amounts may be written in it, such as "4 ms".
        summary: First line of the docstring.
        reference: Paper.
    """

    name: str
    bind: Callable[[PruningSpace], CostFunction]
    monotone: bool
    unit: str
    summary: str
    reference: str


COSTS: Registry[Cost] = Registry("cost", "costs")


@checked
def register_cost(
    name: str, *, monotone: bool = True, unit: str = "", reference: str = ""
) -> Callable[[Callable[[PruningSpace], CostFunction]], Callable[[PruningSpace], CostFunction]]:
    """Add a cost: decorate a function from a pruning space to a function from kept counts to amounts.

    The cost is an objective of the same name, the kept share of the dense network's amount, and may be a budget.

    Args:
        name: Registry name.
        monotone: Whether more kept filters never cost less; then a budget is tight as well as kept.
        unit: ``""`` (a count), ``"ms"`` or ``"bytes"``.
        reference: Paper.

    Examples:
        >>> import numpy as np
        >>> @dp.register_cost("filters")
        ... def filters(space):
        ...     \"\"\"Filters of all groups.\"\"\"
        ...     return lambda kept: np.sum(kept, axis=-1)
        >>> dp.objectives()["filters"]
        'Kept share of the cost: filters of all groups.'

    Raises:
        RegistryError: If the name is taken.
        ConfigError: If the unit is unknown.
    """
    if unit not in UNITS:
        raise ConfigError(f"unit is {unit!r}; it is {', '.join(map(repr, UNITS))}")

    def decorate(bind: Callable[[PruningSpace], CostFunction]) -> Callable[[PruningSpace], CostFunction]:
        summary = (bind.__doc__ or "").strip().split("\n")[0]
        COSTS.add(Cost(name=name, bind=bind, monotone=monotone, unit=unit, summary=summary, reference=reference))
        return bind

    return decorate


@dataclass(frozen=True, eq=False)
class BoundCost:
    """A cost of the networks of one pruning space; it is pickled by its name.

    Attributes:
        cost: The registered cost.
        space: The pruning space.
        function: The cost of its networks.
    """

    cost: Cost
    space: PruningSpace
    function: CostFunction

    def __call__(self, kept: ArrayLike) -> Amounts:
        """Amounts for kept counts of shape (..., groups), whole or not; shape (...)."""
        return np.asarray(self.function(kept))

    def __reduce__(self) -> tuple[Callable[..., BoundCost], tuple[str, PruningSpace]]:
        return bound_cost, (self.cost.name, self.space)

    @cached_property
    def dense(self) -> float:
        """The dense network's amount."""
        return float(self(self.space.sizes))

    def widened(self, kept: ArrayLike, wider: ArrayLike) -> Amounts:
        """Amounts with one group at a time at its wider count; both counts have shape (..., groups).

        The last axis of the result is the wider group.
        """
        if isinstance(self.function, CostPolynomial):
            return self.function.widened(kept, wider)
        counts, larger = np.asarray(kept), np.asarray(wider)
        one = np.eye(counts.shape[-1], dtype=np.bool_)
        return self(np.where(one, larger[..., None, :], counts[..., None, :]))

    def share(self, masks: Masks) -> float:
        """Kept share of the dense network's amount.

        Raises:
            MaskError: If the masks do not fit the space.
        """
        return float(self(self.space.kept_counts(masks))) / self.dense


def bound_cost(name: str, space: PruningSpace) -> BoundCost:
    """A registered cost for the networks of a space.

    Raises:
        RegistryError: If there is no such cost.
        ConfigError: If the space lacks what the cost needs.
    """
    return _bound(COSTS[name], space)


@lru_cache(maxsize=32)
def _bound(cost: Cost, space: PruningSpace) -> BoundCost:
    return BoundCost(cost, space, cost.bind(space))


def limit_of(value: Any, cost: str) -> tuple[float | None, float | None]:
    """A limit as users write it: (kept share, None) or (None, amount).

    Args:
        value: A kept share in (0, 1], or text: an amount with a unit ("4 ms", "150M"), or a share ("0.5").
        cost: Name of the cost.

    Raises:
        BudgetError: If it is neither.
        RegistryError: If there is no such cost.
    """
    units = UNITS[COSTS[cost].unit]
    if isinstance(value, str):
        parts = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zA-Z]*)\s*", value)
        if parts and parts[2] in (*units, "") and _is_positive(parts[1]):
            number = float(parts[1])
            if not parts[2] and number <= 1:
                return number, None
            if parts[2] in units and math.isfinite(number * units[parts[2]]):
                return None, number * units[parts[2]]
    elif isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) <= 1:
        return value, None  # type: ignore[return-value]
    raise BudgetError(
        f"max_{cost} is {value!r}; it is the kept share of the {unit_name(cost)}, above 0 and at most 1 (0.5 keeps "
        f"half), an amount such as {_example(cost)!r}, or None to leave it free"
    )


def allowed_amount(value: Any, cost: str, dense: float) -> float:
    """The amount that a limit allows; arguments and errors as for :func:`limit_of`.

    Args:
        value: The limit.
        cost: Name of the cost.
        dense: The dense network's amount.
    """
    share, amount = limit_of(value, cost)
    return amount if amount is not None else float(share or 0.0) * dense


def unit_name(cost: str) -> str:
    """Name of a cost in messages."""
    return "FLOPs" if cost == "flops" else cost


def shown(amount: float, cost: str) -> str:
    """An amount with its unit."""
    unit = COSTS[cost].unit
    return f"{amount:,.0f}" if not unit else f"{amount:.3g} {unit}"


def _example(cost: str) -> str:
    return {"": "150M", "ms": "4 ms", "bytes": "2 MB"}[COSTS[cost].unit]


def _is_positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
