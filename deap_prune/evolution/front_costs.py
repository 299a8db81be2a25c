"""What the networks of a front cost, and which of them are inside budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deap_prune.blending.budget import Limit
from deap_prune.costs.registry import COSTS, allowed_amount, shown
from deap_prune.errors import BudgetError


def amounts_of(
    solutions: Sequence[Any], weights: Mapping[str, float], dense: Mapping[str, Any], cost: str
) -> tuple[NDArray[np.float64], float]:
    """A cost of each solution, shape (solutions,), and the dense network's.

    Raises:
        BudgetError: If the front does not hold this cost.
    """
    if cost in ("flops", "params", "latency") and cost in dense:
        return np.array([getattr(s, cost) for s in solutions], dtype=np.float64), float(dense[cost])
    if weights.get(cost) == -1 and cost in dense.get("values", {}):
        return np.array([s.values[cost] for s in solutions], dtype=np.float64), float(dense["values"][cost])
    raise BudgetError(
        f"the front does not hold the cost '{cost}' of its networks; it is 'flops' or 'params', 'latency' after a "
        "search with latency_table=, or an objective that is minimised"
    )


def _shown(amount: float, cost: str) -> str:
    return shown(amount, cost) if cost in COSTS else f"{amount:.4g}"


def inside(
    solutions: Sequence[Any], weights: Mapping[str, float], dense: Mapping[str, Any], limits: Mapping[str, Limit]
) -> NDArray[np.bool_]:
    """Whether each solution is inside all limits (None: no limit), shape (solutions,).

    Raises:
        BudgetError: If no solution is, a limit is illegal, or the front does not hold a cost.
    """
    fits, least = np.ones(len(solutions), dtype=np.bool_), []
    given = {cost: limit for cost, limit in limits.items() if limit is not None}
    for cost, limit in given.items():
        amounts, whole = amounts_of(solutions, weights, dense, cost)
        fits &= amounts <= allowed_amount(limit, cost, whole)
        least.append(f"{np.min(amounts) / whole:.4f} of the {cost} ({_shown(float(np.min(amounts)), cost)})")
    if not fits.any():
        budgets = ", ".join(f"max_{cost} {limit}" for cost, limit in given.items())
        raise BudgetError(f"no solution is within {budgets}; the cheapest keeps {' and '.join(least)}")
    return fits
