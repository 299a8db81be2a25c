"""Budgets: fixed, ranges, free; illegal ones, and ones that cannot be reached."""

from __future__ import annotations

import re
from typing import Any

import pytest

import deap_prune as dp
from deap_prune.blending import Budget
from deap_prune.blending.budget import check_budget
from deap_prune.errors import BudgetError
from tests.helpers.random_scores import make


@pytest.mark.parametrize(
    ("max_flops", "kind", "shares"),
    [(0.5, "is_fixed", (0.5,)), (1, "is_fixed", (1,)), ((0.3, 0.7), "is_range", (0.3, 0.7)), (None, "is_free", ())],
)
def test_kinds_of_budgets(max_flops: Any, kind: str, shares: tuple[float, ...]) -> None:
    budget = Budget.of(max_flops)
    assert [name for name in ("is_fixed", "is_range", "is_free") if getattr(budget, name)] == [kind]
    assert budget.shares == shares and budget.cost == "flops"
    assert budget.max_flops == max_flops and Budget.of(budget) is budget
    assert budget.flops_or(0.4) == (max_flops if kind == "is_fixed" else 0.4)


def test_a_range_of_equal_shares_is_not_a_fixed_budget() -> None:
    """It has a budget gene, as every range."""
    budget = Budget.of([0.5, 0.5])
    assert budget.is_range and not budget.is_fixed and budget == Budget(lowest=0.5, highest=0.5)


@pytest.mark.parametrize("bad", [(0.7, 0.3), (0.3,), (0.3, 0.5, 0.7), (), (0.3, None), (None, 0.3), (None, None)])
def test_illegal_ranges(bad: Any) -> None:
    with pytest.raises(BudgetError, match=r"max_flops is \(.*\); a range is a pair \(lowest, highest\)"):
        Budget.of(bad)
    with pytest.raises(BudgetError, match="max_flops is"):
        make("plain", max_flops=bad)


@pytest.mark.parametrize("bad", [(0.0, 0.5), (0.5, 1.2), ("few", "many")])
def test_illegal_shares_in_a_range(bad: Any) -> None:
    with pytest.raises(BudgetError, match=r"max_flops is .*; it is the kept share of the FLOPs"):
        Budget.of(bad)


def test_an_unreachable_end_of_a_range() -> None:
    with pytest.raises(BudgetError, match=r"max_flops is 1e-05 \([\d,]+\), but .* reachable minimum"):
        make("residual", max_flops=(1e-5, 0.5))


def test_messages_name_the_cost() -> None:
    with pytest.raises(BudgetError, match="max_params is 2; it is the kept share of the params"):
        Budget(cost="params", highest=2)
    with pytest.raises(BudgetError, match=r"max_params is 0.1, but .* cost 0.2000 of the params.* raise max_params"):
        check_budget(Budget(cost="params", highest=0.1), 0.2)


@pytest.mark.parametrize("round_to", [1, 4])
@pytest.mark.parametrize("name", ["option_a", "residual", "grouped", "shuffle", "channels_last"])
def test_error_below_the_minimum_names_a_budget_that_works(name: str, round_to: int) -> None:
    with pytest.raises(
        BudgetError, match=r"max_flops is 0.001 \([\d,]+\), but .* that is the reachable minimum"
    ) as caught:
        make(name, max_flops=0.001, round_to=round_to)
    match = re.search(r"raise max_flops to ([\d.]+) or above", str(caught.value))
    assert match
    minimum = float(match[1])
    genome = make(name, max_flops=minimum, round_to=round_to)
    assert "(round_to)" in str(caught.value) if round_to > 1 else "one filter a group" in str(caught.value)
    assert genome.min_flops <= minimum <= genome.min_flops + 1e-3
    fewest = dp.flops(genome.space, genome.decode(genome.single("a")))
    assert fewest <= minimum * genome.space.flops


@pytest.mark.parametrize("budget", [0, -0.5, 1.0001, 50, float("nan"), "half"])
def test_illegal_shares(budget: Any) -> None:
    with pytest.raises(BudgetError, match=r"max_flops is .*; it is the kept share of the FLOPs, above 0 and at most 1"):
        make("plain", max_flops=budget)
