"""Compares criteria on a network: their agreement, and the accuracy of the masks that each of them gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from deap_prune.progress import Shown, track
from deap_prune.search import prepare
from deap_prune.search.from_config import OpenedConfig

PARTS = 2  # number of parts of the calibration images that are scored separately for the stability


@dataclass(frozen=True)
class Ranked:
    """The value of the masks of one criterion.

    Attributes:
        criterion: Registry name.
        values: Objective to value.
        groups: Number of groups to which it applies; the others are ranked by their first medoid.
    """

    criterion: str
    values: Mapping[str, float]
    groups: int


def rank_criteria(genome: AnyGenome, evaluate: Evaluator, *, progress: Shown = False) -> list[Ranked]:
    """Evaluate each criterion alone, with the genome's allocation and budget; best first by the first objective.

    Args:
        genome: Scores, allocation and budget; keep genes are 1.
        evaluate: The fitness; each criterion takes one evaluation.
        progress: Show progress; "bar" or "log" choose its form.
    """
    names = list(dict.fromkeys(c for group in genome.clusters.groups.values() for c in group.criteria))
    ranking = []
    for name in track(names, "evaluating criteria", shown=progress):
        values = dict(zip(evaluate.names, evaluate(genome.decode(genome.single(name))), strict=True))
        groups = sum(name in group.criteria for group in genome.clusters.groups.values())
        ranking.append(Ranked(name, values, groups))
    first, sign = evaluate.names[0], evaluate.weights[0]
    return sorted(ranking, key=lambda ranked: -sign * ranked.values[first])


@dataclass(frozen=True, eq=False)
class Comparison:
    """Comparison of criteria on one network; ``print(comparison)`` shows it.

    Attributes:
        clusters: Clusters and correlations of every group.
        stability: Agreement between parts of the calibration images; None if there are too few images.
        ranking: The criteria, best first.
        max_flops: Kept share of the FLOPs in the ranking.
        dense: Objective to the dense network's value.
    """

    clusters: CriteriaClusters
    stability: Stability | None
    ranking: list[Ranked]
    max_flops: float
    dense: Mapping[str, float]

    def __str__(self) -> str:
        parts = [_matrix(self.clusters), f"clusters of each layer (medoid first):\n{self.clusters}", self._ranks()]
        return "\n\n".join(parts)

    def _ranks(self) -> str:
        objectives = list(self.dense)
        lines = [
            f"criteria by the {objectives[0]} of their masks, uniform widths, {self.max_flops:.0%} of the FLOPs",
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
    opened: OpenedConfig, *, max_flops: float | None = None, picture: str | Path | None = None, progress: Shown = True
) -> Comparison:
    """Score a network by the criteria of a config; cluster, draw and rank the criteria.

    Args:
        opened: Network, data and config.
        max_flops: Kept share of the FLOPs for the ranking. Default: that of the config, or 0.5.
        picture: File for the picture of the agreement; None for none.
        progress: Show progress; "bar" or "log" choose its form.

    Raises:
        PruneError: If network, data or options are illegal.
    """
    search = opened.config.search
    share = Budget.of(search.genome_budget).flops_or(0.5) if max_flops is None else max_flops
    alone: dict[str, Any] = {"allocation": "uniform", "algorithm": "singles", "prescreen": 1, "guard": 0}
    plain: dict[str, Any] = {"objectives": ("accuracy", "loss"), "compare": "compensated", "augment": False}
    options = replace(search, max_flops=share, **alone, **plain)
    prepared = prepare(opened.task, options, progress=progress)
    genome, evaluate = prepared.genome, prepared.evaluator
    if picture is not None:
        plot_agreement(genome.clusters, picture, title=type(opened.task.model).__name__)
    stable = _stability(opened, genome, evaluate.network, options)
    ranking = rank_criteria(genome, evaluate, progress=progress)
    return Comparison(genome.clusters, stable, ranking, share, evaluate.dense["values"])


def _stability(opened: OpenedConfig, genome: AnyGenome, network: nn.Module, options: SearchOptions) -> Stability | None:
    """Agreement between parts of the calibration images; None if there are too few images."""
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
    """A text table: Spearman's rho above the diagonal, the overlap of the lower halves below it."""
    names, rho = clusters.correlation()
    _, overlap = clusters.overlap(0.5)
    lines = [
        "agreement, mean over the layers: Spearman's rho above the diagonal, overlap of the lower halves below it",
        f"{'':22s}" + "".join(f"{i:>6d}" for i in range(1, len(names) + 1)),
    ]
    for i, name in enumerate(names):
        cells = (rho[i, j] if j >= i else overlap[i, j] for j in range(len(names)))
        texts = ("     -" if np.isnan(value) else f"{value:6.2f}" for value in cells)  # "-": no layer has both
        lines.append(f"{i + 1:3d} {name:18s}" + "".join(texts))
    return "\n".join(lines)
