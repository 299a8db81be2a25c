"""Which importance should I use? How criteria agree on a network, and what the masks of each are worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from deap_prune.blending.baselines import AnyGenome
from deap_prune.blending.budget import Budget
from deap_prune.blending.clusters import CriteriaClusters
from deap_prune.blending.stability import Stability, stability
from deap_prune.criteria.table import ScoreTable, score
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.options import SearchOptions
from deap_prune.plot import plot_agreement
from deap_prune.progress import track
from deap_prune.search import prepare
from deap_prune.search.from_config import OpenedConfig

PARTS = 2  # of the calibration images, scored one by one for the stability


@dataclass(frozen=True)
class Ranked:
    """What the masks of one criterion are worth.

    Attributes:
        criterion: Its name.
        values: Objective to value, by the evaluator.
        groups: Groups to which it applies (in the others the first medoid decides).
    """

    criterion: str
    values: Mapping[str, float]
    groups: int


def rank_criteria(genome: AnyGenome, evaluate: Evaluator, *, progress: bool = False) -> list[Ranked]:
    """Every criterion alone, at the genome's allocation and budget, best first by the first objective.

    Args:
        genome: Its scores, allocation and budget; keep genes are 1.
        evaluate: The fitness; a criterion is one evaluation.
        progress: Show a bar.
    """
    names = list(dict.fromkeys(c for group in genome.clusters.groups.values() for c in group.criteria))
    found = []
    for name in track(names, "judging criteria", shown=progress):
        values = dict(zip(evaluate.names, evaluate(genome.decode(genome.single(name))), strict=True))
        groups = sum(name in group.criteria for group in genome.clusters.groups.values())
        found.append(Ranked(name, values, groups))
    first, sign = evaluate.names[0], evaluate.weights[0]
    return sorted(found, key=lambda ranked: -sign * ranked.values[first])


@dataclass(frozen=True, eq=False)
class Comparison:
    """How the criteria of a pool compare on one network. ``print(comparison)`` tells it.

    Attributes:
        clusters: By group, with the correlations.
        stability: Of the rankings and clusters over parts of the calibration images; None with too few images.
        ranking: Best first.
        max_flops: Kept share of the FLOPs at which the ranking was made.
        dense: Objective to the dense network's value.
    """

    clusters: CriteriaClusters
    stability: Stability | None
    ranking: list[Ranked]
    max_flops: float
    dense: Mapping[str, float]

    def __str__(self) -> str:
        parts = [_matrix(self.clusters), f"clusters, layer by layer (medoid first):\n{self.clusters}", self._ranks()]
        return "\n\n".join(parts)

    def _ranks(self) -> str:
        objectives = list(self.dense)
        lines = [
            f"criteria by the {objectives[0]} that their masks keep, uniform widths, {self.max_flops:.0%} of the FLOPs",
            f"{'':18s}" + "".join(f"{o:>10s}" for o in objectives) + f"{'stability':>11s}{'layers':>8s}",
        ]
        for row in self.ranking:
            values = "".join(f"{row.values[o]:10.4f}" for o in objectives)
            stable = f"{self.stability.criteria.get(row.criterion, np.nan):11.2f}" if self.stability else f"{'-':>11s}"
            lines.append(f"{row.criterion:18s}{values}{stable}{row.groups:8d}")
        lines.append(f"{'dense network':18s}" + "".join(f"{self.dense[o]:10.4f}" for o in objectives))
        if self.stability:
            rand = float(np.mean(list(self.stability.clusters.values())))
            lines.append(f"stability: rho between halves of the calibration images; Rand index of clusters {rand:.2f}")
        return "\n".join(lines)


def compare_criteria(
    opened: OpenedConfig, *, max_flops: float | None = None, picture: str | Path | None = None, progress: bool = True
) -> Comparison:
    """Score the config's network by the config's criteria; cluster, draw and rank them.

    Args:
        opened: Network, data, config.
        max_flops: Kept share of the FLOPs for the ranking; the config's, or a half, if left out.
        picture: Where to draw the agreement.
        progress: Show bars.

    Raises:
        PruneError: Of the kind that fits.
    """
    share = Budget.of(opened.config.search.genome_budget).fixed_or(0.5) if max_flops is None else max_flops
    options = replace(
        opened.config.search,
        allocation="uniform",
        max_flops=share,
        objectives=("accuracy", "loss"),
        algorithm="singles",
        compare="compensated",
        augment=False,
        guard=0,
        prescreen=1,
    )
    prepared = prepare(opened.task, options, progress=progress)
    genome, evaluate = prepared.genome, prepared.evaluator
    if picture is not None:
        plot_agreement(genome.clusters, picture, title=type(opened.task.model).__name__)
    stable = _stability(opened, genome, evaluate.network, options)
    ranking = rank_criteria(genome, evaluate, progress=progress)
    return Comparison(genome.clusters, stable, ranking, share, evaluate.dense["values"])


def _stability(opened: OpenedConfig, genome: AnyGenome, network: nn.Module, options: SearchOptions) -> Stability | None:
    """Agreement between parts of the calibration images; None if there are too few of them."""
    images, labels = opened.splits.calibration
    if len(images) < PARTS:
        return None
    tables: list[ScoreTable] = []
    for part in zip(images.tensor_split(PARTS), labels.tensor_split(PARTS), strict=True):
        tables.append(
            score(
                network,
                genome.space,
                part,
                criteria=options.criteria,
                labels=options.labels,
                seed=options.seed,
            )
        )
    return stability(tables, n_clusters=options.n_clusters, seed=options.seed)


def _matrix(clusters: CriteriaClusters) -> str:
    """Spearman's rho and the overlap of the lower halves, as text: above and below the diagonal."""
    names, rho = clusters.correlation()
    _, overlap = clusters.overlap(0.5)
    lines = [
        "agreement, mean over the layers: Spearman's rho above the diagonal, overlap of the lower halves below it",
        f"{'':22s}" + "".join(f"{i:>6d}" for i in range(1, len(names) + 1)),
    ]
    for i, name in enumerate(names):
        cells = (rho[i, j] if j >= i else overlap[i, j] for j in range(len(names)))
        texts = ("     -" if np.isnan(value) else f"{value:6.2f}" for value in cells)  # -: never in one layer
        lines.append(f"{i + 1:3d} {name:18s}" + "".join(texts))
    return "\n".join(lines)
