"""Widths that suit each other: what is narrowed is always what loses least for the FLOPs that it saves.

A group's curve is the error of networks in which it alone is narrower. On the way from the dense network down to the
narrowest one each step goes along the lower convex hull of some group's curve, the flattest steps first: widths of the
least total error (by Lagrange's condition; it takes the groups' errors to add up, and a group's FLOPs to be those with
all others dense), found as Shoham and Gersho spend bits over quantizers (IEEE Trans. ASSP 36, 1988). That is where an
evolution of widths may begin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deap_prune.blending.decoding import Matrix, Planner
from deap_prune.errors import DataError
from deap_prune.structure.masks import Masks

LEVELS = tuple(k / 16 for k in range(16, 1, -1))


@dataclass(frozen=True, eq=False)
class WidthCurves:
    """The balanced widths of every budget, from the dense network down to the narrowest one.

    Attributes:
        planner: Of the groups and their admissible widths.
        steps: Error by FLOPs saved, the group that gets narrower, and the share of its filters that is left.
    """

    planner: Planner
    steps: tuple[tuple[float, int, float], ...]

    @classmethod
    def of(
        cls,
        planner: Planner,
        importance: Sequence[Matrix],
        error: Callable[[Masks], float],
        *,
        anchor: Callable[[Masks], float] | None = None,
    ) -> WidthCurves:
        """Measure every group alone at 15 widths.

        Args:
            planner: Of the groups and their admissible widths.
            importance: Of every group's filters, shape (1, filters) each; larger = keep.
            error: Of masks; 0 where nothing is pruned.
            anchor: A dearer error of masks, which the whole curve of each group is scaled to at half of its width. A
                group keeps its curve where either error is 0 or not finite.
        """
        space, groups = planner.space, len(planner.space.groups)
        alone = np.ones((len(LEVELS), groups, groups))
        alone[:, range(groups), range(groups)] = np.array(LEVELS)[:, None]
        wishes = alone.reshape(-1, groups)
        rows = [np.broadcast_to(scores, (len(wishes), scores.shape[1])) for scores in importance]
        free = planner.free()
        counts = np.diagonal(free.widths.admissible(space.sizes * wishes).reshape(alone.shape), axis1=1, axis2=2)
        candidates = free.masks(rows, wishes, None)
        lost = np.array([error(masks) for masks in candidates]).reshape(counts.shape)
        if anchor is not None:
            at = LEVELS.index(0.5)
            goal = np.array([anchor(masks) for masks in candidates[at * groups : (at + 1) * groups]])
            usable = np.isfinite(goal) & (goal > 0) & (lost[at] > 0)
            lost = lost * np.divide(goal, lost[at], out=np.ones(groups), where=usable)
        return cls._joined(planner, list(counts.T), list(lost.T))

    @classmethod
    def of_errors(cls, planner: Planner, errors: Mapping[str, Matrix]) -> WidthCurves:
        """Curves from the error at every width of each group, such as those of an elimination.

        Args:
            planner: The groups and their admissible widths.
            errors: By group name, the error after each number of removed filters of a block, from none to all, shape
                (filters of a block + 1,). A group without a curve stays dense until all others are at their narrowest.
        """
        free = planner.free()
        counts, lost = [], []
        for number, group in enumerate(planner.space.groups):
            curve = np.asarray(errors.get(group.name, np.zeros(2)), dtype=np.float64)[:-1]
            widths = group.size - group.blocks * np.arange(len(curve))
            wishes = np.tile(planner.space.sizes.astype(np.float64), (len(widths), 1))
            wishes[:, number] = widths
            legal = free.widths.admissible(wishes)[:, number] == widths
            counts.append(widths[legal])
            lost.append(curve[legal])
        return cls._joined(planner, counts, lost)

    @classmethod
    def _joined(cls, planner: Planner, counts: Sequence[Matrix], lost: Sequence[Matrix]) -> WidthCurves:
        """The hulls of all groups' curves: kept counts, falling, and errors, each of shape (widths,)."""
        space, steps = planner.space, list[tuple[float, int, float]]()
        for group, (widths, curve) in enumerate(zip(counts, lost, strict=True)):
            if not np.isfinite(curve).all():
                raise DataError("the error by width is not finite; normalise the calibration images")
            alone = np.tile(space.sizes, (len(widths), 1))
            alone[:, group] = widths
            spent = np.asarray(space.flops_of(alone)) / space.flops
            steps += [(slope, group, float(widths[at] / space.sizes[group])) for slope, at in _hull(spent, curve)]
        return cls(planner, tuple(steps))

    def weighed(self, weights: Sequence[float]) -> WidthCurves:
        """The same errors, those of some groups counting more than others'.

        Args:
            weights: One a group, above 0.
        """
        return WidthCurves(self.planner, tuple((slope * weights[g], g, share) for slope, g, share in self.steps))

    @cached_property
    def kept(self) -> Matrix:
        """Kept share of each group, shape (rows, groups); from row to row one group gets narrower."""
        sizes = self.planner.space.sizes
        kept = [np.ones(len(sizes))]
        for _, group, share in sorted(self.steps, key=lambda step: step[0]):
            kept.append(kept[-1].copy())
            kept[-1][group] = share
        kept.append(self.planner.widths.fewest / sizes)
        return np.minimum.accumulate(kept)

    @cached_property
    def flops(self) -> Matrix:
        """Kept share of the FLOPs of each row, shape (rows,), falling."""
        space = self.planner.space
        counts = self.planner.widths.admissible(self.kept * space.sizes)
        return np.asarray(space.flops_of(counts)) / space.flops

    def shares(self, flops: float) -> list[float]:
        """The kept share of each group.

        Args:
            flops: Kept share of the FLOPs; what is outside the reach gives the nearest there is.
        """
        return [float(np.interp(flops, self.flops[::-1], column[::-1])) for column in self.kept.T]


def _hull(spent: Matrix, lost: Matrix) -> list[tuple[float, int]]:
    """The steps down the lower convex hull of a curve: error by FLOPs saved, growing, and the place it leads to.

    Args:
        spent: FLOPs at each place, falling.
        lost: Error at each place.
    """
    steps, here = [], 0
    while (further := np.flatnonzero(spent < spent[here])).size:
        slopes = (lost[further] - lost[here]) / (spent[here] - spent[further])
        flattest = np.flatnonzero(slopes == slopes.min())[-1]
        here = int(further[flattest])
        steps.append((float(slopes[flattest]), here))
    return steps
