"""Stage two, and law 4: every individual decodes inside its budget, tight, in whole steps."""

from __future__ import annotations

import math
import random
import re
from typing import Any

import numpy as np
import pytest
from conftest import Digits
from hypothesis import given, settings
from hypothesis import strategies as st

import deap_prune as dp
from deap_prune.blending import ALLOCATIONS
from deap_prune.blending.allocation import STEP
from deap_prune.blending.layout import stages_of
from deap_prune.errors import BudgetError, ConfigError, RegistryError
from tests.helpers.pruning import prepared

SPACES = ("residual", "grouped_in_a_row", "shuffle", "concat", "flatten")
GENE = st.one_of(
    st.floats(-3, 3),
    st.integers(-5, 5),
    st.sampled_from([0.0, 1.0, -1e300, 1e300, math.inf, -math.inf, 5e-324]),
)


class Table:
    """Random scores for the groups of a space: two criteria that agree, and two of their own."""

    def __init__(self, space: dp.PruningSpace, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.scores: dict[str, dict[str, np.ndarray]] = {}
        for g in space.groups:
            a, b, c = rng.random((3, g.size))
            self.scores[g.name] = {"a": a, "a2": a**2, "b": b - 0.5, "c": np.round(c, 1)}


def make(name: str, **options: Any) -> dp.Genome:
    space = prepared(name).space
    table = Table(space)
    return dp.Genome(space, table, dp.cluster(table), **options)


def steps_of(space: dp.PruningSpace, round_to: int) -> list[list[int]]:
    """The admissible counts of every group, spelled out: multiples that all blocks can share, and dense."""
    found = []
    for g in space.groups:
        width = range(1, g.size // g.blocks + 1)
        found.append([k * g.blocks for k in width if (k * g.blocks) % round_to == 0 or k * g.blocks == g.size])
    return found


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
@settings(max_examples=25)
def test_law_4(name: str, data: st.DataObject) -> None:
    space = prepared(name).space
    usable = [r for r in (1, 1, 2, 3, 4, 8) if any(len(legal) > 1 for legal in steps_of(space, r))]
    round_to = data.draw(st.sampled_from(usable))
    allocation = data.draw(st.sampled_from([a.name for a in ALLOCATIONS]))
    cap = data.draw(st.sampled_from([0.0, 0.0, 0.25, 0.6]))
    admissible = [
        [c for c in legal if c >= cap * g.size - 1e-9] or [g.size]
        for legal, g in zip(steps_of(space, round_to), space.groups, strict=True)
    ]
    least = float(space.flops_of([c[0] for c in admissible])) / space.flops
    share = min(1.0, least + data.draw(st.floats(0, 1)) * (1 - least))
    genome = make(name, allocation=allocation, max_flops=share, round_to=round_to, min_keep=cap)
    genes = data.draw(st.lists(GENE, min_size=len(genome.layout), max_size=len(genome.layout)))
    masks = genome.decode(genes)
    counts = space.kept_counts(masks)  # at least one filter a block, blocks alike: else this raises
    assert list(masks) == [g.name for g in space.groups]
    assert all(c in legal for c, legal in zip(counts, admissible, strict=True))
    budget = share * space.flops * (1 + 1e-12)
    assert dp.flops(space, masks) <= budget
    for together in stages(space) if allocation == "stage" else [[g] for g in range(len(space.groups))]:
        wider = widened(counts, admissible, space.sizes, together)
        names = [space.groups[g].name for g in together]
        assert (wider == counts).all() or space.flops_of(wider) > budget, f"{names} could keep more"


def widened(counts: np.ndarray, admissible: list[list[int]], sizes: np.ndarray, together: list[int]) -> np.ndarray:
    """The groups together at the next share at which one of them grows."""
    following = {g: next((c for c in admissible[g] if c > counts[g]), None) for g in together}
    share = min((c / sizes[g] for g, c in following.items() if c is not None), default=0.0)
    wider = counts.copy()
    for g in together:
        wider[g] = max([counts[g], *(c for c in admissible[g] if c <= share * sizes[g] + 1e-9)])
    return wider


def stages(space: dp.PruningSpace) -> list[list[int]]:
    """Groups that end in one stage."""
    numbers = stages_of([g.layers("filter")[-1].layer for g in space.groups], space.sizes.tolist())
    return [[g for g, n in enumerate(numbers) if n == stage] for stage in sorted(set(numbers))]


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("allocation", [a.name for a in ALLOCATIONS])
@given(data=st.data())
@settings(max_examples=8)
def test_without_a_budget_the_genes_decide(name: str, allocation: str, data: st.DataObject) -> None:
    space = prepared(name).space
    genome = make(name, allocation=allocation)
    genes = data.draw(st.lists(GENE, min_size=len(genome.layout), max_size=len(genome.layout)))
    masks = genome.decode(genes)
    assert genome.min_flops <= dp.flops(space, masks) / space.flops <= 1
    if "budget" in genome.layout.kinds:
        bounded = min(max(genes[-1], genome.min_flops), 1.0)
        assert dp.flops(space, masks) <= bounded * space.flops * (1 + 1e-12)


def test_least_shares_by_name() -> None:
    """The longest name that fits a group counts; the others may shrink to one filter."""
    genome = make("residual", min_keep={"body": 0.5, "body.conv3": 0.9})
    counts = genome.space.kept_counts(genome.decode([0.0] * len(genome.layout)))
    found = dict(zip((g.name for g in genome.space.groups), counts.tolist(), strict=True))
    assert found == {"stem.0": 1, "body.conv1.0": 5, "body.conv2.0": 6, "body.conv3.0": 8}
    with pytest.raises(ConfigError, match=r"min_keep names 'body.conv33', which is no group; did you mean"):
        make("residual", min_keep={"body.conv33": 0.5})
    with pytest.raises(ConfigError, match=r"min_keep is 1.5; it is the share"):
        make("residual", min_keep=1.5)
    with pytest.raises(BudgetError, match=r"the shares that min_keep demands .* reachable minimum"):
        make("residual", min_keep=0.9, max_flops=0.3)
    with pytest.raises(BudgetError, match=r"4 filters a group \(round_to\)"):
        make("residual", min_keep=0.01, max_flops=0.01, round_to=4)


def test_keep_genes_are_shares_where_there_is_no_budget() -> None:
    genome = make("flatten", allocation="evolved")
    genes = genome.single("a", share=0.5)
    assert genome.space.kept_counts(genome.decode(genes)).tolist() == [3, 2, 4]
    assert genome.space.kept_counts(genome.decode(genome.single("a", share=1.0))).tolist() == [6, 5, 9]
    assert genome.space.kept_counts(genome.decode(genome.single("a", share=0.0))).tolist() == [1, 1, 1]


def test_all_of_the_budget_is_the_dense_network() -> None:
    for allocation in (a.name for a in ALLOCATIONS):
        genome = make("grouped_in_a_row", allocation=allocation, max_flops=1.0, round_to=8)
        assert all(keep.all() for keep in genome.decode(genome.single("b")).values())


@pytest.mark.parametrize("max_flops", [0.3, 0.5, None])
@pytest.mark.parametrize("name", ["resnet20_a", "resnet20_b"])
def test_stages_keep_equal_widths(name: str, max_flops: float | None) -> None:
    """Uniform channel pruning: the blocks of a stage alike, inside and in the residual stream; one gene a stage."""
    genome = make(name, allocation="stage", max_flops=max_flops)
    assert len(genome.layout.of_kind("keep")) == 3
    random.seed(1)
    for _ in range(10):
        counts = genome.space.kept_counts(genome.decode(dp.initBlend(list, genome.layout)))
        found = [set(counts[members].tolist()) for members in stages(genome.space)]
        assert len(found) == 3 and all(len(widths) == 1 for widths in found)
    groups = len(genome.space.groups)
    assert len(genome.affine("a", [1.0] * groups, [0.0] * groups)) == len(genome.layout)


@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.5, 0.8]))
@settings(max_examples=30)
def test_binary_search_stays_within_a_step_of_the_mean(seed: int, budget: float) -> None:
    """However unlike the groups' importance is; and what it keeps holds about the same share of it everywhere."""
    space = prepared("resnet20_a").space
    table = Table(space, seed)
    for number, by in enumerate(table.scores.values()):
        by["a"] = by["a"] ** (1 + 20 * (number % 2))  # in every second group a few filters hold all
    genome = dp.Genome(space, table, dp.cluster(table), allocation="binary", max_flops=budget)
    kept = space.kept_counts(genome.decode(genome.single("a"))) / space.sizes
    assert kept.max() - kept.min() <= 2 * STEP + 2 / space.sizes.min()
    assert kept[1::2].mean() < kept[::2].mean()


