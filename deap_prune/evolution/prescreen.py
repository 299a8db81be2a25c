"""Pre-screening: several children are made for each that is evaluated, and a closed-form surrogate picks one."""

from __future__ import annotations

from typing import Any

import numpy as np
from deap import algorithms, base
from numpy.typing import NDArray

from deap_prune.evolution.first_population import StartingPoints
from deap_prune.evolution.fitness import Error
from deap_prune.evolution.problem import BlendProblem
from deap_prune.structure.masks import Masks

PROPOSED = 8  # one child in so many is the surrogate's own proposal


class Prescreen:
    """Variation with pre-screening, in the place of DEAP's ``varOr`` (``Variation.vary``).

    It picks among networks that are not evaluated yet, as far as the children have any. If the surrogate is fitted to
    the evaluated candidates, one child in eight (but never the only one) is its own proposal: a single criterion with
    widths balanced by it. So the surrogate's errors are corrected, and widths take large steps.

    Args:
        problem: Genome and fitness; the fitness needs calibration data.
        children: Children made for each that is evaluated.
        propose: Whether the surrogate proposes children; not where budgets change during a run.
    """

    def __init__(self, problem: BlendProblem, children: int, *, propose: bool = True) -> None:
        self._fitness, self._genome = problem.fitness, problem.genome
        self._starting_points = StartingPoints(problem)
        self._children, self._propose = children, propose

    def __call__(
        self, population: list[Any], toolbox: base.Toolbox, lambda_: int, cxpb: float, mutpb: float
    ) -> list[Any]:
        """``lambda_`` children, as ``algorithms.varOr`` makes them."""
        error = self._fitness.learned()
        count = min(-(-lambda_ // PROPOSED), lambda_ - 1) if self._propose and error is not None else 0
        proposed = self._proposals(count, error) if count and error is not None else []
        slots = lambda_ - len(proposed)
        varied = algorithms.varOr(population, toolbox, slots * self._children, cxpb, mutpb)
        children = self._not_evaluated_first(varied, slots)
        chosen = self.pick(self._genome.decode_many(children), slots, error)
        return [*(children[k] for k in chosen), *proposed]

    def pick(self, candidates: list[Masks], slots: int, error: Error | None = None) -> list[int]:
        """Positions of the candidates that are worth evaluating, one for each slot.

        Candidates are dealt to the slots in order. Each slot takes the candidate that the fewest of all candidates
        dominate by error and cost objectives; of equals, the one with the smaller error.

        Args:
            candidates: As many as slots, or more.
            slots: Number of positions to return.
            error: Error of masks; the fitness's surrogate by default.
        """
        error = error or self._fitness.surrogate
        points = [[error(masks), *self._fitness.costs(masks)] for masks in candidates]
        return least_dominated(np.array(points), slots)

    def _not_evaluated_first(self, children: list[Any], slots: int) -> list[Any]:
        """Children whose networks are not evaluated yet, each network once; others fill what slots remain.

        Otherwise unchanged copies of good parents would win their slots, and nothing new would be evaluated.
        """
        new = list(self._new(children).values())
        chosen = set(map(id, new))
        rest = (child for child in children if id(child) not in chosen)
        return [*new, *rest][: max(len(new), slots)]

    def _new(self, individuals: list[Any]) -> dict[Masks, Any]:
        """The individuals whose networks are not evaluated yet, by masks; the first of equals."""
        new: dict[Masks, Any] = {}
        for masks, individual in zip(self._genome.decode_many(individuals), individuals, strict=True):
            if masks not in self._fitness.cache:
                new.setdefault(masks, individual)
        return new

    def _proposals(self, count: int, error: Error) -> list[Any]:
        """At most ``count`` proposals of the surrogate, over a range of costs if the budget is free."""
        genome = self._genome
        new = self._new(self._starting_points.balanced(count * len(genome.criteria), error=error))
        candidates = list(new)
        if genome.budget.is_fixed:
            return [new[masks] for masks in sorted(candidates, key=error)[:count]]
        chosen = self.pick(candidates, min(count, len(candidates)), error) if candidates else []
        return [new[candidates[k]] for k in chosen]


def least_dominated(points: NDArray[np.float64], slots: int) -> list[int]:
    """For each slot, the position of its point that the fewest of all points dominate.

    Of equals, the point with the smallest first value.

    Args:
        points: Minimised, shape (n, objectives); dealt to the slots in order, as evenly as possible.
        slots: Number of positions to return.
    """
    dominated_by = [int(((points <= p).all(axis=1) & (points < p).any(axis=1)).sum()) for p in points]
    deals = np.array_split(np.arange(len(points)), slots)
    return [min(deal.tolist(), key=lambda k: (dominated_by[k], points[k, 0], k)) for deal in deals]
