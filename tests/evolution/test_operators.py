"""What each operator changes; contracts/test_registries.py tests that all keep length, bounds and type."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Digits
from deap import tools
from hypothesis import given, settings
from hypothesis import strategies as st

import deap_prune as dp
from deap_prune.blending.layout import stages_of
from deap_prune.errors import ConfigError, RegistryError
from tests.helpers.fakes import Fake
from tests.helpers.pruning import prepared


def layout_of(layers: int = 4) -> dp.operators.Layout:
    """Each layer: two clusters of three candidates and a keep gene; two stages; later layers cost more."""
    kinds = ("candidate", "factor", "candidate", "factor", "keep") * layers
    high = (2.0, 1.0, 2.0, 1.0, 1.0) * layers
    loci = tuple(i for i in range(layers) for _ in range(5))
    stages = tuple(i * 2 // layers for i in loci)
    costs = tuple(0.1 * (i + 1) for i in loci)
    return dp.operators.Layout(kinds, (0.0,) * len(kinds), high, loci, stages, costs)


LAYOUT = layout_of()
Cross = Callable[..., tuple[list[float], list[float]]]


def draw(seed: int) -> list[float]:
    random.seed(seed)
    return dp.operators.initBlend(list, LAYOUT)


# ------------------------------------------------------------------ crossover
@pytest.mark.parametrize(
    ("cross", "parts"), [(dp.operators.cxBlendLayers, "loci"), (dp.operators.cxBlendStages, "stages")]
)
def test_exchange_moves_whole_parts(cross: Cross, parts: str) -> None:
    seen = set()
    for seed in range(40):
        random.seed(seed)
        a, b = cross([0.0] * len(LAYOUT), [1.0] * len(LAYOUT), LAYOUT)
        assert [x + y for x, y in zip(a, b, strict=True)] == [1.0] * len(LAYOUT)
        genes = {part: {g for g, at in zip(a, getattr(LAYOUT, parts), strict=True) if at == part} for part in (0, 1)}
        assert all(len(values) == 1 for values in genes.values())
        seen.add((*genes[0], *genes[1]))
    assert len(seen) == 4


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_widths_are_mixed_and_the_rest_changes_places(seed: int) -> None:
    one, two = draw(seed), draw(seed + 1)
    a, b = dp.operators.cxBlendWidths(one[:], two[:], LAYOUT, alpha=0.0)
    for start, stop in LAYOUT.spans:
        keep = stop - 1
        now, stayed, moved = ((x[start:keep], y[start:keep]) for x, y in ((a, b), (one, two), (two, one)))
        assert now in (stayed, moved)
        assert min(one[keep], two[keep]) <= a[keep] <= max(one[keep], two[keep])
        assert a[keep] + b[keep] == pytest.approx(one[keep] + two[keep])


@given(one=st.integers(0, 10**6), two=st.integers(0, 10**6))
@settings(max_examples=30)
def test_mixing_keeps_candidates_with_their_factors(one: int, two: int) -> None:
    """Where candidates differ, the pairs change places or stay; no new gene appears."""
    a, b = draw(one), draw(two)
    before = a[:], b[:]
    for cross in (dp.operators.cxBlendMix, dp.operators.cxBlendSBX):
        x, y = cross(a[:], b[:], LAYOUT)
        for c, f in LAYOUT.pairs:
            if before[0][c] != before[1][c]:
                pairs = {(before[0][c], before[0][f]), (before[1][c], before[1][f])}
                assert {(x[c], x[f]), (y[c], y[f])} == pairs
            else:
                assert x[c] == y[c] == before[0][c]


def test_mixing_is_where_the_parents_are() -> None:
    """BLX-0 stays between the parents; their mean stays (but for what the bounds cut)."""
    a, b = draw(1), draw(2)
    x, y = dp.operators.cxBlendMix(a[:], b[:], LAYOUT, alpha=0.0)
    for i in LAYOUT.of_kind("keep"):
        assert min(a[i], b[i]) <= x[i] <= max(a[i], b[i])
        assert x[i] + y[i] == pytest.approx(a[i] + b[i])
    wide = [abs(dp.operators.cxBlendMix([0.5] * 20, [0.6] * 20, LAYOUT, alpha=2.0)[0][4] - 0.55) for _ in range(50)]
    assert max(wide) > 0.1


def test_sbx_spreads_by_eta() -> None:
    def spread(eta: float) -> float:
        random.seed(0)
        return statistics.stdev(
            dp.operators.cxBlendSBX([0.4] * 20, [0.6] * 20, LAYOUT, eta=eta)[0][4] for _ in range(300)
        )

    near = [dp.operators.cxBlendSBX([0.4] * 20, [0.6] * 20, LAYOUT, eta=1000.0)[0][4] for _ in range(50)]
    assert all(min(abs(g - 0.4), abs(g - 0.6)) < 0.01 for g in near)
    assert spread(2.0) > spread(50.0)


# ------------------------------------------------------------------ mutation
@pytest.mark.parametrize(
    ("mutate", "kinds"),
    [
        (dp.operators.mutBlendFactors, {"factor"}),
        (dp.operators.mutBlendCandidates, {"candidate"}),
        (dp.operators.mutBlendTrade, {"keep"}),
    ],
)
def test_mutations_touch_their_own_kind(mutate: Callable[..., tuple[list[float]]], kinds: set[str]) -> None:
    for seed in range(20):
        before = draw(seed)
        (after,) = mutate(before[:], LAYOUT)
        changed = {LAYOUT.kinds[i] for i in range(len(LAYOUT)) if before[i] != after[i]}
        assert changed == kinds


@given(seed=st.integers(0, 10**6), indpb=st.floats(0, 1), sigma=st.floats(0.01, 20))
@settings(max_examples=50)
def test_a_trade_keeps_the_cost(seed: int, indpb: float, sigma: float) -> None:
    before = draw(seed)
    (after,) = dp.operators.mutBlendTrade(before[:], LAYOUT, indpb=indpb, sigma=sigma)
    cost = lambda genes: sum(genes[i] * LAYOUT.costs[i] for i in LAYOUT.of_kind("keep"))  # noqa: E731
    assert cost(after) == pytest.approx(cost(before), abs=1e-9)
    assert all(0 <= after[i] <= 1 for i in LAYOUT.of_kind("keep"))


def test_factors_move_by_a_log_normal_step() -> None:
    random.seed(0)
    layout = dp.operators.Layout(("factor",), (0.0,), (1e9,), (0,))
    steps = [np.log(dp.operators.mutBlendFactors([1.0], layout, indpb=1.0, sigma=0.5)[0][0]) for _ in range(2000)]
    near = [s for s in steps if abs(s) < 5]  # a tenth is drawn anew, uniformly: far above
    assert 0.85 < len(near) / len(steps) < 0.95
    assert abs(np.mean(near)) < 0.05 and 0.45 < np.std(near) < 0.55


def test_widths_move_by_log_normal_steps_together_and_apart() -> None:
    """Three times in ten all widths are multiplied alike; single ones at any time; a width of 0 comes back."""
    random.seed(0)
    layout = dp.operators.Layout(("keep",) * 5, (0.0,) * 5, (1e9,) * 5, tuple(range(5)))
    steps = np.log([dp.operators.mutBlend([1.0] * 5, layout, indpb=0.0, sigma=0.5)[0] for _ in range(2000)])
    alone = (steps != 0).sum(axis=1) == 1  # no gene was drawn, so one was chosen
    assert 0.65 < alone.mean() < 0.75
    together = np.sort(steps[~alone], axis=1)
    common = np.median(together, axis=1)
    assert (np.isclose(together, common[:, None]).sum(axis=1) == 4).all()
    assert 0.45 < common.std() < 0.55 and 0.45 < steps[alone].sum(axis=1).std() < 0.55
    assert dp.operators.mutBlend([0.0], dp.operators.Layout(("keep",), (0.0,), (1.0,), (0,)))[0][0] > 0


def test_a_factor_of_zero_comes_back() -> None:
    layout = dp.operators.Layout(("factor",), (0.0,), (1.0,), (0,))
    assert dp.operators.mutBlendFactors([0.0], layout)[0][0] > 0


# ------------------------------------------------------------------ guards
def test_operators_clip_genes_outside_their_bounds() -> None:
    """DEAP's mutGaussian on our genes, then ours; NaN too."""
    for cross in (dp.operators.cxBlendMix, dp.operators.cxBlendSBX):
        a, b = cross([9.0] * 20, [-9.0] * 20, LAYOUT)
        assert all(lo <= g <= hi for ind in (a, b) for g, lo, hi in zip(ind, LAYOUT.low, LAYOUT.high, strict=True))
    for mutate in (
        dp.operators.mutBlend,
        dp.operators.mutBlendTrade,
        dp.operators.mutBlendFactors,
        dp.operators.mutBlendCandidates,
    ):
        (a,) = mutate([float("nan"), 7.0, 0.4, -3.0, 5.0] * 4, LAYOUT)
        assert all(lo <= g <= hi for g, lo, hi in zip(a, LAYOUT.low, LAYOUT.high, strict=True))
        assert all(a[i] == int(a[i]) for i in LAYOUT.of_kind("candidate"))


