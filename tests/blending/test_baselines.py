"""Genomes beside the blend: many at once, medoids alone, ranges of budgets, Borda, LeGR's affine."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

import deap_prune as dp
from deap_prune.blending import ALLOCATIONS, GENOMES
from deap_prune.errors import BudgetError, ConfigError, RegistryError
from tests.helpers.pruning import prepared

SPACES = ("residual", "grouped_in_a_row", "concat")


class Table:
    """Random scores, with ties."""

    def __init__(self, space: dp.PruningSpace) -> None:
        rng = np.random.default_rng(1)
        self.scores = {g.name: {c: np.round(rng.random(g.size), 1) for c in "abcd"} for g in space.groups}


def make(name: str, kind: str = "blend", **options: object) -> dp.Genome | deap_prune.blending.AffineGenome:
    space = prepared(name).space
    table = Table(space)
    return GENOMES[kind](space, table, dp.cluster(table), **options)


@pytest.mark.parametrize("kind", sorted(GENOMES))
def test_a_range_of_costs_may_be_a_list(kind: str) -> None:
    """As it comes from a file."""
    genome, wanted = (make("residual", kind, max_flops=each) for each in ([0.3, 0.6], (0.3, 0.6)))
    assert genome.layout.kinds == wanted.layout.kinds and genome.max_flops == (0.3, 0.6)


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
@settings(max_examples=15)
def test_many_are_decoded_as_one_by_one(name: str, data: st.DataObject) -> None:
    """Bit for bit, whoever else is decoded; also past the size of a chunk."""
    kind = data.draw(st.sampled_from(sorted(GENOMES)))
    options = {
        "max_flops": data.draw(st.sampled_from([None, 0.5, (0.4, 0.8)])),
        "allocation": data.draw(st.sampled_from([a.name for a in ALLOCATIONS])),
        "round_to": data.draw(st.sampled_from([1, 2])),
    }
    genome = make(name, kind, **options)
    random.seed(data.draw(st.integers(0, 99)))
    individuals = [dp.operators.initBlend(list, genome.layout) for _ in range(7)]
    one_by_one = [genome.decode(ind) for ind in individuals]
    assert genome.decode_many(individuals) == one_by_one
    assert genome.decode_many(individuals * 40)[-7:] == one_by_one
    assert genome.decode_many([]) == []


def test_many_name_the_bad_one() -> None:
    genome = make("residual")
    good = genome.single("a")
    with pytest.raises(ConfigError, match="gene 3 of the individual is NaN"):
        genome.decode_many([good, [*good[:3], float("nan"), *good[4:]]])
    with pytest.raises(ConfigError, match=r"gene 1 of the individual is \(1\+1j\); genes are numbers"):
        genome.decode_many([good, [good[0], 1 + 1j, *good[2:]]])
    with pytest.raises(ConfigError, match="has 2 genes; this genome has"):
        genome.decode_many([good, [0.0, 1.0]])


@pytest.mark.parametrize("name", SPACES)
def test_widened_costs_are_the_costs(name: str) -> None:
    """The closed form of one wider group against the polynomial itself."""
    space = prepared(name).space
    rng = np.random.default_rng(0)
    for cost in (space.flops_of, space.params_of):
        kept = rng.integers(1, space.sizes + 1, size=(5, len(space.sizes)))
        wider = np.minimum(kept + rng.integers(0, 4, size=kept.shape), space.sizes)
        found = cost.widened(kept, wider)
        for row in range(5):
            for g in range(len(space.sizes)):
                trial = kept[row].copy()
                trial[g] = wider[row, g]
                assert found[row, g] == cost(trial)


# ------------------------------------------------------------------ medoids alone
def test_medoid_genome_is_all_continuous() -> None:
    genome, full = make("residual", candidates="medoid", max_flops=0.5), make("residual", max_flops=0.5)
    assert isinstance(genome, dp.Genome) and isinstance(full, dp.Genome)
    assert set(genome.layout.kinds) == {"factor", "keep"}
    random.seed(0)
    for _ in range(10):
        genes = dp.operators.initBlend(list, genome.layout)
        spelled: list[float] = []
        for kind in full.layout.kinds:  # the same individual with the medoids (candidate 0) spelled out
            spelled.append(0.0 if kind == "candidate" else genes.pop(0))
        assert full.decode(spelled) == genome.decode(
            [g for g, k in zip(spelled, full.layout.kinds, strict=True) if k != "candidate"]
        )
    with pytest.raises(ConfigError, match="candidates is 'medoids'; it is 'evolved' or 'medoid'"):
        make("residual", candidates="medoids")


# ------------------------------------------------------------------ ranges
@pytest.mark.parametrize("allocation", [a.name for a in ALLOCATIONS])
def test_a_range_of_budgets_is_a_gene(allocation: str) -> None:
    genome = make("residual", allocation=allocation, max_flops=(0.3, 0.7))
    space = genome.space
    assert genome.layout.kinds[-1] == "budget"
    assert (genome.layout.low[-1], genome.layout.high[-1]) == (0.3, 0.7)
    for budget in (0.0, 0.3, 0.5, 0.7, 1.0):
        genes = genome.single("a", share=0.9)
        genes[-1] = budget
        share = dp.flops(space, genome.decode(genes)) / space.flops
        inside = min(max(budget, 0.3), 0.7)
        assert inside - 0.08 < share <= inside


@pytest.mark.parametrize("bad", [(0.7, 0.3), (0.3,), (0.3, 0.5, 0.7), (0.0, 0.5), (0.5, 1.2), (1e-5, 0.5)])
def test_ranges_that_are_none(bad: tuple[float, ...]) -> None:
    with pytest.raises(BudgetError, match=r"max_flops is"):
        make("residual", max_flops=bad)


# ------------------------------------------------------------------ baselines
def test_borda_keeps_the_best_mean_rank() -> None:
    genome = make("residual", "borda", allocation="uniform", max_flops=0.5)
    assert genome.criteria == ("borda",)
    masks = genome.decode(genome.single("borda"))
    for group in genome.space.groups:
        scores = Table(genome.space).scores[group.name]
        mean = np.mean([rankdata(s) for s in scores.values()], axis=0)
        keep = masks[group.name]
        assert mean[keep].min() >= mean[~keep].max() - 1e-9


def test_affine_is_one_threshold_over_all() -> None:
    genome = make("residual", "affine", max_flops=0.5, criterion="b")
    assert set(genome.layout.kinds) == {"scale", "shift"}
    plain = dp.Genome(genome.space, Table(genome.space), genome.clusters, allocation="global", max_flops=0.5)
    assert genome.decode(genome.single("b")) == plain.decode(plain.single("b"))
    first = genome.space.groups[0].name
    more, less = genome.single("b"), genome.single("b")
    more[1], less[1] = 2.5, -2.5
    counts = [int(genome.decode(genes)[first].sum()) for genes in (less, genome.single("b"), more)]
    assert counts[0] < counts[1] < counts[2]
    with pytest.raises(RegistryError, match="criterion 'z' was not scored in every group; known: a, b, c, d"):
        make("residual", "affine", criterion="z")
    with pytest.raises(RegistryError, match="criterion 'a' is not this genome's; it ranks by 'b'"):
        genome.single("a")
