"""A problem without a network: quick to judge, hard enough to search. Importable by worker processes."""

from __future__ import annotations

from typing import Any

import numpy as np
from deap import base

import deap_prune as dp
from tests.helpers.pruning import prepared


class Table:
    """Random scores for a space."""

    def __init__(self, space: dp.PruningSpace) -> None:
        rng = np.random.default_rng(0)
        self.scores = {g.name: {c: rng.random(g.size) for c in "abc"} for g in space.groups}


class Fake:
    """An evaluator without a network: kept filters are good, so are even numbers of them."""

    def __init__(self, space: dp.PruningSpace, objectives: int = 2) -> None:
        self.space = space
        self.settings: dict[str, Any] = {"recalibrate": None}
        self.names = ("quality", "flops", "params", "roughness")[:objectives]
        self.weights = (1.0, -1.0, -1.0, -1.0)[:objectives]
        self.dense = {"flops": space.flops, "params": space.params, "values": {}}
        self.calls = 0

    def __call__(self, masks: dp.Masks) -> tuple[float, ...]:
        self.calls += 1
        counts = self.space.kept_counts(masks)
        first = np.array([np.flatnonzero(k)[0] for k in masks.values()])
        quality = float(np.log1p(counts).sum() - 0.1 * (counts % 2).sum() - 0.03 * first.sum())
        costs = dp.flops(self.space, masks) / self.space.flops, dp.params(self.space, masks) / self.space.params
        return (quality, *costs, float(np.abs(np.diff(counts)).mean()))[: len(self.names)]


def fake_genome(space: dp.PruningSpace | None = None, **options: Any) -> dp.Genome:
    space = space or prepared("residual").space
    table = Table(space)
    return dp.Genome(space, table, dp.cluster(table), **options)


def fake_toolbox(objectives: int = 2, seed: int | None = 0, individual: Any = None, **options: Any) -> base.Toolbox:
    genome = fake_genome(**options)
    return dp.make_toolbox(genome, Fake(genome.space, objectives), seed=seed, individual=individual)