def test_complex_genes_are_named() -> None:
    """mutPolynomialBounded outside the bounds: TypeError or complex genes in DEAP; named here, and avoidable."""
    with pytest.raises(ConfigError, match=r"gene 2 of the individual is \(1\+2j\); .*decorate your operators with"):
        dp.operators.mutBlend([0.0, 0.5, 1 + 2j, *[0.5] * 17], LAYOUT)
    options = {"eta": 20.0, "low": list(LAYOUT.low), "up": list(LAYOUT.high), "indpb": 1.0}
    safe = dp.operators.bounded(LAYOUT)(tools.mutPolynomialBounded)
    (after,) = safe([5.0] * len(LAYOUT), **options)
    assert all(lo <= g <= hi for g, lo, hi in zip(after, LAYOUT.low, LAYOUT.high, strict=True))
    wild = dp.operators.bounded(LAYOUT)(tools.mutGaussian)([0.5] * len(LAYOUT), mu=0, sigma=9, indpb=1.0)[0]
    assert all(lo <= g <= hi for g, lo, hi in zip(wild, LAYOUT.low, LAYOUT.high, strict=True))


def test_another_length_is_named() -> None:
    with pytest.raises(ConfigError, match="the individual has 3 genes; this layout has 20"):
        dp.operators.mutBlend([0.1, 0.2, 0.3], LAYOUT)


