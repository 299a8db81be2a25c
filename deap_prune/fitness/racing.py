"""Racing: a candidate that can no longer survive is dropped before it has seen all images.

After every batch the candidate is compared, image by image, with the survivors of the generation before (paired
differences vary far less than the values themselves; Maron & Moore 1994, "Hoeffding races"; Birattari et al. 2002).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rivals:
    """The survivors of the last front: who is dominated by one of them stands behind all survivors, and dies.

    Everything is minimised here.

    Attributes:
        confidence: Of one comparison, one-sided.
        losses: Per survivor and image, shape (survivors, images).
        costs: Objectives that follow from the masks alone, shape (survivors, costs).
    """

    confidence: float
    losses: Floats
    costs: Floats

    @classmethod
    def of(cls, confidence: float, losses: Floats, costs: Floats) -> Rivals:
        """Those of the survivors that no other one is worse than.

        Args:
            confidence: Of one comparison.
            losses: Per survivor and image, shape (survivors, images).
            costs: Shape (survivors, costs).
        """
        last = last_front(np.column_stack([losses.mean(axis=1), costs]))
        return cls(confidence, losses[last], costs[last])

    def beat(self, costs: Sequence[float], losses: Floats) -> float | None:
        """The estimated mean loss of a candidate that a rival dominates at the confidence; None if none does.

        The estimate is the rival's mean loss and the paired difference so far, so it is dominated as well.

        Args:
            costs: The candidate's, shape (costs,).
            losses: On the images seen so far, shape (seen,).
        """
        seen, total = len(losses), self.losses.shape[1]
        cheaper = self.losses[(self.costs <= np.asarray(costs)).all(axis=1)]
        if not 2 <= seen < total or not len(cheaper):
            return None
        behind = losses - cheaper[:, :seen]
        # The images still to come are drawn from the same finite set: hence the correction.
        error = behind.std(axis=1, ddof=1) / np.sqrt(seen) * np.sqrt(1 - seen / total)
        mean = behind.mean(axis=1)
        sure = mean > NormalDist().inv_cdf(self.confidence) * error
        if not sure.any():
            return None
        return float((cheaper.mean(axis=1) + mean)[sure].max())


def last_front(points: Floats) -> NDArray[np.intp]:
    """Indices of the last non-dominated front of minimised points of shape (n, objectives)."""
    rest = np.arange(len(points))
    while True:
        p = points[rest]
        beaten = [bool(((p <= q).all(axis=1) & (p < q).any(axis=1)).any()) for q in p]
        if not any(beaten):
            return rest
        rest = rest[beaten]


def least_dominated(points: Floats, slots: int) -> list[int]:
    """For each slot, the one of its points that the fewest of all dominate; of equals, the first in the first value.

    Args:
        points: Minimised, shape (n, objectives); dealt to the slots in order, as evenly as may be.
        slots: How many are wanted.
    """
    beaten = [int(((points <= p).all(axis=1) & (points < p).any(axis=1)).sum()) for p in points]
    deals = np.array_split(np.arange(len(points)), slots)
    return [min(deal.tolist(), key=lambda k: (beaten[k], points[k, 0], k)) for deal in deals]
