"""Stage two: an individual names, for every group and cluster, a blending candidate and its calibration factor.

Importance of filter i in layer l: sum over clusters k of factor[l, k] * normalised score[l, candidate[l, k], i]
(He et al. 2021, arXiv 2107.05033; counts, bounds and normalisers are our choices). A genome decodes individuals (flat
lists of numbers) to masks, always inside the FLOPs budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deap_prune.blending.allocation import ALLOCATIONS, Counts, Widths, Wish
from deap_prune.blending.clusters import CriteriaClusters, Scored
from deap_prune.errors import BudgetError, ConfigError, RegistryError, did_you_mean
from deap_prune.structure.masks import Masks

if TYPE_CHECKING:
    from deap_prune.structure.space import PruningSpace

Scores = NDArray[np.float64]


def _positive(scores: Scores) -> Scores:
    return scores - min(0.0, float(scores.min()))


def _ranks(scores: Scores) -> Scores:
    from scipy.stats import rankdata  # slow to import: when first used

    return np.asarray(rankdata(scores), dtype=np.float64)


NORMALISERS: Mapping[str, Callable[[Scores], Scores]] = {
    "max": lambda s: _positive(s) / (_positive(s).max() or 1.0),
    "sum": lambda s: _positive(s) / (_positive(s).sum() or 1.0),
    "standard": lambda s: (s - s.mean()) / (s.std() or 1.0),
    "rank": lambda s: _ranks(s) / len(s),
}


@dataclass(frozen=True)
class Layout:
    """The genes of an individual, in order; all that operators need to know.

    Attributes:
        kinds: ``"candidate"`` (index into a cluster), ``"factor"``, ``"keep"`` (share of a group) or ``"budget"``
            (share of the FLOPs) for each gene.
        low: Lower bounds.
        high: Upper bounds (inclusive); a candidate gene is a whole number.
        loci: Genes of one filter group belong together: the group's number, -1 for the budget gene.
    """

    kinds: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    loci: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.kinds)

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of the genes of every locus."""
        starts = [i for i, locus in enumerate(self.loci) if i == 0 or self.loci[i - 1] != locus]
        return tuple(zip(starts, [*starts[1:], len(self.loci)], strict=True))