# ------------------------------------------------------------------ layout and initialisers
def test_stages_from_names() -> None:
    resnet = ["conv1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1"]
    assert stages_of(resnet, [16, 16, 16, 32]) == [0, 1, 1, 2]
    wrapped = [f"backbone.{name}" for name in resnet]
    assert stages_of(wrapped, [16, 16, 16, 32]) == [0, 1, 1, 2]
    assert stages_of(["features.0", "features.3", "features.7"], [64, 64, 128]) == [0, 0, 1]
    assert stages_of(["conv"], [4]) == [0]


def test_a_layout_of_the_four_old_fields() -> None:
    layout = dp.operators.Layout(("keep", "keep"), (0.0, 0.0), (1.0, 1.0), (0, 1))
    assert layout.stages == (0, 1) and layout.costs == (1.0, 1.0) and layout.stage_spans == (((0, 1),), ((1, 2),))


def test_costs_are_first_order_flops(digits: Digits) -> None:
    layout, space = digits.genome().layout, digits.space
    for i, locus in enumerate(layout.loci):
        without = [0 if g == locus else size for g, size in enumerate(space.sizes)]
        assert layout.costs[i] == pytest.approx(1 - int(space.flops_of(without)) / space.flops)


def test_single_is_that_criterion(digits: Digits) -> None:
    genome = digits.genome(allocation="uniform", max_flops=0.5)
    individual = dp.operators.initBlendSingle(list, genome, "l1", 1.0)
    assert individual == genome.single("l1")
    with pytest.raises(RegistryError, match=r"criterion 'l7' was not scored; did you mean"):
        dp.operators.initBlendSingle(list, genome, "l7")


def test_affine_widths_are_the_global_ranking(digits: Digits) -> None:
    """Scale 1, shift 0 is the global threshold on the criterion itself: the same widths, but for the last steps."""
    evolved, ranked = digits.genome(max_flops=0.5), digits.genome(allocation="global", max_flops=0.5)
    ones, zeros = [1.0] * len(digits.space.groups), [0.0] * len(digits.space.groups)
    expected = digits.space.kept_counts(ranked.decode(ranked.single("l2")))
    kept = digits.space.kept_counts(evolved.decode(evolved.affine("l2", ones, zeros)))
    assert np.abs(kept - expected).max() <= 2
    shifted = digits.space.kept_counts(evolved.decode(evolved.affine("l2", ones, [9.0, *zeros[1:]])))
    assert shifted[0] == digits.space.sizes[0] > kept[0]
    with pytest.raises(ConfigError, match="allocation 'uniform' has no keep genes; choose 'evolved'"):
        digits.genome(allocation="uniform").affine("l2", ones, zeros)


def test_a_child_differs_in_few_genes_however_many_there_are() -> None:
    """Six on average where a tenth would be more: a child of many changes is worse than its parent."""
    for layers, expected in ((4, 0.1 * 16), (40, 6 * 160 / 200)):  # widths may change all together
        space = prepared("residual").space
        parts = {"decode_many": list, "criteria": ("a",), "single": lambda name: [0.0], "space": space, "budget": None}
        genome = SimpleNamespace(layout=layout_of(layers), **parts)
        toolbox = dp.make_toolbox(genome, Fake(space))
        parent = [0.5 if kind != "candidate" else 1 for kind in genome.layout.kinds]
        places = [i for i, kind in enumerate(genome.layout.kinds) if kind != "keep"]
        children = [toolbox.mutate(parent[:])[0] for _ in range(400)]
        changed = [sum(child[i] != parent[i] for i in places) for child in children]
        assert statistics.mean(changed) == pytest.approx(expected, rel=0.2)
