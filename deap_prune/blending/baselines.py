"""Genomes to compare blends with: the mean rank of all criteria (Borda), and LeGR's affine transformation of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import e
from typing import TYPE_CHECKING, Any

import numpy as np

from deap_prune.arguments import checked
from deap_prune.blending.allocation import ALLOCATIONS
from deap_prune.blending.budget import Budget, Limit, MaxFlops, budgets_on
from deap_prune.blending.clusters import CriteriaClusters, Scored, Scores, cluster
from deap_prune.blending.decoding import Decoding, GeneSpec, Matrix, MinKeep, Planner, RoundTo
from deap_prune.blending.genome import NORMALISERS, Genome
from deap_prune.errors import RegistryError, did_you_mean

if TYPE_CHECKING:
    from deap_prune.structure.space import PruningSpace


@dataclass(frozen=True, eq=False)
class Table:
    """Scores of every group: group -> criterion -> scores, shape (filters,)."""

    scores: Mapping[str, Mapping[str, Scores]]


def borda(space: PruningSpace, scores: Scored, clusters: CriteriaClusters, **options: object) -> Genome:
    """The genome of one criterion, ``"borda"``: the mean rank of a filter over all criteria that apply to its group.

    Args:
        space: The pruning space.
        scores: Scores of every group.
        clusters: Ignored; present because ``Genome`` takes it.
        **options: Options of ``Genome``.
    """
    rank = NORMALISERS["rank"]
    table = Table({g: {"borda": np.mean([rank(s) for s in by.values()], axis=0)} for g, by in scores.scores.items()})
    return Genome(space, table, cluster(table, n_clusters=1), **options)  # type: ignore[arg-type]


class AffineGenome(Decoding):
    """LeGR's genome: one criterion, a scale and a shift per group, and one threshold for all groups.

    Importance = scale * score + shift. Chin et al. 2020 (arXiv 1904.12368): scales are log-normal around 1; shifts are
    normal around 0, with the standard deviation of the group's scores. The genes of a group are its scale and its
    shift, the latter in standard deviations.

    Args:
        space: The pruning space.
        scores: Scores of every group.
        clusters: Clusters of the criteria.
        max_flops: As for ``Genome``; with None a budget gene determines the cost.
        max_params: As for ``Genome``.
        max_latency: As for ``Genome``.
        round_to: As for ``Genome``.
        min_keep: As for ``Genome``.
        criterion: Registry name; it ranks the filters. Default: the first one that applies to every group.

    Raises:
        RegistryError: If the criterion does not apply to every group.
    """

    def __init__(
        self,
        space: PruningSpace,
        scores: Scored,
        clusters: CriteriaClusters,
        *,
        max_flops: MaxFlops | Budget = None,
        max_params: Limit = None,
        max_latency: Limit = None,
        round_to: RoundTo = 1,
        min_keep: MinKeep = 0.0,
        criterion: str | None = None,
    ) -> None:
        tables = list(scores.scores.values())
        everywhere = [name for name in tables[0] if all(name in by for by in tables)]
        criterion = criterion or next(iter(everywhere), "l2")
        if criterion not in everywhere:
            hint = did_you_mean(criterion, everywhere)
            raise RegistryError(f"criterion '{criterion}' was not scored in every group; {hint}")
        self.criteria = (criterion,)
        self._scores = [by[criterion] / (np.abs(by[criterion]).max() or 1.0) for by in tables]
        budget, *others = budgets_on(space, {"flops": max_flops, "params": max_params, "latency": max_latency})
        planner = Planner(space, ALLOCATIONS["global"], budget, round_to, min_keep, tuple(others))
        super().__init__(space, clusters, planner)

    def _gene_specs(self) -> Iterator[GeneSpec]:
        for locus in range(len(self._scores)):
            yield "scale", e**-3, e**3, locus
            yield "shift", -2.5, 2.5, locus

    @checked
    def blend(self, individual: Sequence[float]) -> dict[str, dict[str, float]]:
        """The criterion that ranks every group's filters, with weight 1, in the form of :meth:`Genome.blend`."""
        return {group.name: dict.fromkeys(self.criteria, 1.0) for group in self.space.groups}

    def _read(self, genes: Matrix) -> tuple[list[Matrix], Matrix]:
        pairs = genes[:, : 2 * len(self._scores)].reshape(len(genes), -1, 2)
        importance = [
            pairs[:, g, :1] * scores + pairs[:, g, 1:] * scores.std() for g, scores in enumerate(self._scores)
        ]
        return importance, np.ones((len(genes), len(self._scores)))

    @checked
    def single(self, criterion: str, *, share: float = 1.0) -> list[float]:
        """The individual that ranks by the criterion without a transformation: all scales 1, all shifts 0.

        Args:
            criterion: The genome's criterion.
            share: Value of the budget gene, a kept share of the FLOPs.

        Raises:
            RegistryError: If the criterion is not the genome's.
        """
        if criterion not in self.criteria:
            raise RegistryError(f"criterion '{criterion}' is not this genome's; it ranks by '{self.criteria[0]}'")
        return [*[1.0, 0.0] * len(self._scores), *self._budget_genes(share)]


def affine(space: PruningSpace, scores: Scored, clusters: CriteriaClusters, **options: Any) -> AffineGenome:
    """LeGR's genome from the options of ``Genome``; options on blends and allocations are ignored."""
    names = ("max_flops", "max_params", "max_latency", "round_to", "min_keep", "criterion")
    used = {name: options[name] for name in names if name in options}
    return AffineGenome(space, scores, clusters, **used)


AnyGenome = Genome | AffineGenome
GENOMES: Mapping[str, Callable[..., AnyGenome]] = {"blend": Genome, "borda": borda, "affine": affine}