class Genome:
    """Layout of an individual, and the way from an individual to masks.

    Args:
        space: What can be pruned.
        scores: Scores of every group.
        clusters: Clusters of the criteria, from the same scores.
        allocation: ``"uniform"``, ``"global"``, ``"evolved"``, or another registered name.
        max_flops: Kept share of the FLOPs, above 0 and up to 1; None leaves it free (a gene decides, for a front).
        normaliser: ``"max"``, ``"sum"``, ``"standard"`` or ``"rank"``, within each group.
        round_to: Kept counts are multiples of this (8 or 16 for hardware that wants it), or dense.

    Raises:
        BudgetError: If the budget is outside (0, 1], or below what can be reached (the message names the minimum).
        RegistryError: If the allocation or the normaliser is unknown.
        ConfigError: If the scores and clusters are not of this space.
    """

    def __init__(
        self,
        space: PruningSpace,
        scores: Scored,
        clusters: CriteriaClusters,
        *,
        allocation: str = "evolved",
        max_flops: float | None = None,
        normaliser: str = "max",
        round_to: int = 1,
    ) -> None:
        if normaliser not in NORMALISERS:
            raise RegistryError(f"unknown normaliser '{normaliser}'; {did_you_mean(normaliser, NORMALISERS)}")
        if not isinstance(round_to, int) or round_to < 1:
            raise ConfigError(f"round_to is {round_to!r}; give a whole number from 1 up")
        names = [group.name for group in space.groups]
        if list(scores.scores) != names or list(clusters.groups) != names:
            raise ConfigError("scores, clusters and space belong to different networks; compute them from one space")
        self.space = space
        self.clusters = clusters
        self.allocation = ALLOCATIONS[allocation]
        self.max_flops = max_flops
        self.normaliser = normaliser
        self.round_to = round_to
        steps = [min(math.lcm(round_to, group.blocks), group.size) for group in space.groups]
        self._widths = Widths(space.sizes, np.array(steps, dtype=np.int64), space.flops_of)
        self.min_flops = float(space.flops_of(self._widths.fewest)) / space.flops
        check_budget(max_flops, self.min_flops)
        normalise = NORMALISERS[normaliser]
        self._scores = {g: {c: normalise(s) for c, s in by.items()} for g, by in scores.scores.items()}
        self._members = {name: clusters[name].members for name in names}
        self.layout = self._make_layout()

    def _make_layout(self) -> Layout:
        genes: list[tuple[str, float, float, int]] = []
        for locus, group in enumerate(self.space.groups):
            for members in self._members[group.name]:
                genes += [("candidate", 0, len(members) - 1, locus), ("factor", 0.0, 1.0, locus)]
            if self.allocation.genes:
                genes.append(("keep", 0.0, 1.0, locus))
        if self._has_budget_gene:
            genes.append(("budget", self.min_flops, 1.0, -1))
        kinds, low, high, loci = zip(*genes, strict=True)
        return Layout(kinds, low, high, loci)

    @property
    def _has_budget_gene(self) -> bool:
        return self.max_flops is None and not self.allocation.genes

    def decode(self, individual: Sequence[float]) -> Masks:
        """The masks that an individual stands for.

        Genes outside their bounds are clipped, candidates rounded, so that any operator's result is legal.

        Raises:
            ConfigError: If the individual has another length than the layout, or holds NaN.
        """
        genes = self._genes(individual)
        importance, shares = self._read(genes)
        budget = float(genes[-1]) if self._has_budget_gene else self.max_flops
        return self._keep_best(importance, self._count(importance, shares, budget))

    def importance(self, individual: Sequence[float]) -> dict[str, Scores]:
        """The blended scores of every group, shape (filters,), that an individual stands for; larger = keep.

        Raises:
            ConfigError: As :meth:`decode`.
        """
        blended, _ = self._read(self._genes(individual))
        return {group.name: scores for group, scores in zip(self.space.groups, blended, strict=True)}

    def _genes(self, individual: Sequence[float]) -> NDArray[np.float64]:
        """The genes inside their bounds."""
        if len(individual) != len(self.layout):
            raise ConfigError(f"the individual has {len(individual)} genes; this genome has {len(self.layout)}")
        try:
            genes = np.asarray(individual, dtype=np.float64)
        except (TypeError, ValueError) as error:  # DEAP's mutPolynomialBounded makes complex numbers outside bounds
            wrong = next((i for i, g in enumerate(individual) if not isinstance(g, (int, float))), 0)
            raise ConfigError(f"gene {wrong} of the individual is {individual[wrong]!r}; genes are numbers") from error
        if np.isnan(genes).any():
            raise ConfigError(f"gene {int(np.isnan(genes).argmax())} of the individual is NaN")
        return np.asarray(np.clip(genes, self.layout.low, self.layout.high))

    def _read(self, genes: NDArray[np.float64]) -> tuple[tuple[Scores, ...], NDArray[np.float64]]:
        """Blended scores and keep genes of every group."""
        importance, shares, place = [], np.ones(len(self.space.groups)), 0
        for number, group in enumerate(self.space.groups):
            clusters = self._members[group.name]
            pairs = genes[place : place + 2 * len(clusters)].reshape(-1, 2)
            importance.append(self._blend(group.name, pairs))
            place += 2 * len(clusters)
            if self.allocation.genes:
                shares[number] = genes[place]
                place += 1
        return tuple(importance), shares

    def _blend(self, name: str, pairs: NDArray[np.float64]) -> Scores:
        """sum_k factor_k * score_k, with factors scaled to sum to 1 (they count only up to scale)."""
        factors = pairs[:, 1] if pairs[:, 1].sum() > 0 else np.ones(len(pairs))
        blend = np.zeros(len(next(iter(self._scores[name].values()))))
        for members, candidate, factor in zip(self._members[name], pairs[:, 0], factors / factors.sum(), strict=True):
            blend += factor * self._scores[name][members[round(candidate)]]
        return blend

    def _count(self, importance: tuple[Scores, ...], shares: NDArray[np.float64], budget: float | None) -> Counts:
        if budget is None:  # the keep genes decide alone
            return self._widths.admissible(self.space.sizes * shares)
        path = self.allocation.path(Wish(self.space.sizes, importance, shares))
        return self._widths.fit(path, budget * self.space.flops)

    def _keep_best(self, importance: tuple[Scores, ...], counts: Counts) -> Masks:
        keep = {}
        for group, scores, count in zip(self.space.groups, importance, counts, strict=True):
            blocks = scores.reshape(group.blocks, -1)
            rank = np.argsort(np.argsort(-blocks, axis=1, kind="stable"), axis=1)
            keep[group.name] = (rank < count // group.blocks).reshape(-1)
        return Masks(keep)

    def single(self, criterion: str, *, share: float = 1.0) -> list[float]:
        """The individual that ranks by one criterion alone (the group's first medoid where it does not apply).

        Args:
            criterion: Its name.
            share: Value of the keep genes; of the budget gene, the kept share of the FLOPs.

        Raises:
            RegistryError: If no group was scored by the criterion.
        """
        known = {c for group in self.clusters.groups.values() for c in group.criteria}
        if criterion not in known:
            raise RegistryError(f"criterion '{criterion}' was not scored; {did_you_mean(criterion, known)}")
        genes: list[float] = []
        for group in self.space.groups:
            clusters = self._members[group.name]
            home = next((k for k, members in enumerate(clusters) if criterion in members), 0)
            for k, members in enumerate(clusters):
                candidate = members.index(criterion) if criterion in members else 0
                genes += [candidate, float(k == home)]
            if self.allocation.genes:
                genes.append(share)
        if self._has_budget_gene:
            genes.append(min(1.0, max(self.min_flops, share)))
        return genes


def check_budget(max_flops: float | None, reachable: float) -> None:
    """A budget is a kept share of the FLOPs.

    Raises:
        BudgetError: If it is not in (0, 1], or below the reachable minimum.
    """
    if max_flops is None:
        return
    if not isinstance(max_flops, (int, float)) or not 0 < max_flops <= 1:
        raise BudgetError(
            f"max_flops is {max_flops!r}; it is the kept share of the FLOPs, above 0 and at most 1 (0.5 keeps half), "
            "or None to leave it free"
        )
    if max_flops < reachable:
        least = math.ceil(reachable * 1e4) / 1e4
        raise BudgetError(
            f"max_flops is {max_flops:g}, but one filter a group (or block) and what stays dense already cost "
            f"{least:.4f} of the FLOPs: that is the reachable minimum; raise max_flops to {least:.4f} or above"
        )
