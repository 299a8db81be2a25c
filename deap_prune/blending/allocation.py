"""How many filters each group keeps: always inside all budgets, and tight.

An allocation is a path: a function of one scalar t in [0, 1] that returns the kept counts, from the fewest (t = 0) to
all filters (t = 1), never decreasing. The budgets cut the path at the last point that is inside all of them. What is
left of them is spent one filter at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from deap_prune.arguments import checked
from deap_prune.costs.registry import BoundCost
from deap_prune.registry import Registry

STEP = 0.25  # largest distance of a group's kept share from the mean kept share, in "binary"

Counts = NDArray[np.int64]
Path = Callable[[float], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class AllocationInputs:
    """The values that an allocation may use.

    Attributes:
        sizes: Number of filters of each group, shape (groups,).
        importance: Blended scores of each group, shape (filters,) each.
        shares: The individual's keep genes, in [0, 1], shape (groups,).
    """

    sizes: Counts
    importance: tuple[NDArray[np.float64], ...]
    shares: NDArray[np.float64]


@dataclass(frozen=True)
class Allocation:
    """A named rule for the widths.

    Attributes:
        name: Registry name.
        path: Function from :class:`AllocationInputs` to the path of kept counts (floats, not yet whole numbers).
        genes: The rule reads one keep gene per group.
        summary: First line of the docstring.
        reference: Paper.
        by_stage: The groups of a stage share one keep gene and widen together.
    """

    name: str
    path: Callable[[AllocationInputs], Path]
    genes: bool
    summary: str
    reference: str
    by_stage: bool = False


ALLOCATIONS: Registry[Allocation] = Registry("allocation", "allocations")


@checked
def register_allocation(
    name: str, *, genes: bool = False, by_stage: bool = False, reference: str = ""
) -> Callable[[Callable[[AllocationInputs], Path]], Callable[[AllocationInputs], Path]]:
    """Add an allocation: decorate a function from :class:`AllocationInputs` to a path.

    Args:
        name: Registry name.
        genes: The rule reads one keep gene per group.
        by_stage: The groups of a stage share one keep gene and widen together.
        reference: Paper.

    Raises:
        RegistryError: If the name is taken.
    """

    def decorate(path: Callable[[AllocationInputs], Path]) -> Callable[[AllocationInputs], Path]:
        summary = (path.__doc__ or "").strip().split("\n")[0]
        ALLOCATIONS.add(Allocation(name, path, genes, summary, reference, by_stage))
        return path

    return decorate


@register_allocation("uniform", reference="Li et al. 2017, arXiv 1608.08710")
def uniform(inputs: AllocationInputs) -> Path:
    """Every group keeps the same share."""
    return lambda t: np.asarray(t * inputs.sizes, dtype=np.float64)


@register_allocation("global", reference="Liu et al. 2017, arXiv 1708.06519")
def global_threshold(inputs: AllocationInputs) -> Path:
    """One threshold on the blended importance of all groups."""
    flat = np.concatenate(inputs.importance)
    order = np.argsort(-flat, kind="stable")
    levels, groups = -flat[order], np.repeat(np.arange(len(inputs.sizes)), inputs.sizes)[order]

    def path(t: float) -> NDArray[np.float64]:
        if t <= 0:
            return np.zeros(len(inputs.sizes))
        threshold = levels[min(len(levels) - 1, int(np.ceil(t * len(levels))) - 1)]
        above = np.searchsorted(levels, threshold, side="right")  # filters that tie with the threshold are kept
        return np.bincount(groups[:above], minlength=len(inputs.sizes)).astype(np.float64)

    return path


@register_allocation("evolved", genes=True, reference="ours; widths as genes")
def evolved(inputs: AllocationInputs) -> Path:
    """Every group has its own kept share, a gene; the budget scales all shares together."""
    shares = np.maximum(inputs.shares, 1e-6)
    narrow = inputs.sizes * shares / shares.max()
    # Up to the middle of the path the widths grow in proportion. Beyond it the narrow groups catch up to dense.
    rest = inputs.sizes - narrow
    return lambda t: np.asarray(narrow * min(1.0, 2 * t) + rest * max(0.0, 2 * t - 1), dtype=np.float64)


@register_allocation("stage", genes=True, by_stage=True, reference="Chang, Lu, Xue 2020, doi 10.3233/JIFS-202290")
def stage(inputs: AllocationInputs) -> Path:
    """Every stage has one kept share, a gene, so that its blocks have equal widths."""
    return evolved(inputs)


@register_allocation("binary", reference="after Xie et al. 2021, arXiv 2108.13728")
def binary(inputs: AllocationInputs) -> Path:
    """Every group keeps the same share of its total importance, within a step of the mean width.

    Xie et al. choose layer widths for a budget by a "binary structural search with step constraint". Only the abstract
    of the paper was available, so this is our interpretation. t is the share of its total (blended) importance that
    each group must keep, in as few filters as possible. A bisection over t meets the budget. No group's kept share may
    differ by more than ``STEP`` from the mean kept share, so that no layer becomes a bottleneck.
    """
    cumulative = [_cumulative_shares(scores) for scores in inputs.importance]

    def path(t: float) -> NDArray[np.float64]:
        shares = np.array([np.interp(t, part, np.linspace(0, 1, len(part))) for part in cumulative])
        mean = shares.mean()
        return np.asarray(shares.clip(mean - STEP, mean + STEP) * inputs.sizes, dtype=np.float64)

    return path


def _cumulative_shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the total importance in the best 0, 1, 2, ... filters; evenly spaced if all scores are 0.

    Args:
        scores: Shape (filters,).

    Returns:
        Ascending from 0 to 1, shape (filters + 1,).
    """
    best = np.sort(scores - min(0.0, scores.min()))[::-1]
    total = best.sum()
    return np.concatenate([[0.0], np.cumsum(best) / total if total > 0 else np.linspace(0, 1, len(best) + 1)[1:]])


