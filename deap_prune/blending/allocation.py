"""How many filters each group keeps, always inside the FLOPs budget, and tight.

An allocation is a path: a function of one scalar t in [0, 1] to kept counts, from the fewest (t = 0) to all (t = 1),
never falling. The budget cuts the path at the last point that fits; what is left is then spent filter by filter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from deap_prune.registry import Registry
from deap_prune.structure.cost import CostPolynomial

STEP = 0.25  # that a group's kept share may lie from the mean of all groups', in "binary"

Counts = NDArray[np.int64]
Path = Callable[[float], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Wish:
    """What an allocation may look at.

    Attributes:
        sizes: Filters of each group, shape (groups,).
        importance: Blended scores of each group, shape (filters,) each.
        shares: The individual's keep genes in [0, 1], shape (groups,).
    """

    sizes: Counts
    importance: tuple[NDArray[np.float64], ...]
    shares: NDArray[np.float64]


@dataclass(frozen=True)
class Allocation:
    """A named rule for the widths.

    Attributes:
        path: Function of a wish to the path of kept counts (not yet whole numbers).
        genes: The rule reads one keep gene a group.
        by_stage: The groups of a stage share one keep gene, and widen together.
    """

    name: str
    path: Callable[[Wish], Path]
    genes: bool
    summary: str
    reference: str
    by_stage: bool = False


ALLOCATIONS: Registry[Allocation] = Registry("allocation", "allocations")


def register_allocation(
    name: str, *, genes: bool = False, by_stage: bool = False, reference: str = ""
) -> Callable[[Callable[[Wish], Path]], Callable[[Wish], Path]]:
    """Add an allocation: decorate a function from a :class:`Wish` to a path.

    Raises:
        RegistryError: If the name is taken.
    """

    def decorate(path: Callable[[Wish], Path]) -> Callable[[Wish], Path]:
        summary = (path.__doc__ or "").strip().split("\n")[0]
        ALLOCATIONS.add(Allocation(name, path, genes, summary, reference, by_stage))
        return path

    return decorate


@register_allocation("uniform", reference="Li et al. 2017, arXiv 1608.08710")
def uniform(wish: Wish) -> Path:
    """Every group keeps the same share."""
    return lambda t: np.asarray(t * wish.sizes, dtype=np.float64)


@register_allocation("global", reference="Liu et al. 2017, arXiv 1708.06519")
def global_threshold(wish: Wish) -> Path:
    """One threshold over the blended importance of all groups."""
    flat = np.concatenate(wish.importance)
    order = np.argsort(-flat, kind="stable")
    levels, owners = -flat[order], np.repeat(np.arange(len(wish.sizes)), wish.sizes)[order]

    def path(t: float) -> NDArray[np.float64]:
        if t <= 0:
            return np.zeros(len(wish.sizes))
        last = levels[min(len(levels) - 1, int(np.ceil(t * len(levels))) - 1)]
        above = np.searchsorted(levels, last, side="right")  # filters that tie with the last one stay too
        return np.bincount(owners[:above], minlength=len(wish.sizes)).astype(np.float64)

    return path


@register_allocation("evolved", genes=True, reference="ours; widths as genes")
def evolved(wish: Wish) -> Path:
    """Every group keeps a share of its own, which evolution searches; the budget scales them together."""
    shares = np.maximum(wish.shares, 1e-6)
    wanted = wish.sizes * shares / shares.max()
    # Up to the middle of the path the widths grow in proportion; beyond it the narrow groups catch up to dense.
    rest = wish.sizes - wanted
    return lambda t: np.asarray(wanted * min(1.0, 2 * t) + rest * max(0.0, 2 * t - 1), dtype=np.float64)


@register_allocation("stage", genes=True, by_stage=True, reference="Chang, Lu, Xue 2020, doi 10.3233/JIFS-202290")
def stage(wish: Wish) -> Path:
    """Every stage keeps one share, so that its blocks have equal widths; evolution searches the shares."""
    return evolved(wish)


@register_allocation("binary", reference="after Xie et al. 2021, arXiv 2108.13728")
def binary(wish: Wish) -> Path:
    """Every group keeps the same share of its importance, within a step of the mean width; found by bisection.

    Xie et al. find layer widths for a budget by a "binary structural search with step constraint". We know the paper's
    abstract alone, so the reading is ours: t is the share of its total (blended) importance that a group must still
    hold, in as few filters as will; the bisection over t finds the budget; and no group's kept share may lie further
    than ``STEP`` from the mean of all groups' shares, so that no layer becomes a bottleneck.
    """
    held = [_held(scores) for scores in wish.importance]

    def path(t: float) -> NDArray[np.float64]:
        shares = np.array([np.interp(t, part, np.linspace(0, 1, len(part))) for part in held])
        middle = shares.mean()
        return np.asarray(shares.clip(middle - STEP, middle + STEP) * wish.sizes, dtype=np.float64)

    return path


def _held(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the total that the best 0, 1, 2, ... filters hold, from 0 to 1; even where there is nothing to tell."""
    best = np.sort(scores - min(0.0, scores.min()))[::-1]
    total = best.sum()
    return np.concatenate([[0.0], np.cumsum(best) / total if total > 0 else np.linspace(0, 1, len(best) + 1)[1:]])


