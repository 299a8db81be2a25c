"""Stage two: the genes choose a blending candidate and its calibration factor for every group and cluster.

Importance of filter i in layer l: sum over clusters k of factor[l, k] * normalised score[l, candidate[l, k], i]
(He et al. 2021, arXiv 2107.05033; cluster counts, bounds and normalisers are our choices). A genome decodes individuals
(flat lists of numbers) to masks, always inside the FLOPs budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deap_prune.arguments import Finite, Share, checked
from deap_prune.blending.allocation import ALLOCATIONS
from deap_prune.blending.balance import WidthCurves
from deap_prune.blending.budget import Budget, Limit, MaxFlops, budgets_on
from deap_prune.blending.clusters import CriteriaClusters, Scored
from deap_prune.blending.decoding import Decoding, GeneSpec, Matrix, MinKeep, Planner, RoundTo, genes_of
from deap_prune.errors import BudgetError, ConfigError, RegistryError, did_you_mean
from deap_prune.structure.masks import Masks

if TYPE_CHECKING:
    from deap_prune.structure.space import PruningSpace

Scores = NDArray[np.float64]
Ids = NDArray[np.intp]
CANDIDATES = ("evolved", "medoid")


def _positive(scores: Scores) -> Scores:
    return scores - min(0.0, float(scores.min()))


def _ranks(scores: Scores) -> Scores:
    from scipy.stats import rankdata  # imported on first use, because it is slow to import

    return np.asarray(rankdata(scores), dtype=np.float64)


NORMALISERS: Mapping[str, Callable[[Scores], Scores]] = {
    "max": lambda s: _positive(s) / (_positive(s).max() or 1.0),
    "sum": lambda s: _positive(s) / (_positive(s).sum() or 1.0),
    "standard": lambda s: (s - s.mean()) / (s.std() or 1.0),
    "rank": lambda s: _ranks(s) / len(s),
}


class Genome(Decoding):
    """The genome of blends: layout of an individual, and its decoding to masks.

    Args:
        space: The pruning space.
        scores: Scores of every group.
        clusters: Clusters of the criteria, from the same scores.
        allocation: ``"uniform"``, ``"stage"``, ``"global"``, ``"binary"``, ``"evolved"``, or another registered name.
        max_flops: Kept share of the FLOPs, in (0, 1], or an amount ("150M"). With a pair (lowest, highest), a budget
            gene chooses the share in that range. With None the keep genes determine it, or a budget gene if the
            allocation has no keep genes. A :class:`~deap_prune.blending.budget.Budget` is accepted too.
        max_params: Kept share of the parameters, or an amount ("2M"); None: free.
        max_latency: Kept share of the latency, or an amount ("4 ms"); the space needs a latency table.
        budgets: Budgets of other registered costs.
        normaliser: ``"max"``, ``"sum"``, ``"standard"`` or ``"rank"``, within each group.
        round_to: Kept counts are multiples of this (8 or 16 on hardware that needs it), or dense. ``"auto"``: of each
            group's step in the latency table.
        min_keep: Smallest kept share of a group, in [0, 1]: one number for all groups, or a mapping from names of
            groups or modules to numbers.
        candidates: ``"evolved"``: a gene chooses each cluster's candidate. ``"medoid"``: the candidate is the cluster's
            medoid, and all genes are continuous (as CMA-ES requires).

    Examples:
        >>> genome = dp.Genome(space, scores, clusters, max_flops=0.5)
        >>> masks = genome.decode(genome.single("l2"))
        >>> dp.flops(space, masks) <= 0.5 * space.flops
        True

    Raises:
        BudgetError: If a budget is illegal, or cannot be reached (the message names the minimum).
        RegistryError: If the allocation or the normaliser is unknown.
        ConfigError: If the scores and clusters do not belong to this space, or another option is illegal.
    """

    @checked
    def __init__(
        self,
        space: PruningSpace,
        scores: Scored,
        clusters: CriteriaClusters,
        *,
        allocation: str = "evolved",
        max_flops: MaxFlops | Budget = None,
        max_params: Limit = None,
        max_latency: Limit = None,
        budgets: Sequence[Budget] = (),
        normaliser: str = "max",
        round_to: RoundTo = 1,
        min_keep: MinKeep = 0.0,
        candidates: str = "evolved",
    ) -> None:
        if normaliser not in NORMALISERS:
            raise RegistryError(f"unknown normaliser '{normaliser}'; {did_you_mean(normaliser, NORMALISERS)}")
        if candidates not in CANDIDATES:
            raise ConfigError(f"candidates is {candidates!r}; it is 'evolved' or 'medoid'")
        names = [group.name for group in space.groups]
        if list(scores.scores) != names or list(clusters.groups) != names:
            raise ConfigError("scores, clusters and space belong to different networks; compute them from one space")
        self.allocation = ALLOCATIONS[allocation]
        self.normaliser = normaliser
        self.round_to = round_to
        self.candidates = candidates
        self._members = {name: clusters[name].members for name in names}
        normalise = NORMALISERS[normaliser]
        self._tables = [  # per group and cluster: normalised scores, shape (members, filters)
            [np.stack([normalise(scores.scores[name][c]) for c in members]) for members in self._members[name]]
            for name in names
        ]
        limits: dict[str, MaxFlops | Budget] = {"flops": max_flops, "params": max_params, "latency": max_latency}
        for further in budgets:
            if limits.get(further.cost) is not None:
                raise BudgetError(
                    f"several budgets limit the {further.cost}; give one (max_{further.cost}, or budgets)"
                )
            limits[further.cost] = further
        budget, *others = budgets_on(space, limits)
        planner = Planner(space, self.allocation, budget, round_to, min_keep, tuple(others))
        super().__init__(space, clusters, planner)

    def _gene_specs(self) -> Iterator[GeneSpec]:
        for locus, tables in enumerate(self._tables):
            for table in tables:
                if self._has_candidate_gene(table):
                    yield "candidate", 0, len(table) - 1, locus
                yield "factor", 0.0, 1.0, locus
            if self._has_keep_gene(locus):
                yield "keep", 0.0, 1.0, locus

    def _has_keep_gene(self, group: int) -> bool:
        """Whether a group has a keep gene; of the groups of a stage that widens together, only the first has one."""
        return self.allocation.genes and bool(self._planner.leaders[group] == group)

    def _has_candidate_gene(self, members: Sized) -> bool:
        """Whether a gene chooses the candidate of a cluster; a cluster with one member needs none."""
        return self.candidates == "evolved" and len(members) > 1

    @checked
    def blend(self, individual: Sequence[float]) -> dict[str, dict[str, float]]:
        """The criteria that rank each group's filters, with their weights in the blend, which sum to 1.

        With ``select="sequential"``, the default of searches, refinement selects the filters that a network keeps: the
        blend then gives the widths, and a preference.

        Raises:
            ConfigError: As for :meth:`decode`.
        """
        blends: dict[str, dict[str, float]] = {}
        by_group = self._genes(genes_of([individual], self.layout))
        for group, (candidates, factors, _) in zip(self.space.groups, by_group, strict=True):
            weights = zip(self._members[group.name], candidates, _normalised(factors), strict=True)
            blends[group.name] = {members[c[0]]: float(weight[0]) for members, c, weight in weights}
        return blends

    def _read(self, genes: Matrix) -> tuple[list[Matrix], Matrix]:
        importance, keep_genes = [], np.ones((len(genes), len(self._tables)))
        for number, (candidates, factors, keep) in enumerate(self._genes(genes)):
            scores = [table[c] for table, c in zip(self._tables[number], candidates, strict=True)]
            importance.append(_blended(scores, factors))
            if self.allocation.genes:
                keep_genes[:, number] = keep_genes[:, self._planner.leaders[number]] if keep is None else keep
        return importance, keep_genes

    def _genes(self, genes: Matrix) -> Iterator[tuple[list[Ids], list[Scores], Scores | None]]:
        """For each group: candidates and factors of its clusters, and its keep gene or None, shape (individuals,)."""
        columns = iter(genes.T)
        for number, tables in enumerate(self._tables):
            candidates, factors = list[Ids](), list[Scores]()
            for table in tables:
                candidate = next(columns) if self._has_candidate_gene(table) else np.zeros(len(genes))
                candidates.append(np.rint(candidate).astype(np.intp))
                factors.append(next(columns))
            yield candidates, factors, next(columns) if self._has_keep_gene(number) else None

    @checked
    def single(self, criterion: str, *, share: Share = 1.0) -> list[float]:
        """The individual that ranks by one criterion alone (by a group's first medoid where it does not apply).

        Args:
            criterion: Registry name.
            share: Value of the keep genes and of the budget gene, a kept share of filters and of FLOPs.

        Raises:
            RegistryError: If the criterion scored no group.
        """
        return self._single(criterion, [share] * len(self._tables), share)

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criteria that score at least one group."""
        return tuple(dict.fromkeys(c for group in self.clusters.groups.values() for c in group.criteria))

    def _single(self, criterion: str, shares: Sequence[float], budget: float) -> list[float]:
        """The individual of one criterion, with a keep gene for each group and a value for the budget gene."""
        if criterion not in self.criteria:
            raise RegistryError(f"criterion '{criterion}' was not scored; {did_you_mean(criterion, self.criteria)}")
        genes: list[float] = []
        for number, (group, share) in enumerate(zip(self.space.groups, shares, strict=True)):
            clusters = self._members[group.name]
            chosen = next((k for k, members in enumerate(clusters) if criterion in members), 0)
            for k, members in enumerate(clusters):
                if self._has_candidate_gene(members):
                    genes.append(members.index(criterion) if criterion in members else 0)
                genes.append(float(k == chosen))
            if self._has_keep_gene(number):
                genes.append(share)
        return [*genes, *self._budget_genes(budget)]

    @checked
    def affine(
        self, criterion: str, scales: Sequence[Finite], shifts: Sequence[Finite], *, share: Share = 0.5
    ) -> list[float]:
        """The individual with the widths of LeGR's global ranking: one threshold on scale * score + shift.

        Chin et al. 2020, "Towards efficient model compression via learned global ranking" (arXiv 1904.12368).

        Args:
            criterion: Registry name; it ranks the filters.
            scales: One per group.
            shifts: One per group, in standard deviations of the group's normalised scores.
            share: Kept share of the FLOPs that sets the threshold; ignored if the budget is fixed.

        Raises:
            ConfigError: If the allocation has no keep genes for the widths.
            RegistryError: If the criterion scored no group.
        """
        self._check_keep_genes()
        if not len(scales) == len(shifts) == len(self.space.groups):
            raise ConfigError(
                f"{len(scales)} scales and {len(shifts)} shifts; give one of each for {len(self.space.groups)} groups"
            )
        planner = replace(self._planner, allocation=ALLOCATIONS["global"], budget=Budget(highest=1.0), others=())
        share = min(1.0, max(self.budget.flops_or(share), self.min_flops))
        importance = []
        for group, tables, scale, shift in zip(self.space.groups, self._tables, scales, shifts, strict=True):
            clusters = self._members[group.name]
            k, i = next(((k, m.index(criterion)) for k, m in enumerate(clusters) if criterion in m), (0, 0))
            importance.append((scale * tables[k][i] + shift * tables[k][i].std())[None])
        counts = planner.counts(importance, np.ones((1, len(importance))), np.array([share]))[0]
        return self._single(criterion, self._stage_means(counts / self.space.sizes), share)

    @checked
    def width_curves(
        self, criterion: str, error: Callable[[Masks], float], *, anchor: Callable[[Masks], float] | None = None
    ) -> WidthCurves:
        """The error of the network by the width of each group, for filters ranked by a criterion.

        Args:
            criterion: Registry name; it ranks the filters.
            error: Function of masks, smaller is better, such as ``evaluator.surrogate``. It is called 15 times per
                group.
            anchor: Function of masks that makes the groups comparable, such as ``evaluator.output_distance``; called
                once per group. For networks that are refined: the layers after a group make up for much of its error.

        Raises:
            ConfigError: If the allocation has no keep genes for the widths.
            RegistryError: If the criterion scored no group.
        """
        self._check_keep_genes()
        importance, _ = self._read(genes_of([self.single(criterion)], self.layout))
        return WidthCurves.of(self._planner, importance, error, anchor=anchor)

    @checked
    def balanced(self, criterion: str, curves: WidthCurves, *, share: Share = 0.5) -> list[float]:
        """The individual that ranks by one criterion, with widths that balance the groups' errors per FLOP.

        Args:
            criterion: Registry name; it ranks the filters.
            curves: From :meth:`width_curves`.
            share: Kept share of the FLOPs; ignored if the budget of the FLOPs is fixed.

        Raises:
            ConfigError: If the allocation has no keep genes for the widths.
            RegistryError: If the criterion scored no group.
        """
        self._check_keep_genes()
        share = self.budget.flops_or(share)
        return self._single(criterion, self._stage_means(np.array(curves.shares(share))), share)

    def _check_keep_genes(self) -> None:
        if not self.allocation.genes:
            raise ConfigError(f"allocation '{self.allocation.name}' has no keep genes; choose 'evolved'")

    def _stage_means(self, shares: Matrix) -> list[float]:
        """The mean share over the groups that use one keep gene, for each group; ``shares`` has shape (groups,)."""
        leaders = self._planner.leaders
        return [float(shares[leaders == leader].mean()) for leader in leaders]


def _blended(scores: Sequence[Matrix], factors: Sequence[Scores]) -> Matrix:
    """Sum over clusters of factor * score, shape (individuals, filters); factors are scaled to sum to 1.

    The clusters are added one by one, so an individual's importance does not depend on how many are decoded together.

    Args:
        scores: Scores of each cluster's candidate, shape (individuals, filters) each.
        factors: Factors of each cluster, shape (individuals,) each.
    """
    blend = np.zeros_like(scores[0])
    for score, weight in zip(scores, _normalised(factors), strict=True):
        blend += weight[:, None] * score
    return blend


def _normalised(factors: Sequence[Scores]) -> list[Scores]:
    """Factors scaled to sum to 1 in each individual; equal factors if all are 0."""
    total = sum(factors[1:], factors[0])
    all_zero = total <= 0
    return [np.where(all_zero, 1 / len(factors), factor / np.where(all_zero, 1.0, total)) for factor in factors]
