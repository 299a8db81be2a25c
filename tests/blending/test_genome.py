"""Stage two: the blend of an individual, and the importance that it gives."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deap_prune as dp
from deap_prune.errors import ConfigError, RegistryError
from tests.helpers.pruning import prepared
from tests.helpers.random_scores import SPACES, RandomScores, make


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("normaliser", ["max", "sum", "standard", "rank"])
@pytest.mark.parametrize("criterion", ["a", "b", "c"])
def test_a_single_criterion_keeps_its_highest_scores(name: str, normaliser: str, criterion: str) -> None:
    space = prepared(name).space
    genome = make(name, allocation="uniform", max_flops=0.6, normaliser=normaliser)
    masks = genome.decode(genome.single(criterion))
    scores = RandomScores(space).scores
    for g in space.groups:
        for keep, block in zip(
            masks[g.name].reshape(g.blocks, -1), scores[g.name][criterion].reshape(g.blocks, -1), strict=True
        ):
            highest = sorted(range(len(block)), key=lambda i: (-block[i], i))[: keep.sum()]  # the first of equal scores
            assert sorted(highest) == np.flatnonzero(keep).tolist()


def test_blend_is_the_weighted_sum() -> None:
    """Computed by hand from the candidate and the factor of each cluster."""
    genome = make("flatten", allocation="uniform", max_flops=0.5, normaliser="max")
    scores = RandomScores(genome.space).scores
    genes: list[float] = []
    blends = {}
    rng = np.random.default_rng(4)
    for g in genome.space.groups:
        clusters = genome.clusters[g.name].members
        blend = np.zeros(g.size)
        for group_members in clusters:
            choice, factor = int(rng.integers(len(group_members))), float(rng.random())
            genes += [choice, factor] if len(group_members) > 1 else [factor]
            s = scores[g.name][group_members[choice]]
            s = s - min(0, s.min())
            blend += factor * s / s.max()
        blends[g.name] = blend
    masks = genome.decode(genes)
    for name, blend in blends.items():
        assert set(np.argsort(-blend)[: masks[name].sum()]) == set(np.flatnonzero(masks[name]))


@given(st.integers(0, 10_000), st.sampled_from([2.0**-9, 2.0**-3, 0.5]))
@settings(max_examples=30)
def test_factors_count_only_up_to_scale(seed: int, scale: float) -> None:
    """In each layer separately, also with a global threshold."""
    for allocation in ("uniform", "global", "evolved"):
        genome = make("residual", allocation=allocation, max_flops=0.5)
        random.seed(seed)
        genes = dp.operators.initBlend(list, genome.layout)
        chosen = random.randrange(len(genome.space.groups))
        scaled = [
            g * scale if kind == "factor" and locus == chosen else g
            for g, kind, locus in zip(genes, genome.layout.kinds, genome.layout.loci, strict=True)
        ]
        assert genome.decode(scaled) == genome.decode(genes)


@pytest.mark.parametrize("options", [{}, {"candidates": "medoid"}, {"allocation": "stage"}, {"allocation": "uniform"}])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20)
def test_blend_weights_give_the_importance(options: dict[str, Any], seed: int) -> None:
    """For each group, scores times weights sum to the importance."""
    genome = make("residual", max_flops=0.5, **options)
    random.seed(seed)
    genes = dp.operators.initBlend(list, genome.layout)
    tables, importance = RandomScores(genome.space).scores, genome.importance(genes)
    for name, blend in genome.blend(genes).items():
        assert sum(blend.values()) == pytest.approx(1) and len(blend) == len(genome.clusters[name].members)
        shifted = {c: tables[name][c] - min(0, tables[name][c].min()) for c in blend}
        mixed = sum(weight * shifted[c] / shifted[c].max() for c, weight in blend.items())
        np.testing.assert_allclose(mixed, importance[name], atol=1e-12)


def test_blend_of_a_single_criterion_and_of_zero_factors() -> None:
    genome = make("residual")
    alone = genome.blend(genome.single("b"))
    assert all(blend["b"] == 1 and sum(blend.values()) == 1 for blend in alone.values())
    zero_factors = [
        0.0 if kind == "factor" else gene for kind, gene in zip(genome.layout.kinds, genome.single("b"), strict=True)
    ]
    assert all(len(set(blend.values())) == 1 for blend in genome.blend(zero_factors).values())
    with pytest.raises(ConfigError, match="the individual has 1 genes"):
        genome.blend([0.5])


def test_all_factors_zero_is_an_even_blend() -> None:
    genome = make("residual", max_flops=0.5)
    zero, even = ([v if k == "factor" else 1.0 if k == "keep" else 0 for k in genome.layout.kinds] for v in (0.0, 1.0))
    assert genome.decode(zero) == genome.decode(even)


def test_single_falls_back_to_the_medoid_where_a_criterion_is_absent() -> None:
    space = prepared("residual").space
    table = RandomScores(space)
    del table.scores["stem.0"]["b"]
    genome = dp.Genome(space, table, dp.cluster(table), allocation="uniform", max_flops=0.5)
    first = genome.clusters["stem.0"].medoids[0]
    assert np.array_equal(genome.decode(genome.single("b"))["stem.0"], genome.decode(genome.single(first))["stem.0"])


def test_messages() -> None:
    genome = make("plain", max_flops=0.5)
    genes = genome.single("a")
    with pytest.raises(ConfigError, match=rf"the individual has {len(genes) - 1} genes; this genome has {len(genes)}"):
        genome.decode(genes[1:])
    with pytest.raises(ConfigError, match=r"gene 2 of the individual is NaN"):
        genome.decode([*genes[:2], float("nan"), *genes[3:]])
    with pytest.raises(ConfigError, match=r"gene 1 of the individual"):
        genome.decode([genes[0], 0.5 + 1j, *genes[2:]])  # mutPolynomialBounded makes such genes
    with pytest.raises(RegistryError, match=r"criterion 'a3' was not scored; .*known: a, a2, b, c"):
        genome.single("a3")
    with pytest.raises(RegistryError, match=r"unknown allocation 'evolve'; did you mean 'evolved'\?"):
        make("plain", allocation="evolve")
    with pytest.raises(RegistryError, match=r"unknown normaliser 'maximum'; .*known: max, rank, standard, sum"):
        make("plain", normaliser="maximum")
    for round_to in (0, 2.0, -8):
        with pytest.raises(ConfigError, match=rf"round_to is {round_to}; give a whole number from 1 up"):
            make("plain", round_to=round_to)
    table = RandomScores(prepared("residual").space)
    with pytest.raises(ConfigError, match="belong to different networks; compute them from one space"):
        dp.Genome(prepared("plain").space, table, dp.cluster(table))
