"""All genomes: decoding many individuals, medoids alone, ranges of budgets; and Borda and LeGR's affine genome."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

import deap_prune as dp
import deap_prune.blending
from deap_prune.blending import ALLOCATIONS, GENOMES, Budget
from deap_prune.errors import ConfigError, RegistryError
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
def test_a_budget_may_be_a_list_or_a_budget(kind: str) -> None:
    """A range from a configuration file is a list."""
    expected = make("residual", kind, max_flops=(0.3, 0.6))
    for value in ([0.3, 0.6], Budget(lowest=0.3, highest=0.6)):
        genome = make("residual", kind, max_flops=value)
        assert genome.layout == expected.layout
        assert genome.budget == Budget.of((0.3, 0.6)) and genome.max_flops == (0.3, 0.6)


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
@settings(max_examples=15)
def test_decoding_many_equals_decoding_one_by_one(name: str, data: st.DataObject) -> None:
    """Bit for bit, also for more individuals than a chunk holds."""
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


def test_errors_of_decoding_many_name_the_gene() -> None:
    genome = make("residual")
    good = genome.single("a")
    with pytest.raises(ConfigError, match="gene 3 of the individual is NaN"):
        genome.decode_many([good, [*good[:3], float("nan"), *good[4:]]])
    with pytest.raises(ConfigError, match=r"gene 1 of the individual is \(1\+1j\); genes are numbers"):
        genome.decode_many([good, [good[0], 1 + 1j, *good[2:]]])
    with pytest.raises(ConfigError, match="has 2 genes; this genome has"):
        genome.decode_many([good, [0.0, 1.0]])


@pytest.mark.parametrize("name", SPACES)
def test_costs_of_one_wider_group(name: str) -> None:
    """The closed form equals the cost polynomial."""
    space = prepared(name).space
    rng = np.random.default_rng(0)
    for cost in (space.flops_of, space.params_of):
        kept = rng.integers(1, space.sizes + 1, size=(5, len(space.sizes)))
        wider = np.minimum(kept + rng.integers(0, 4, size=kept.shape), space.sizes)
        costs = cost.widened(kept, wider)
        for row in range(5):
            for g in range(len(space.sizes)):
                trial = kept[row].copy()
                trial[g] = wider[row, g]
                assert costs[row, g] == cost(trial)


# ------------------------------------------------------------------ medoids alone
def test_medoid_genome_has_no_candidate_genes() -> None:
    genome, full = make("residual", candidates="medoid", max_flops=0.5), make("residual", max_flops=0.5)
    assert isinstance(genome, dp.Genome) and isinstance(full, dp.Genome)
    assert set(genome.layout.kinds) == {"factor", "keep"}
    random.seed(0)
    for _ in range(10):
        genes = dp.operators.initBlend(list, genome.layout)
        remaining = iter(genes)  # the same individual with the medoids as candidates (candidate 0)
        with_candidates = [0.0 if kind == "candidate" else next(remaining) for kind in full.layout.kinds]
        assert full.decode(with_candidates) == genome.decode(genes)
    with pytest.raises(ConfigError, match="candidates is 'medoids'; it is 'evolved' or 'medoid'"):
        make("residual", candidates="medoids")


# ------------------------------------------------------------------ ranges
@pytest.mark.parametrize("allocation", [a.name for a in ALLOCATIONS])
def test_a_range_adds_a_budget_gene(allocation: str) -> None:
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


def test_affine_genome_has_one_threshold_for_all_groups() -> None:
    genome = make("residual", "affine", max_flops=0.5, criterion="b")
    assert set(genome.layout.kinds) == {"scale", "shift"}
    plain = dp.Genome(genome.space, Table(genome.space), genome.clusters, allocation="global", max_flops=0.5)
    assert genome.decode(genome.single("b")) == plain.decode(plain.single("b"))
    first = genome.space.groups[0].name
    high, low = genome.single("b"), genome.single("b")
    high[1], low[1] = 2.5, -2.5  # the shift of the first group
    counts = [int(genome.decode(genes)[first].sum()) for genes in (low, genome.single("b"), high)]
    assert counts[0] < counts[1] < counts[2]
    with pytest.raises(RegistryError, match="criterion 'z' was not scored in every group; known: a, b, c, d"):
        make("residual", "affine", criterion="z")
    with pytest.raises(RegistryError, match="criterion 'a' is not this genome's; it ranks by 'b'"):
        genome.single("a")