# ------------------------------------------------------------------ importance
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("normaliser", ["max", "sum", "standard", "rank"])
@pytest.mark.parametrize("criterion", ["a", "b", "c"])
def test_single_criterion_keeps_its_top(name: str, normaliser: str, criterion: str) -> None:
    space = prepared(name).space
    genome = make(name, allocation="uniform", max_flops=0.6, normaliser=normaliser)
    masks = genome.decode(genome.single(criterion))
    scores = Table(space).scores
    for g in space.groups:
        for keep, block in zip(
            masks[g.name].reshape(g.blocks, -1), scores[g.name][criterion].reshape(g.blocks, -1), strict=True
        ):
            top = sorted(range(len(block)), key=lambda i: (-block[i], i))[: keep.sum()]  # of equals the first stays
            assert sorted(top) == np.flatnonzero(keep).tolist()


def test_uniform_keeps_the_same_share(digits: Digits) -> None:
    genome = digits.genome(allocation="uniform", max_flops=0.5)
    shares = digits.space.kept_counts(genome.decode(genome.single("l1"))) / digits.space.sizes
    assert np.ptp(shares) <= 1 / 16 + 1e-9


def test_global_threshold_compares_layers(digits: Digits) -> None:
    """Every kept filter is worth at least as much as every pruned one (but for what fills the budget)."""
    genome = digits.genome(allocation="global", max_flops=0.5, normaliser="max")
    masks = genome.decode(genome.single("bn_scale"))
    normalised = {g: s["bn_scale"] / s["bn_scale"].max() for g, s in digits.scores.scores.items()}
    kept = np.concatenate([normalised[g][k] for g, k in masks.items()])
    gone = np.concatenate([normalised[g][~k] for g, k in masks.items()])
    assert (kept[:, None] < gone).any(axis=1).sum() <= len(digits.space.groups)