@dataclass(frozen=True, eq=False)
class Widths:
    """The admissible kept counts of every group, and the search along a path.

    Attributes:
        sizes: Filters of each group, shape (groups,).
        steps: Kept counts are multiples of the step, or dense.
        flops: Kept counts (..., groups) to multiply-adds (...).
        least: No group may keep fewer, shape (groups,); admissible or not.
        together: Groups of one number widen together, shape (groups,); None: each alone.
    """

    sizes: Counts
    steps: Counts
    flops: CostPolynomial
    least: Counts
    together: Counts | None = None

    @cached_property
    def fewest(self) -> Counts:
        """The least that each group can keep."""
        return np.minimum(-(-np.maximum(self.least, 1) // self.steps) * self.steps, self.sizes)

    def admissible(self, wanted: NDArray[np.float64]) -> Counts:
        """The nearest admissible counts at or below the wish (never below the fewest)."""
        down = (np.floor(wanted + 1e-9) // self.steps * self.steps).astype(np.int64)
        return np.where(wanted + 1e-9 >= self.sizes, self.sizes, np.maximum(down, self.fewest)).clip(max=self.sizes)

    def more(self, counts: Counts) -> Counts:
        """The next admissible count of every group (its size at most)."""
        return np.minimum((counts // self.steps + 1) * self.steps, self.sizes)

    def fit(self, paths: Sequence[Path], budgets: NDArray[np.float64]) -> Counts:
        """The widest point of each path inside its budget, then filled until no single admissible step fits.

        Args:
            paths: One an individual.
            budgets: Multiply-adds, shape (individuals,).

        Returns:
            Kept counts, shape (individuals, groups).
        """
        low, high = np.zeros(len(paths)), np.ones(len(paths))
        dense = self.admissible(_points(paths, high))
        fits = self.flops(dense) <= budgets
        low[fits] = 1.0
        counts = np.where(fits[:, None], dense, self.fewest)
        while (todo := np.flatnonzero((high - low > 1e-5) & (low < 1))).size:
            middle = (low[todo] + high[todo]) / 2
            tried = self.admissible(_points([paths[i] for i in todo.tolist()], middle))
            inside = self.flops(tried) <= budgets[todo]
            low[todo[inside]], high[todo[~inside]] = middle[inside], middle[~inside]
            counts[todo[inside]] = tried[inside]
        fill = self._fill if self.together is None else self._fill_together
        return fill(counts, _points(paths, high), budgets)

    def _fill(self, counts: Counts, wanted: NDArray[np.float64], budgets: NDArray[np.float64]) -> Counts:
        """Spend what is left, one step at a time, first where the wish is least met."""
        rows = np.arange(len(counts))
        while rows.size:
            following = self.more(counts[rows])
            spent = self.flops.widened(counts[rows], following)
            fits = (following > counts[rows]) & (spent <= budgets[rows, None])
            unfilled = fits.any(axis=1)
            rows, following, fits = rows[unfilled], following[unfilled], fits[unfilled]
            missing = np.where(fits, (wanted[rows] - counts[rows]) / self.sizes, -np.inf)
            best, each = np.argmax(missing, axis=1), np.arange(len(rows))
            counts[rows, best] = following[each, best]
        return counts

    def _fill_together(self, counts: Counts, wanted: NDArray[np.float64], budgets: NDArray[np.float64]) -> Counts:
        """The same, but a step widens all that go together: to the next share at which any of its groups grows."""
        rows = np.arange(len(counts))
        members = [self.together == number for number in dict.fromkeys(np.asarray(self.together).tolist())]
        while rows.size:
            tried = np.stack([self._wider(counts[rows], inside) for inside in members], axis=1)
            fits = (tried > counts[rows, None]).any(axis=2) & (self.flops(tried) <= budgets[rows, None])
            unfilled = fits.any(axis=1)
            rows, tried, fits = rows[unfilled], tried[unfilled], fits[unfilled]
            short = (wanted[rows] - counts[rows]) / self.sizes
            missing = np.where(fits, np.stack([short[:, inside].max(axis=1) for inside in members], axis=1), -np.inf)
            counts[rows] = tried[np.arange(len(rows)), np.argmax(missing, axis=1)]
        return counts

    def _wider(self, counts: Counts, inside: NDArray[np.bool_]) -> Counts:
        """Counts with the groups inside at their next common share."""
        following = self.more(counts)
        grows = inside & (following > counts)
        share = np.where(grows, following / self.sizes, np.inf).min(axis=1, keepdims=True).clip(max=1.0)
        return np.where(inside, np.maximum(counts, self.admissible(share * self.sizes)), counts)


def _points(paths: Sequence[Path], at: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([path(t) for path, t in zip(paths, at.tolist(), strict=True)])
