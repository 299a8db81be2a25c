"""How many filters each group keeps: by shares, stages, thresholds and steps."""

from __future__ import annotations

import random

import numpy as np
import pytest
from conftest import Digits
from hypothesis import given, settings
from hypothesis import strategies as st

import deap_prune as dp
from deap_prune.blending import ALLOCATIONS
from deap_prune.blending.allocation import STEP
from tests.helpers.pruning import prepared
from tests.helpers.random_scores import RandomScores, make, stages


def test_without_a_budget_keep_genes_are_kept_shares() -> None:
    genome = make("flatten", allocation="evolved")
    genes = genome.single("a", share=0.5)
    assert genome.space.kept_counts(genome.decode(genes)).tolist() == [3, 2, 4]
    assert genome.space.kept_counts(genome.decode(genome.single("a", share=1.0))).tolist() == [6, 5, 9]
    assert genome.space.kept_counts(genome.decode(genome.single("a", share=0.0))).tolist() == [1, 1, 1]


def test_a_budget_of_one_is_the_dense_network() -> None:
    for allocation in (a.name for a in ALLOCATIONS):
        genome = make("grouped_in_a_row", allocation=allocation, max_flops=1.0, round_to=8)
        assert all(keep.all() for keep in genome.decode(genome.single("b")).values())


@pytest.mark.parametrize("max_flops", [0.3, 0.5, None])
@pytest.mark.parametrize("name", ["resnet20_a", "resnet20_b"])
def test_stages_keep_equal_widths(name: str, max_flops: float | None) -> None:
    """Blocks of a stage and its residual stream have equal widths; there is one keep gene per stage."""
    genome = make(name, allocation="stage", max_flops=max_flops)
    assert len(genome.layout.of_kind("keep")) == 3
    random.seed(1)
    for _ in range(10):
        counts = genome.space.kept_counts(genome.decode(dp.operators.initBlend(list, genome.layout)))
        widths = [set(counts[groups].tolist()) for groups in stages(genome.space)]
        assert len(widths) == 3 and all(len(stage_widths) == 1 for stage_widths in widths)
    groups = len(genome.space.groups)
    assert len(genome.affine("a", [1.0] * groups, [0.0] * groups)) == len(genome.layout)


@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.5, 0.8]))
@settings(max_examples=30)
def test_binary_search_stays_within_a_step_of_the_mean(seed: int, budget: float) -> None:
    """However the importance is distributed; groups with few important filters are narrower."""
    space = prepared("resnet20_a").space
    table = RandomScores(space, seed)
    for number, scores in enumerate(table.scores.values()):
        scores["a"] = scores["a"] ** (1 + 20 * (number % 2))  # in every second group few filters are important
    genome = dp.Genome(space, table, dp.cluster(table), allocation="binary", max_flops=budget)
    kept = space.kept_counts(genome.decode(genome.single("a"))) / space.sizes
    assert kept.max() - kept.min() <= 2 * STEP + 2 / space.sizes.min()
    assert kept[1::2].mean() < kept[::2].mean()


def test_uniform_keeps_the_same_share(digits: Digits) -> None:
    genome = digits.genome(allocation="uniform", max_flops=0.5)
    shares = digits.space.kept_counts(genome.decode(genome.single("l1"))) / digits.space.sizes
    assert np.ptp(shares) <= 1 / 16 + 1e-9


def test_global_threshold_compares_layers(digits: Digits) -> None:
    """Kept filters score at least as high as pruned ones, except for those that fill the budget."""
    genome = digits.genome(allocation="global", max_flops=0.5, normaliser="max")
    masks = genome.decode(genome.single("bn_scale"))
    normalised = {g: s["bn_scale"] / s["bn_scale"].max() for g, s in digits.scores.scores.items()}
    kept = np.concatenate([normalised[g][k] for g, k in masks.items()])
    pruned = np.concatenate([normalised[g][~k] for g, k in masks.items()])
    assert (kept[:, None] < pruned).any(axis=1).sum() <= len(digits.space.groups)
