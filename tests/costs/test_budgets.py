"""Law 4 for every cost: inside all budgets, and tight."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deap_prune as dp
from deap_prune.blending import ALLOCATIONS, Budget
from deap_prune.costs import bound_cost
from deap_prune.errors import BudgetError, ConfigError
from tests.helpers.latency import synthetic_table
from tests.helpers.pruning import prepared
from tests.helpers.random_scores import GENE, SPACES, RandomScores, make

ALLOCATED = [allocation.name for allocation in ALLOCATIONS if not allocation.by_stage]


def genome_on(space: dp.PruningSpace, **options: Any) -> dp.Genome:
    scores = RandomScores(space)
    return dp.Genome(space, scores, dp.cluster(scores, n_clusters=2), **options)


def assert_law_4(space: dp.PruningSpace, masks: dp.Masks, shares: dict[str, float]) -> None:
    """Inside all budgets; no group can keep one more filter of each block inside all of them."""
    counts = space.kept_counts(masks)
    wider = np.minimum(counts + [group.blocks for group in space.groups], space.sizes)
    fits = wider > counts
    for name, share in shares.items():
        cost = bound_cost(name, space)
        limit = share * cost.dense
        assert float(cost(counts)) <= limit * (1 + 1e-12), f"{name} is over its budget"
        fits &= cost.widened(counts, wider) <= limit * (1 - 1e-12)
    assert not fits.any(), f"{[g.name for g, fit in zip(space.groups, fits, strict=True) if fit]} could keep more"


@pytest.mark.parametrize("costs", [("params",), ("flops", "params"), ("latency",), ("params", "latency", "memory")])
@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
@settings(max_examples=8)
def test_law_4_for_every_cost(name: str, costs: tuple[str, ...], data: st.DataObject) -> None:
    plain = prepared(name).space
    space = synthetic_table(plain, seed=data.draw(st.integers(0, 99))).on(plain)
    fewest, shares = [group.blocks for group in space.groups], {}
    for cost in costs:
        bound = bound_cost(cost, space)
        least = float(bound(fewest)) / bound.dense
        shares[cost] = min(1.0, least * (1 + 1e-9) + data.draw(st.floats(0, 1)) * (1 - least))
    allocation = data.draw(st.sampled_from(ALLOCATED))
    limits = {f"max_{cost}": share for cost, share in shares.items() if cost != "memory"}
    further = [Budget("memory", highest=shares["memory"])] if "memory" in shares else []
    genome = genome_on(space, allocation=allocation, budgets=further, **limits)
    assert "budget" not in genome.layout.kinds
    genes = data.draw(st.lists(GENE, min_size=len(genome.layout), max_size=len(genome.layout)))
    assert_law_4(space, genome.decode(genes), shares)


def test_a_range_of_flops_under_a_fixed_budget() -> None:
    genome = make("residual", max_flops=(0.3, 0.8), max_params=0.5)
    assert genome.budget.is_range and [budget.cost for budget in genome.other_budgets] == ["params"]
    for share in (0.3, 0.8):
        masks = genome.decode([*[0.5] * (len(genome.layout) - 1), share])
        assert_law_4(genome.space, masks, {"flops": share, "params": 0.5})


def test_a_budget_that_does_not_bind_changes_nothing() -> None:
    one, both = make("option_a", max_flops=0.5), make("option_a", max_flops=0.5, max_params=1.0)
    rng = np.random.default_rng(0)
    individuals = rng.random((20, len(one.layout))).tolist()
    assert one.decode_many(individuals) == both.decode_many(individuals)


@pytest.mark.parametrize("cost", ["flops", "params", "latency"])
def test_amounts_are_shares(cost: str) -> None:
    plain = prepared("residual").space
    space = synthetic_table(plain).on(plain)
    dense = bound_cost(cost, space).dense
    amount = round(0.6 * dense, 3)
    text = f"{amount} ms" if cost == "latency" else f"{amount}"
    genome = genome_on(space, **{f"max_{cost}": text})
    assert genome.budget.cost == cost and genome.budget.is_fixed
    assert_law_4(space, genome.decode([0.5] * len(genome.layout)), {cost: amount / dense})
    with pytest.raises(BudgetError, match=rf"max_{cost} is .*, but the dense network needs only .*; give less"):
        genome_on(space, **{f"max_{cost}": f"{10 * dense} ms" if cost == "latency" else f"{10 * dense:.0f}"})


def test_illegal_budgets() -> None:
    with pytest.raises(BudgetError, match=r"max_params is \(0.3, 0.5\); give a number, or text"):
        make("residual", max_params=(0.3, 0.5))
    with pytest.raises(
        BudgetError, match=r"max_params is 0.001 \([\d,]+\), but .* of the params: that is the reachable minimum"
    ):
        make("residual", max_params=0.001)
    with pytest.raises(ConfigError, match="a latency budget needs a latency table"):
        make("residual", max_latency=0.5)
    with pytest.raises(ConfigError, match="round_to='auto' reads a latency table; give latency_table"):
        make("residual", round_to="auto")


def test_messages_on_latency_have_milliseconds() -> None:
    """A limit in milliseconds is answered in milliseconds, beside the share."""
    plain = prepared("residual").space
    space = synthetic_table(plain).on(plain)
    dense = bound_cost("latency", space).dense
    amount = 1e-3 * dense
    with pytest.raises(BudgetError) as caught:
        genome_on(space, max_latency=f"{amount} ms")
    first, least = re.findall(r"([\d.e-]+) \(([\d.e-]+) ms\)", str(caught.value).replace("of the latency", ""))
    assert float(first[0]) == pytest.approx(1e-3, rel=1e-2) and float(first[1]) == pytest.approx(amount, rel=1e-2)
    assert float(least[1]) == pytest.approx(float(least[0]) * dense, rel=1e-2)
    genome_on(space, max_latency=float(least[0]))


def test_round_to_auto() -> None:
    plain = prepared("residual").space
    space = synthetic_table(plain, step=4).on(plain)
    genome = genome_on(space, max_latency=0.6, round_to="auto")
    counts = space.kept_counts(genome.decode([0.4] * len(genome.layout)))
    liked = space.latency_of.steps  # type: ignore[union-attr]
    assert liked.tolist() == [4 if size >= 8 else 2 for size in space.sizes]
    assert all(c % step == 0 or c == size for c, step, size in zip(counts, liked, space.sizes, strict=True))
