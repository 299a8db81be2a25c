"""Stage two: an individual names, for every group and cluster, a blending candidate and its calibration factor.

Importance of filter i in layer l: sum over clusters k of factor[l, k] * normalised score[l, candidate[l, k], i]
(He et al. 2021, arXiv 2107.05033; counts, bounds and normalisers are our choices). A genome decodes individuals (flat
lists of numbers) to masks, always inside the FLOPs budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deap_prune.blending.allocation import ALLOCATIONS
from deap_prune.blending.balance import WidthCurves
from deap_prune.blending.clusters import CriteriaClusters, Scored
from deap_prune.blending.decoding import Decoding, GeneSpec, Matrix, MaxFlops, MinKeep, Planner, genes_of
from deap_prune.errors import ConfigError, RegistryError, did_you_mean
from deap_prune.structure.masks import Masks

if TYPE_CHECKING:
    from deap_prune.structure.space import PruningSpace

Scores = NDArray[np.float64]
Ids = NDArray[np.intp]
CANDIDATES = ("evolved", "medoid")


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


class Genome(Decoding):
    """Layout of an individual, and the way from an individual to masks.

    Args:
        space: What can be pruned.
        scores: Scores of every group.
        clusters: Clusters of the criteria, from the same scores.
        allocation: ``"uniform"``, ``"stage"``, ``"global"``, ``"binary"``, ``"evolved"``, or another registered name.
        max_flops: Kept share of the FLOPs, above 0 and up to 1. A pair (lowest, highest): a gene decides in that range.
            None leaves it free: the keep genes decide, or a budget gene where the allocation has none.
        normaliser: ``"max"``, ``"sum"``, ``"standard"`` or ``"rank"``, within each group.
        round_to: Kept counts are multiples of this (8 or 16 for hardware that wants it), or dense.
        min_keep: The least share that a group keeps: a number for all, or group (or module) names to numbers.
        candidates: ``"evolved"``: a gene names each cluster's candidate; ``"medoid"``: it is the cluster's medoid, and
            all genes are continuous (what CMA-ES needs).

    Examples:
        >>> genome = dp.Genome(space, scores, clusters, max_flops=0.5)
        >>> masks = genome.decode(genome.single("l2"))
        >>> dp.flops(space, masks) <= 0.5 * space.flops
        True

    Raises:
        BudgetError: If the budget is outside (0, 1], or below what can be reached (the message names the minimum).
        RegistryError: If the allocation or the normaliser is unknown.
        ConfigError: If the scores and clusters are not of this space, or another option is illegal.
    """

    def __init__(
        self,
        space: PruningSpace,
        scores: Scored,
        clusters: CriteriaClusters,
        *,
        allocation: str = "evolved",
        max_flops: MaxFlops = None,
        normaliser: str = "max",
        round_to: int = 1,
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
        planner = Planner(space, self.allocation, max_flops, round_to, min_keep)
        super().__init__(space, clusters, planner)

    def _gene_specs(self) -> Iterator[GeneSpec]:
        for locus, tables in enumerate(self._tables):
            for table in tables:
                if self._chooses(table):
                    yield "candidate", 0, len(table) - 1, locus
                yield "factor", 0.0, 1.0, locus
            if self._keeps(locus):
                yield "keep", 0.0, 1.0, locus

    def _keeps(self, group: int) -> bool:
        """Whether a group has a keep gene of its own; in a stage that widens together the first has it."""
        return self.allocation.genes and bool(self._planner.leaders[group] == group)

    def _chooses(self, members: Sized) -> bool:
        """Whether a gene names the candidate of a cluster; of one member there is nothing to choose."""
        return self.candidates == "evolved" and len(members) > 1

    def blend(self, individual: Sequence[float]) -> dict[str, dict[str, float]]:
        """Which criteria rank each group's filters, and how much each counts: shares that sum to 1.

        Raises:
            ConfigError: As :meth:`decode`.
        """
        read, found = self._genes(genes_of([individual], self.layout)), dict[str, dict[str, float]]()
        for group, (candidates, factors, _) in zip(self.space.groups, read, strict=True):
            shares = zip(self._members[group.name], candidates, _shares(factors), strict=True)
            found[group.name] = {members[c[0]]: float(share[0]) for members, c, share in shares}
        return found

    def _read(self, genes: Matrix) -> tuple[list[Matrix], Matrix]:
        """Blended scores and keep genes of every group, of several individuals."""
        importance, keeps = [], np.ones((len(genes), len(self._tables)))
        for number, (candidates, factors, keep) in enumerate(self._genes(genes)):
            chosen = [table[c] for table, c in zip(self._tables[number], candidates, strict=True)]
            importance.append(_blended(chosen, factors))
            if self.allocation.genes:
                keeps[:, number] = keeps[:, self._planner.leaders[number]] if keep is None else keep
        return importance, keeps

    def _genes(self, genes: Matrix) -> Iterator[tuple[list[Ids], list[Scores], Scores | None]]:
        """For each group the candidates and factors of its clusters, and its keep gene if it has one."""
        columns = iter(genes.T)
        for number, tables in enumerate(self._tables):
            candidates, factors = list[Ids](), list[Scores]()
            for table in tables:
                candidate = next(columns) if self._chooses(table) else np.zeros(len(genes))
                candidates.append(np.rint(candidate).astype(np.intp))
                factors.append(next(columns))
            yield candidates, factors, next(columns) if self._keeps(number) else None

    def single(self, criterion: str, *, share: float = 1.0) -> list[float]:
        """The individual that ranks by one criterion alone (the group's first medoid where it does not apply).

        Args:
            criterion: Its name.
            share: Value of the keep genes; of the budget gene, the kept share of the FLOPs.

        Raises:
            RegistryError: If no group was scored by the criterion.
        """
        return self._single(criterion, [share] * len(self._tables), share)

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criteria that score any group."""
        return tuple(dict.fromkeys(c for group in self.clusters.groups.values() for c in group.criteria))

    def _single(self, criterion: str, shares: Sequence[float], budget: float) -> list[float]:
        if criterion not in self.criteria:
            raise RegistryError(f"criterion '{criterion}' was not scored; {did_you_mean(criterion, self.criteria)}")
        genes: list[float] = []
        for number, (group, share) in enumerate(zip(self.space.groups, shares, strict=True)):
            clusters = self._members[group.name]
            home = next((k for k, members in enumerate(clusters) if criterion in members), 0)
            for k, members in enumerate(clusters):
                if self._chooses(members):
                    genes.append(members.index(criterion) if criterion in members else 0)
                genes.append(float(k == home))
            if self._keeps(number):
                genes.append(share)
        return [*genes, *self._budget(budget)]

    def affine(
        self, criterion: str, scales: Sequence[float], shifts: Sequence[float], *, share: float = 0.5
    ) -> list[float]:
        """The individual with the widths of LeGR's global ranking: by scale * score + shift, one threshold for all.

        Chin et al. 2020, "Towards efficient model compression via learned global ranking" (arXiv 1904.12368).

        Args:
            criterion: Ranks the filters.
            scales: One a group.
            shifts: One a group, in standard deviations of the group's normalised scores.
            share: Kept share of the FLOPs at which the threshold stands; a fixed ``max_flops`` has precedence.

        Raises:
            ConfigError: If the allocation has no keep genes to hold the widths.
            RegistryError: If no group was scored by the criterion.
        """
        self._check_keeps()
        planner = replace(self._planner, allocation=ALLOCATIONS["global"], max_flops=1.0)
        if isinstance(self.max_flops, (int, float)):
            share = self.max_flops
        share = min(1.0, max(share, self.min_flops))
        importance = []
        for group, tables, scale, shift in zip(self.space.groups, self._tables, scales, shifts, strict=True):
            clusters = self._members[group.name]
            k, i = next(((k, m.index(criterion)) for k, m in enumerate(clusters) if criterion in m), (0, 0))
            importance.append((scale * tables[k][i] + shift * tables[k][i].std())[None])
        counts = planner.counts(importance, np.ones((1, len(importance))), np.array([share]))[0]
        return self._single(criterion, self._led(counts / self.space.sizes), share)

    def width_curves(self, criterion: str, error: Callable[[Masks], float]) -> WidthCurves:
        """How wide each group should be at a budget, for filters ranked by a criterion.

        Args:
            criterion: Ranks the filters.
            error: Of masks, smaller is better; ``evaluator.surrogate``, say. It is asked eight times a group.

        Raises:
            ConfigError: If the allocation has no keep genes to hold the widths.
            RegistryError: If no group was scored by the criterion.
        """
        self._check_keeps()
        importance, _ = self._read(genes_of([self.single(criterion)], self.layout))
        return WidthCurves.of(self._planner, importance, error)

    def balanced(self, criterion: str, curves: WidthCurves, *, share: float = 0.5) -> list[float]:
        """The individual that ranks by one criterion, with widths at which no group loses more than another by FLOPs.

        Args:
            criterion: Ranks the filters.
            curves: Of :meth:`width_curves`.
            share: Kept share of the FLOPs; a fixed ``max_flops`` has precedence.

        Raises:
            ConfigError: If the allocation has no keep genes to hold the widths.
            RegistryError: If no group was scored by the criterion.
        """
        self._check_keeps()
        if isinstance(self.max_flops, (int, float)):
            share = self.max_flops
        return self._single(criterion, self._led(np.array(curves.shares(share))), share)

    def _check_keeps(self) -> None:
        if not self.allocation.genes:
            raise ConfigError(f"allocation '{self.allocation.name}' has no keep genes; choose 'evolved'")

    def _led(self, shares: Matrix) -> list[float]:
        """One share a group; the groups of a stage that widens together get their mean."""
        leaders = self._planner.leaders
        return [float(shares[leaders == leader].mean()) for leader in leaders]


def _blended(scores: Sequence[Matrix], factors: Sequence[Scores]) -> Matrix:
    """sum_k factor_k * score_k, with factors scaled to sum to 1 (they count only up to scale).

    Summed one by one, so that an individual's importance does not depend on how many are decoded together.

    Args:
        scores: Of each cluster's candidate, shape (individuals, filters).
        factors: Of each cluster, shape (individuals,).
    """
    blend = np.zeros_like(scores[0])
    for score, share in zip(scores, _shares(factors), strict=True):
        blend += share[:, None] * score
    return blend


def _shares(factors: Sequence[Scores]) -> list[Scores]:
    """Factors scaled to sum to 1 in each individual; equal ones where all are 0."""
    total = sum(factors[1:], factors[0])
    silent = total <= 0
    return [np.where(silent, 1 / len(factors), factor / np.where(silent, 1.0, total)) for factor in factors]
