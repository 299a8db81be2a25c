"""FLOPs, parameters and activations of a pruned network in closed form, without running the network.

FLOPs and parameters are sums of products of two widths. A width is a sum over the groups that feed it. So both are
polynomials in the numbers of filters that the groups keep. Peak activations are a maximum of affine functions of them.
One multiply-add is one flop (fvcore's convention), counted in eval mode for one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Term = tuple[float, NDArray[np.intp] | None, NDArray[np.intp] | None]


@dataclass(frozen=True, eq=False, repr=False)
class CostPolynomial:
    """``constant + sum_t coefficient_t * width_1t * width_2t``, with widths that are affine in the kept counts.

    Attributes:
        constant: Cost that does not depend on the kept filters.
        coefficients: Cost per product of widths, shape (terms,).
        fixed: Dense channels in each of the two widths, shape (2, terms).
        slopes: Channels that one kept filter of a group adds to a width, shape (2, terms, groups).
    """

    constant: float
    coefficients: NDArray[np.float64]
    fixed: NDArray[np.float64]
    slopes: NDArray[np.float64]

    def __repr__(self) -> str:
        terms, groups = self.slopes.shape[1:]
        return f"CostPolynomial({terms} terms, {groups} groups)"

    def __call__(self, kept: ArrayLike) -> NDArray[np.int64]:
        """Cost for kept counts of shape (..., groups), as integers of shape (...)."""
        counts = np.asarray(kept, dtype=np.float64)
        first, second = (fixed + counts @ slopes.T for fixed, slopes in zip(self.fixed, self.slopes, strict=True))
        return np.rint(self.constant + (first * second) @ self.coefficients).astype(np.int64)

    def widened(self, kept: ArrayLike, wider: ArrayLike) -> NDArray[np.int64]:
        """Costs with one group at a time at its wider count; both counts have shape (..., groups).

        The last axis of the result is the wider group. Equal to one call per group, from a single matrix product.
        """
        counts = np.asarray(kept, dtype=np.float64)
        step = np.asarray(wider, dtype=np.float64) - counts
        a, b = self.slopes
        first, second = (fixed + counts @ slopes.T for fixed, slopes in zip(self.fixed, self.slopes, strict=True))
        now = self.constant + (first * second) @ self.coefficients
        slope = (first * self.coefficients) @ b + (second * self.coefficients) @ a
        return np.rint(now[..., None] + step * slope + step**2 * (self.coefficients @ (a * b))).astype(np.int64)

    def variable(self, kept: ArrayLike) -> int:
        """Cost of the terms with a width that can shrink, for kept counts of shape (groups,)."""
        moving = self.slopes.any(axis=(0, 2))
        part = CostPolynomial(0.0, self.coefficients[moving], self.fixed[:, moving], self.slopes[:, moving])
        return int(part(kept))

    def by_group(self, kept: ArrayLike) -> NDArray[np.float64]:
        """Cost of the terms that depend on each group, for kept counts of shape (..., groups); shape (..., groups).

        A term of two groups (a layer that reads one and writes the other) counts for both.
        """
        counts = np.asarray(kept, dtype=np.float64)
        first, second = (fixed + counts @ slopes.T for fixed, slopes in zip(self.fixed, self.slopes, strict=True))
        return np.asarray((first * second * self.coefficients) @ self.slopes.any(axis=0))

    @classmethod
    def build(
        cls, terms: Sequence[Term], group_of: NDArray[np.intp], sizes: Sequence[int], constant: float = 0.0
    ) -> CostPolynomial:
        """The polynomial of a list of terms.

        Args:
            terms: (coefficient, channel ids, channel ids); the ids index ``group_of``, id -1 is a dense channel, and
                None stands for a factor of 1.
            group_of: Group of each channel, shape (channels + 1,), with -1 (dense) at the end.
            sizes: Channels of each group.
            constant: Constant of the polynomial.
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


@dataclass(frozen=True, eq=False)
class Activations:
    """Bytes of the activations of one sample, as functions of the kept counts.

    Attributes:
        fixed: Bytes that do not depend on the kept filters, shape (buffers,).
        slopes: Bytes that one kept filter of a group adds, shape (buffers, groups).
        spans: First and last step that uses the buffer, shape (buffers, 2).
        writes: How many operators between the layers write the buffer, shape (buffers,).
    """

    fixed: NDArray[np.float64]
    slopes: NDArray[np.float64]
    spans: NDArray[np.int64]
    writes: NDArray[np.int64]

    def peak(self, kept: ArrayLike) -> NDArray[np.float64]:
        """Most bytes that are in use at one step, for kept counts of shape (..., groups); shape (...)."""
        fixed, slopes = self._steps
        return np.asarray((fixed + np.asarray(kept, dtype=np.float64) @ slopes.T).max(axis=-1))

    def written(self, kept: ArrayLike) -> NDArray[np.float64]:
        """Bytes that the operators between the layers write, for kept counts of shape (..., groups); shape (...)."""
        fixed, slopes = self._written
        return np.asarray(fixed + np.asarray(kept, dtype=np.float64) @ slopes)

    @cached_property
    def _steps(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bytes in use at each step at which a buffer begins: fixed (steps,), and slopes (steps, groups)."""
        first, last = self.spans.T
        steps = np.unique(first)
        used = ((first <= steps[:, None]) & (steps[:, None] <= last)).astype(np.float64)
        rows = np.unique(np.column_stack([used @ self.fixed, used @ self.slopes]), axis=0)
        return rows[:, 0], rows[:, 1:]

    @cached_property
    def _written(self) -> tuple[float, NDArray[np.float64]]:
        return float(self.writes @ self.fixed), np.asarray(self.writes @ self.slopes, dtype=np.float64)


class LatencyModel(Protocol):
    """Predicted latency of a pruned network; :mod:`deap_prune.costs.latency` makes one from a table."""

    @property
    def steps(self) -> NDArray[np.int64]:
        """Width step of each group that the device likes, shape (groups,)."""

    def __call__(self, kept: ArrayLike) -> NDArray[np.float64]:
        """Milliseconds for kept counts of shape (..., groups), whole or not; shape (...)."""
