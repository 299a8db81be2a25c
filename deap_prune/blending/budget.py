"""The budget of a search: the share of the dense network's cost that a pruned network may keep."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deap_prune.errors import BudgetError

FEWEST = "one filter a group (or block)"

MaxFlops = float | tuple[float, float] | None
"""A budget as users write it: a kept share, a range (lowest, highest) of kept shares, or None."""


@dataclass(frozen=True)
class Budget:
    """A limit on the kept share of a cost: fixed, a range that a gene chooses from, or none.

    Attributes:
        cost: Name of the cost.
        lowest: Lowest kept share of a range, in (0, 1]; None unless the budget is a range.
        highest: Highest kept share, in (0, 1]; None if the budget is free.

    Examples:
        >>> from deap_prune.blending import Budget
        >>> Budget.of(0.5).is_fixed, Budget.of((0.3, 0.7)).is_range, Budget.of(None).is_free
        (True, True, True)

    Raises:
        BudgetError: If a share is not in (0, 1], or the range is empty.
    """

    cost: str = "flops"
    lowest: float | None = None
    highest: float | None = None

    def __post_init__(self) -> None:
        for share in self.shares:
            if not isinstance(share, (int, float)) or not 0 < share <= 1:
                raise BudgetError(
                    f"max_{self.cost} is {share!r}; it is the kept share of the {_unit(self.cost)}, above 0 and at "
                    "most 1 (0.5 keeps half), or None to leave it free"
                )
        if self.lowest is not None and (self.highest is None or self.lowest > self.highest):
            raise BudgetError(_not_a_range(self.cost, (self.lowest, self.highest)))

    @classmethod
    def of(cls, max_flops: MaxFlops | Budget) -> Budget:
        """The budget that ``max_flops`` describes.

        Args:
            max_flops: Kept share of the FLOPs, a pair (lowest, highest) of kept shares, None, or a budget.

        Raises:
            BudgetError: If a share is not in (0, 1], or the range is empty or not a pair.
        """
        if isinstance(max_flops, Budget):
            return max_flops
        if isinstance(max_flops, (tuple, list)):  # a range from a configuration file is a list
            if len(max_flops) != 2 or None in max_flops:
                raise BudgetError(_not_a_range("flops", max_flops))
            return cls(lowest=max_flops[0], highest=max_flops[1])
        return cls(highest=max_flops)

    @property
    def is_free(self) -> bool:
        """There is no limit: the keep genes, or a budget gene, determine the cost."""
        return self.highest is None

    @property
    def is_range(self) -> bool:
        """A budget gene chooses a share between ``lowest`` and ``highest``."""
        return self.lowest is not None

    @property
    def is_fixed(self) -> bool:
        """All individuals have the same limit, ``highest``."""
        return self.highest is not None and self.lowest is None

    @property
    def shares(self) -> tuple[float, ...]:
        """The limits in ascending order: none, one or two kept shares."""
        return tuple(share for share in (self.lowest, self.highest) if share is not None)

    @property
    def max_flops(self) -> MaxFlops:
        """The budget as users write it; :meth:`of` gives the same budget again."""
        return self.highest if self.lowest is None or self.highest is None else (self.lowest, self.highest)

    def fixed_or(self, share: float) -> float:
        """The fixed share, or ``share`` if the budget is a range or free."""
        return self.highest if self.highest is not None and self.lowest is None else share


def check_budget(max_flops: MaxFlops | Budget, reachable: float, kept: str = FEWEST) -> None:
    """Check that a budget can be reached.

    Args:
        max_flops: See :meth:`Budget.of`.
        reachable: Smallest share of the FLOPs that can be reached, in [0, 1].
        kept: What the smallest network keeps, for the message.

    Raises:
        BudgetError: If the budget is illegal, or one of its shares is below ``reachable``.
    """
    budget = Budget.of(max_flops)
    for share in budget.shares:
        if share < reachable:
            name, least = f"max_{budget.cost}", math.ceil(reachable * 1e4) / 1e4
            raise BudgetError(
                f"{name} is {share:g}, but {kept} and what stays dense already cost "
                f"{least:.4f} of the {_unit(budget.cost)}: that is the reachable minimum; raise {name} to {least:.4f} "
                "or above"
            )


def _unit(cost: str) -> str:
    """Name of a cost in messages."""
    return "FLOPs" if cost == "flops" else cost


def _not_a_range(cost: str, value: object) -> str:
    return f"max_{cost} is {value!r}; a range is a pair (lowest, highest), such as (0.3, 0.7)"