def test_blend_is_the_weighted_sum() -> None:
    """Candidate and factor of each cluster, by hand."""
    genome = make("flatten", allocation="uniform", max_flops=0.5, normaliser="max")
    scores = Table(genome.space).scores
    genes: list[float] = []
    wanted = {}
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
        wanted[g.name] = blend
    masks = genome.decode(genes)
    for name, blend in wanted.items():
        assert set(np.argsort(-blend)[: masks[name].sum()]) == set(np.flatnonzero(masks[name]))


@given(st.integers(0, 10_000), st.sampled_from([2.0**-9, 2.0**-3, 0.5]))
@settings(max_examples=30)
def test_factors_count_only_up_to_scale(seed: int, scale: float) -> None:
    """In every layer on its own, with a global ranking too."""
    for allocation in ("uniform", "global", "evolved"):
        genome = make("residual", allocation=allocation, max_flops=0.5)
        random.seed(seed)
        genes = dp.initBlend(list, genome.layout)
        chosen = random.randrange(len(genome.space.groups))
        scaled = [
            g * scale if kind == "factor" and locus == chosen else g
            for g, kind, locus in zip(genes, genome.layout.kinds, genome.layout.loci, strict=True)
        ]
        assert genome.decode(scaled) == genome.decode(genes)


@pytest.mark.parametrize("options", [{}, {"candidates": "medoid"}, {"allocation": "stage"}, {"allocation": "uniform"}])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20)
def test_blend_says_what_ranks_the_filters(options: dict[str, Any], seed: int) -> None:
    """The scores mixed by its shares are the importance, for each group."""
    genome = make("residual", max_flops=0.5, **options)
    random.seed(seed)
    genes = dp.initBlend(list, genome.layout)
    tables, importance = Table(genome.space).scores, genome.importance(genes)
    for name, blend in genome.blend(genes).items():
        assert sum(blend.values()) == pytest.approx(1) and len(blend) == len(genome.clusters[name].members)
        raised = {c: tables[name][c] - min(0, tables[name][c].min()) for c in blend}
        mixed = sum(share * raised[c] / raised[c].max() for c, share in blend.items())
        np.testing.assert_allclose(mixed, importance[name], atol=1e-12)


