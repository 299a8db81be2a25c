"""Genomes of test networks with random scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

import deap_prune as dp
from deap_prune.blending.layout import stages_of
from tests.helpers.pruning import prepared

SPACES = ("residual", "grouped_in_a_row", "shuffle", "concat", "flatten")
GENE = st.one_of(
    st.floats(-3, 3),
    st.integers(-5, 5),
    st.sampled_from([0.0, 1.0, -1e300, 1e300, math.inf, -math.inf, 5e-324]),
)


class RandomScores:
    """Random scores for the groups of a space: two criteria with equal rankings, and two independent ones."""

    def __init__(self, space: dp.PruningSpace, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.scores: dict[str, dict[str, np.ndarray]] = {}
        for g in space.groups:
            a, b, c = rng.random((3, g.size))
            self.scores[g.name] = {"a": a, "a2": a**2, "b": b - 0.5, "c": np.round(c, 1)}


def make(name: str, **options: Any) -> dp.Genome:
    """The genome of a test network, with random scores."""
    space = prepared(name).space
    table = RandomScores(space)
    return dp.Genome(space, table, dp.cluster(table), **options)


def stages(space: dp.PruningSpace) -> list[list[int]]:
    """Numbers of the groups of each stage."""
    numbers = stages_of([g.layers("filter")[-1].layer for g in space.groups], space.sizes.tolist())
    return [[g for g, n in enumerate(numbers) if n == stage] for stage in sorted(set(numbers))]
