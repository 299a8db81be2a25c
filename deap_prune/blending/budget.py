"""The budgets of a search: what a pruned network may cost, as a share of the dense network's cost or as an amount."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from deap_prune.costs.registry import bound_cost, limit_of, shown, unit_name
from deap_prune.errors import BudgetError

if TYPE_CHECKING:
    from deap_prune.costs.registry import BoundCost
    from deap_prune.structure.space import PruningSpace

FEWEST = "one filter a group (or block)"

Limit = Annotated[float | str | None, BudgetError]
"""A limit as users write it: a kept share, an amount such as "150M" or "4 ms", or None."""
MaxFlops = Annotated[float | str | tuple[float, ...] | None, BudgetError]
"""A budget as users write it: a limit, or a range (lowest, highest) of kept shares."""


@dataclass(frozen=True)
class Budget:
    """A limit on a cost: fixed, a range that a gene chooses from, or none.

    Attributes:
        cost: Name of the cost.
        lowest: Lowest kept share of a range, in (0, 1]; None unless the budget is a range.
        highest: Highest kept share, in (0, 1]; None if the budget is free, or an amount.
        amount: Highest amount, in the cost's unit; :meth:`on` makes a kept share of it.

    Examples:
        >>> from deap_prune.blending import Budget
        >>> Budget.of(0.5).is_fixed, Budget.of((0.3, 0.7)).is_range, Budget.of(None).is_free
        (True, True, True)
        >>> Budget.of("4 ms", "latency").amount, Budget.of("150M").amount
        (4.0, 150000000.0)

    Raises:
        BudgetError: If a share is not in (0, 1], or the range is empty.
    """

    cost: str = "flops"
    lowest: float | None = None
    highest: float | None = None
    amount: float | None = None

    def __post_init__(self) -> None:
        for share in self.shares:
            if limit_of(share, self.cost)[0] is None:
                raise BudgetError(_not_a_range(self.cost, self.shares))
        if self.lowest is not None and (self.highest is None or self.lowest > self.highest):
            raise BudgetError(_not_a_range(self.cost, (self.lowest, self.highest)))

    @classmethod
    def of(cls, limit: MaxFlops | Budget, cost: str = "flops") -> Budget:
        """The budget that a limit describes.

        Args:
            limit: A kept share of the cost, a pair (lowest, highest) of kept shares, an amount as text, None, or a
                budget.
            cost: Name of the cost.

        Raises:
            BudgetError: If a share is not in (0, 1], the range is empty or not a pair, or the text is no amount.
        """
        if isinstance(limit, Budget):
            return limit
        if isinstance(limit, (tuple, list)):  # a range from a configuration file is a list
            if len(limit) != 2 or None in limit:
                raise BudgetError(_not_a_range(cost, limit))
            return cls(cost, limit[0], limit[1])
        if limit is None:
            return cls(cost)
        share, amount = limit_of(limit, cost)
        return cls(cost, highest=share, amount=amount)

    def on(self, cost: BoundCost) -> Budget:
        """The budget with an amount replaced by the kept share that it is.

        Args:
            cost: The budget's cost, for the networks of a space.

        Raises:
            BudgetError: If the amount is more than the dense network's.
        """
        if self.amount is None:
            return self
        if self.amount > cost.dense:
            raise BudgetError(
                f"max_{self.cost} is {shown(self.amount, self.cost)}, but the dense network needs only "
                f"{shown(cost.dense, self.cost)}; give less, or leave max_{self.cost} out"
            )
        share = self.amount / cost.dense
        exact = share if share * cost.dense >= self.amount else math.nextafter(share, 1.0)
        return replace(self, highest=exact, amount=None)

    @property
    def is_free(self) -> bool:
        """There is no limit: the keep genes, or a budget gene, determine the cost."""
        return self.highest is None and self.amount is None

    @property
    def is_range(self) -> bool:
        """A budget gene chooses a share between ``lowest`` and ``highest``."""
        return self.lowest is not None

    @property
    def is_fixed(self) -> bool:
        """All individuals have the same limit."""
        return not self.is_free and not self.is_range

    @property
    def shares(self) -> tuple[float, ...]:
        """The limits in ascending order: none, one or two kept shares."""
        return tuple(share for share in (self.lowest, self.highest) if share is not None)

    @property
    def max_flops(self) -> MaxFlops:
        """A budget of FLOPs as users write it, with shares; :meth:`of` gives the same budget again."""
        if self.cost != "flops":
            return None
        return self.highest if self.lowest is None or self.highest is None else (self.lowest, self.highest)

    def flops_or(self, share: float) -> float:
        """The fixed share of the FLOPs, or ``share`` if there is none: a range, no limit, or one of another cost."""
        fixed = self.highest if self.cost == "flops" and self.lowest is None else None
        return share if fixed is None else fixed


def budgets_on(space: PruningSpace, limits: Mapping[str, MaxFlops | Budget]) -> tuple[Budget, ...]:
    """The budgets of a search that are not free, as kept shares; one free budget if there are none.

    Args:
        space: The pruning space.
        limits: Name of a cost to its limit; a range is allowed for the first only.

    Raises:
        BudgetError: If a limit is illegal, or more than the dense network needs.
        ConfigError: If the space lacks what a cost needs, such as a latency table.
    """
    budgets = [budget for budget in check_limits(limits) if not budget.is_free]
    return tuple(budget.on(bound_cost(budget.cost, space)) for budget in budgets) or (Budget(),)


def check_limits(limits: Mapping[str, MaxFlops | Budget]) -> list[Budget]:
    """The budgets that limits describe, by name of the cost.

    Raises:
        BudgetError: If a limit is illegal, or another one than the first is a range.
    """
    budgets = [Budget.of(limit, cost) for cost, limit in limits.items()]
    for budget in budgets[1:]:
        if budget.is_range:
            raise BudgetError(
                f"max_{budget.cost} is a range, {budget.shares}; only max_flops can be one: give a share or an amount"
            )
    return budgets


def check_budgets(space: PruningSpace, limits: Mapping[str, MaxFlops | Budget]) -> None:
    """Check that the budgets of a search can be reached by some network.

    Args:
        space: The pruning space.
        limits: As for :func:`budgets_on`.

    Raises:
        BudgetError: If a limit is illegal, more than the dense network needs, or cannot be reached.
        ConfigError: If the space lacks what a cost needs, such as a latency table.
    """
    fewest = [group.blocks for group in space.groups]
    for budget in budgets_on(space, limits):
        cost = bound_cost(budget.cost, space)
        check_budget(budget, float(cost(fewest)) / cost.dense, dense=cost.dense)


def check_budget(
    budget: MaxFlops | Budget, reachable: float, kept: str = FEWEST, *, dense: float | None = None
) -> None:
    """Check that a budget can be reached.

    Args:
        budget: See :meth:`Budget.of`; an amount is not checked.
        reachable: Smallest share of the cost that can be reached.
        kept: What the smallest network keeps, for the message.
        dense: Amount of the cost in the dense network; the message shows amounts beside shares then.

    Raises:
        BudgetError: If the budget is illegal, or one of its shares is below ``reachable``.
    """
    budget = Budget.of(budget)
    for share in budget.shares:
        if share < reachable:
            name, least = f"max_{budget.cost}", math.ceil(reachable * 1e4) / 1e4
            given, needed = ("" if dense is None else f" ({shown(s * dense, budget.cost)})" for s in (share, least))
            raise BudgetError(
                f"{name} is {share:.4g}{given}, but {kept} and what stays dense already cost "
                f"{least:.4f}{needed} of the {unit_name(budget.cost)}: that is the reachable minimum; raise {name} to "
                f"{least:.4f} or above"
            )


def _not_a_range(cost: str, value: object) -> str:
    return f"max_{cost} is {value!r}; a range is a pair (lowest, highest), such as (0.3, 0.7)"
