"""FLOPs and parameters of a pruned network in closed form: exact, and without the network.

A cost is a sum of products of two widths, and a width is a sum over the groups that feed it, so both counts are
polynomials in the number of filters that each group keeps. One multiply-add is one flop (fvcore's convention), counted
in eval mode for one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Term = tuple[float, NDArray[np.intp] | None, NDArray[np.intp] | None]


@dataclass(frozen=True, eq=False)
class CostPolynomial:
    """``constant + sum_t coefficient_t * width_t * other_t``, each width affine in the kept counts.

    Attributes:
        constant: What does not depend on the kept filters.
        coefficients: Shape (terms,).
        fixed: Dense channels in each of the two widths, shape (2, terms).
        slopes: Positions that one kept filter of a group adds to a width, shape (2, terms, groups).
    """

    constant: float
    coefficients: NDArray[np.float64]
    fixed: NDArray[np.float64]
    slopes: NDArray[np.float64]

    def __call__(self, kept: ArrayLike) -> NDArray[np.int64]:
        """The cost for kept counts of shape (..., groups), as whole numbers of shape (...)."""
        counts = np.asarray(kept, dtype=np.float64)
        first, second = (fixed + counts @ slopes.T for fixed, slopes in zip(self.fixed, self.slopes, strict=True))
        return np.rint(self.constant + (first * second) @ self.coefficients).astype(np.int64)

    def widened(self, kept: ArrayLike, wider: ArrayLike) -> NDArray[np.int64]:
        """The costs with each group alone at its wider count, from kept and wider counts of shape (..., groups).

        Last axis of the result: the group that is wider. The same numbers as a call for each group, from one product.
        """
        counts = np.asarray(kept, dtype=np.float64)
        step = np.asarray(wider, dtype=np.float64) - counts
        a, b = self.slopes
        first, second = (fixed + counts @ slopes.T for fixed, slopes in zip(self.fixed, self.slopes, strict=True))
        now = self.constant + (first * second) @ self.coefficients
        slope = (first * self.coefficients) @ b + (second * self.coefficients) @ a
        return np.rint(now[..., None] + step * slope + step**2 * (self.coefficients @ (a * b))).astype(np.int64)

    def variable(self, kept: ArrayLike) -> int:
        """The part of the cost that is in terms with a width that can shrink, for kept counts of shape (groups,)."""
        moving = self.slopes.any(axis=(0, 2))
        part = CostPolynomial(0.0, self.coefficients[moving], self.fixed[:, moving], self.slopes[:, moving])
        return int(part(kept))

    @classmethod
    def build(
        cls, terms: Sequence[Term], group_of: NDArray[np.intp], sizes: Sequence[int], constant: float = 0.0
    ) -> CostPolynomial:
        """From terms (coefficient, channel ids, channel ids); None stands for a factor of 1.

        Args:
            terms: The ids index ``group_of``; id -1 is a dense channel.
            group_of: Group of each channel, shape (channels + 1,), the last one -1 (dense).
            sizes: Channels of each group.
            constant: Added to the sum.
        """
        n = len(sizes)
        fixed = np.zeros((2, len(terms)))
        slopes = np.zeros((2, len(terms), n))
        for t, (_, *factors) in enumerate(terms):
            for k, ids in enumerate(factors):
                if ids is None:
                    fixed[k, t] = 1
                    continue
                counts = np.bincount(group_of[ids] + 1, minlength=n + 1)
                fixed[k, t] = counts[0]
                slopes[k, t] = counts[1:] / np.maximum(np.asarray(sizes), 1)
        return cls(constant, np.array([t[0] for t in terms], dtype=np.float64), fixed, slopes)