def test_blend_of_a_single_criterion_and_of_nothing() -> None:
    genome = make("residual")
    alone = genome.blend(genome.single("b"))
    assert all(blend["b"] == 1 and sum(blend.values()) == 1 for blend in alone.values())
    silent = [
        0.0 if kind == "factor" else gene for kind, gene in zip(genome.layout.kinds, genome.single("b"), strict=True)
    ]
    assert all(len(set(blend.values())) == 1 for blend in genome.blend(silent).values())
    with pytest.raises(ConfigError, match="the individual has 1 genes"):
        genome.blend([0.5])


def test_all_factors_zero_is_an_even_blend() -> None:
    genome = make("residual", max_flops=0.5)
    genes = genome.single("a")
    zero, even = ([v if k == "factor" else 1.0 if k == "keep" else 0 for k in genome.layout.kinds] for v in (0.0, 1.0))
    assert genome.decode(zero) == genome.decode(even)
    assert len(genes) == len(zero)


def test_single_falls_back_to_the_medoid_where_a_criterion_is_absent() -> None:
    space = prepared("residual").space
    table = Table(space)
    del table.scores["stem.0"]["b"]
    genome = dp.Genome(space, table, dp.cluster(table), allocation="uniform", max_flops=0.5)
    first = genome.clusters["stem.0"].medoids[0]
    assert np.array_equal(genome.decode(genome.single("b"))["stem.0"], genome.decode(genome.single(first))["stem.0"])


# ------------------------------------------------------------------ messages
@pytest.mark.parametrize("round_to", [1, 4])
@pytest.mark.parametrize("name", ["option_a", "residual", "grouped", "shuffle", "channels_last"])
def test_budget_below_the_minimum_names_one_that_works(name: str, round_to: int) -> None:
    with pytest.raises(BudgetError, match=r"max_flops is 0.001, but .* that is the reachable minimum") as caught:
        make(name, max_flops=0.001, round_to=round_to)
    found = re.search(r"raise max_flops to ([\d.]+) or above", str(caught.value))
    assert found
    named = float(found[1])
    genome = make(name, max_flops=named, round_to=round_to)
    assert "(round_to)" in str(caught.value) if round_to > 1 else "one filter a group" in str(caught.value)
    assert genome.min_flops <= named <= genome.min_flops + 1e-3
    fewest = dp.flops(genome.space, genome.decode(genome.single("a")))
    assert fewest <= named * genome.space.flops


@pytest.mark.parametrize("budget", [0, -0.5, 1.0001, 50, float("nan"), "half", True])
def test_illegal_budgets(budget: Any) -> None:
    if budget is True:
        make("plain", max_flops=budget)  # 1: all of it
        return
    with pytest.raises(BudgetError, match=r"max_flops is .*; it is the kept share of the FLOPs, above 0 and at most 1"):
        make("plain", max_flops=budget)


def test_messages() -> None:
    genome = make("plain", max_flops=0.5)
    genes = genome.single("a")
    with pytest.raises(ConfigError, match=rf"the individual has {len(genes) - 1} genes; this genome has {len(genes)}"):
        genome.decode(genes[1:])
    with pytest.raises(ConfigError, match=r"gene 2 of the individual is NaN"):
        genome.decode([*genes[:2], float("nan"), *genes[3:]])
    with pytest.raises(ConfigError, match=r"gene 1 of the individual"):
        genome.decode([genes[0], 0.5 + 1j, *genes[2:]])  # what mutPolynomialBounded makes outside of the bounds
    with pytest.raises(RegistryError, match=r"criterion 'a3' was not scored; .*known: a, a2, b, c"):
        genome.single("a3")
    with pytest.raises(RegistryError, match=r"unknown allocation 'evolve'; did you mean 'evolved'\?"):
        make("plain", allocation="evolve")
    with pytest.raises(RegistryError, match=r"unknown normaliser 'maximum'; .*known: max, rank, standard, sum"):
        make("plain", normaliser="maximum")
    for round_to in (0, 2.0, -8):
        with pytest.raises(ConfigError, match=rf"round_to is {round_to}; give a whole number from 1 up"):
            make("plain", round_to=round_to)
    table = Table(prepared("residual").space)
    with pytest.raises(ConfigError, match="belong to different networks; compute them from one space"):
        dp.Genome(prepared("plain").space, table, dp.cluster(table))


def test_multiples_that_no_group_has() -> None:
    with pytest.raises(ConfigError, match=r"round_to is 64, which leaves every group dense: the widest has 12 filters"):
        make("residual", round_to=64)