@dataclass(frozen=True, eq=False)
class Widths:
    """The admissible kept counts of every group, and the search along a path.

    Attributes:
        sizes: Number of filters of each group, shape (groups,).
        steps: Kept counts are multiples of the step, or dense, shape (groups,).
        costs: The costs that have a budget.
        minimum: Lower bound of each group's kept count, shape (groups,); need not be admissible.
        stages: Groups with equal numbers widen together, shape (groups,); None if each group widens alone.
    """

    sizes: Counts
    steps: Counts
    costs: tuple[BoundCost, ...]
    minimum: Counts
    stages: Counts | None = None

    @cached_property
    def fewest(self) -> Counts:
        """The smallest admissible count of each group, shape (groups,)."""
        return np.minimum(-(-np.maximum(self.minimum, 1) // self.steps) * self.steps, self.sizes)

    def admissible(self, target: NDArray[np.float64]) -> Counts:
        """The nearest admissible counts at or below the target, and at least ``fewest``.

        Args:
            target: Kept counts, not necessarily whole numbers, shape (..., groups).
        """
        down = (np.floor(target + 1e-9) // self.steps * self.steps).astype(np.int64)
        return np.where(target + 1e-9 >= self.sizes, self.sizes, np.maximum(down, self.fewest)).clip(max=self.sizes)

    def following(self, counts: Counts) -> Counts:
        """The next larger admissible count of every group, at most its size, shape (..., groups)."""
        return np.minimum((counts // self.steps + 1) * self.steps, self.sizes)

    def fit(self, paths: Sequence[Path], budgets: NDArray[np.float64]) -> Counts:
        """The widest point of each path inside its budgets, then filled until no admissible step fits all of them.

        Args:
            paths: One per individual.
            budgets: Amounts of the costs, shape (individuals, costs); ``fewest`` is inside all of them.

        Returns:
            Kept counts, shape (individuals, groups).
        """
        low, high = np.zeros(len(paths)), np.ones(len(paths))
        dense = self.admissible(_points(paths, high))
        fits = self._inside(dense, budgets)
        low[fits] = 1.0
        counts = np.where(fits[:, None], dense, self.fewest)
        while (rows := np.flatnonzero((high - low > 1e-5) & (low < 1))).size:
            middle = (low[rows] + high[rows]) / 2
            trial = self.admissible(_points([paths[i] for i in rows.tolist()], middle))
            inside = self._inside(trial, budgets[rows])
            low[rows[inside]], high[rows[~inside]] = middle[inside], middle[~inside]
            counts[rows[inside]] = trial[inside]
        fill = self._fill if self.stages is None else self._fill_stages
        return fill(counts, _points(paths, high), budgets)

    def _inside(self, counts: Counts, budgets: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether all costs of kept counts (..., groups) are inside the budgets (..., costs); shape (...)."""
        fits = np.ones(counts.shape[:-1], dtype=np.bool_)
        for place, cost in enumerate(self.costs):
            fits &= cost(counts) <= budgets[..., place]
        return fits

    def _fill(self, counts: Counts, target: NDArray[np.float64], budgets: NDArray[np.float64]) -> Counts:
        """Spend the rest of the budgets one step at a time, first in the group farthest below its target.

        Args:
            counts: Inside the budgets, shape (individuals, groups).
            target: The path's end, shape (individuals, groups).
            budgets: Amounts of the costs, shape (individuals, costs).
        """
        rows = np.arange(len(counts))
        while rows.size:
            wider = self.following(counts[rows])
            fits = wider > counts[rows]
            for place, cost in enumerate(self.costs):
                fits &= cost.widened(counts[rows], wider) <= budgets[rows, None, place]
            unfilled = fits.any(axis=1)
            rows, wider, fits = rows[unfilled], wider[unfilled], fits[unfilled]
            missing = np.where(fits, (target[rows] - counts[rows]) / self.sizes, -np.inf)
            best = np.argmax(missing, axis=1)
            counts[rows, best] = wider[np.arange(len(rows)), best]
        return counts

    def _fill_stages(self, counts: Counts, target: NDArray[np.float64], budgets: NDArray[np.float64]) -> Counts:
        """Like ``_fill``, but a step widens a whole stage: to the next share at which one of its groups grows."""
        rows = np.arange(len(counts))
        members = [self.stages == number for number in dict.fromkeys(np.asarray(self.stages).tolist())]
        while rows.size:
            wider = np.stack([self._widen_stage(counts[rows], inside) for inside in members], axis=1)
            fits = (wider > counts[rows, None]).any(axis=2) & self._inside(wider, budgets[rows, None])
            unfilled = fits.any(axis=1)
            rows, wider, fits = rows[unfilled], wider[unfilled], fits[unfilled]
            short = (target[rows] - counts[rows]) / self.sizes
            missing = np.where(fits, np.stack([short[:, inside].max(axis=1) for inside in members], axis=1), -np.inf)
            counts[rows] = wider[np.arange(len(rows)), np.argmax(missing, axis=1)]
        return counts

    def _widen_stage(self, counts: Counts, inside: NDArray[np.bool_]) -> Counts:
        """The counts with one stage at its next common share.

        Args:
            counts: Shape (individuals, groups).
            inside: The groups of the stage, shape (groups,).
        """
        wider = self.following(counts)
        grows = inside & (wider > counts)
        share = np.where(grows, wider / self.sizes, np.inf).min(axis=1, keepdims=True).clip(max=1.0)
        return np.where(inside, np.maximum(counts, self.admissible(share * self.sizes)), counts)


def _points(paths: Sequence[Path], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kept counts of each path at its own position t, shape (individuals, groups)."""
    return np.array([path(t) for path, t in zip(paths, positions.tolist(), strict=True)])
