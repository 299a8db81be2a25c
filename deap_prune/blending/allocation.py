"""How many filters each group keeps, always inside the FLOPs budget, and tight.

An allocation is a path: a function of one scalar t in [0, 1] to kept counts, from the fewest (t = 0) to all (t = 1),
never falling. The budget cuts the path at the last point that fits; what is left is then spent filter by filter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deap_prune.registry import Registry

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
    """

    name: str
    path: Callable[[Wish], Path]
    genes: bool
    summary: str
    reference: str


ALLOCATIONS: Registry[Allocation] = Registry("allocation", "allocations")


def register_allocation(
    name: str, *, genes: bool = False, reference: str = ""
) -> Callable[[Callable[[Wish], Path]], Callable[[Wish], Path]]:
    """Add an allocation: decorate a function from a :class:`Wish` to a path.

    Raises:
        RegistryError: If the name is taken.
    """

    def decorate(path: Callable[[Wish], Path]) -> Callable[[Wish], Path]:
        summary = (path.__doc__ or "").strip().split("\n")[0]
        ALLOCATIONS.add(Allocation(name, path, genes, summary, reference))
        return path

    return decorate


@register_allocation("uniform", reference="Li et al. 2017, arXiv 1608.08710")
def uniform(wish: Wish) -> Path:
    """Every group keeps the same share."""
    return lambda t: np.asarray(t * wish.sizes, dtype=np.float64)


@register_allocation("global", reference="Liu et al. 2017, arXiv 1708.06519")
def global_threshold(wish: Wish) -> Path:
    """One threshold over the blended importance of all groups."""
    ranked = [np.sort(scores) for scores in wish.importance]
    levels = np.sort(np.concatenate(ranked))[::-1]

    def path(t: float) -> NDArray[np.float64]:
        if t <= 0:
            return np.zeros(len(ranked))
        threshold = levels[min(len(levels) - 1, int(np.ceil(t * len(levels))) - 1)]
        return np.array([len(s) - np.searchsorted(s, threshold, side="left") for s in ranked], dtype=np.float64)

    return path


@register_allocation("evolved", genes=True, reference="ours; widths as genes")
def evolved(wish: Wish) -> Path:
    """Every group keeps a share of its own, which evolution searches; the budget scales them together."""
    shares = np.maximum(wish.shares, 1e-6)
    wanted = wish.sizes * shares / shares.max()
    # Up to the middle of the path the widths grow in proportion; beyond it the narrow groups catch up to dense.
    rest = wish.sizes - wanted
    return lambda t: np.asarray(wanted * min(1.0, 2 * t) + rest * max(0.0, 2 * t - 1), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Widths:
    """The admissible kept counts of every group, and the search along a path.

    Attributes:
        sizes: Filters of each group, shape (groups,).
        steps: Kept counts are multiples of the step, or dense.
        flops: Function of kept counts (..., groups) to multiply-adds (...).
    """

    sizes: Counts
    steps: Counts
    flops: Callable[[Counts], NDArray[np.int64]]

    @property
    def fewest(self) -> Counts:
        """The least that each group can keep."""
        return np.minimum(self.steps, self.sizes)

    def admissible(self, wanted: NDArray[np.float64]) -> Counts:
        """The nearest admissible counts at or below the wish (never below the fewest)."""
        down = (np.floor(wanted + 1e-9) // self.steps * self.steps).astype(np.int64)
        return np.where(wanted + 1e-9 >= self.sizes, self.sizes, np.maximum(down, self.fewest)).clip(max=self.sizes)

    def more(self, counts: Counts) -> Counts:
        """The next admissible count of every group (its size at most)."""
        return np.minimum((counts // self.steps + 1) * self.steps, self.sizes)

    def fit(self, path: Path, budget: float) -> Counts:
        """The widest point of the path inside the budget, then filled until no single admissible step fits."""
        low, high = 0.0, 1.0
        counts = self.fewest
        if self.flops(self.admissible(path(1.0))) <= budget:
            low = 1.0
            counts = self.admissible(path(1.0))
        while high - low > 1e-5 and low < 1:
            middle = (low + high) / 2
            tried = self.admissible(path(middle))
            if self.flops(tried) <= budget:
                low, counts = middle, tried
            else:
                high = middle
        return self._fill(counts, path(high), budget)

    def _fill(self, counts: Counts, wanted: NDArray[np.float64], budget: float) -> Counts:
        """Spend what is left, one step at a time, first where the wish is least met."""
        counts = counts.copy()
        groups = np.arange(len(counts))
        while True:
            following = self.more(counts)
            trials = np.tile(counts, (len(counts), 1))
            trials[groups, groups] = following
            fits = (following > counts) & (self.flops(trials) <= budget)
            if not fits.any():
                return counts
            missing = np.where(fits, (wanted - counts) / self.sizes, -np.inf)
            best = int(np.argmax(missing))
            counts[best] = following[best]
