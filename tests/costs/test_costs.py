"""Costs: functions of kept counts, objectives by their name, and what they agree with."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deap_prune as dp
from deap_prune.costs import COSTS, bound_cost, limit_of
from deap_prune.errors import BudgetError, ConfigError, RegistryError
from deap_prune.fitness import OBJECTIVES
from tests.helpers.latency import synthetic_table
from tests.helpers.pruning import draw_masks, prepared
from tests.helpers.random_scores import SPACES

NAMES = ("flops", "params", "memory", "latency")


def space_of(name: str) -> dp.PruningSpace:
    space = prepared(name).space
    return synthetic_table(space).on(space)


@pytest.fixture
def filters() -> Iterator[None]:
    @dp.register_cost("filters", unit="bytes")
    def _filters(space: dp.PruningSpace) -> object:
        """Filters of all groups."""
        return lambda kept: np.sum(kept, axis=-1)

    yield
    COSTS.remove("filters")


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("cost", NAMES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=5)
def test_a_population_costs_what_its_members_do(name: str, cost: str, seed: int) -> None:
    space = space_of(name)
    function = bound_cost(cost, space)
    counts = np.random.default_rng(seed).integers(1, space.sizes + 1, (2, 3, len(space.sizes)))
    amounts = function(counts)
    assert amounts.shape == (2, 3)
    np.testing.assert_allclose(amounts, [[float(function(one)) for one in row] for row in counts], rtol=1e-12)
    wider = np.minimum(counts + 1, space.sizes)
    singly = counts[..., None, :] + np.eye(len(space.sizes), dtype=int) * (wider - counts)[..., None, :]
    np.testing.assert_allclose(function.widened(counts, wider), function(singly), rtol=1e-12)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("cost", NAMES)
def test_costs_take_widths_that_are_not_whole(name: str, cost: str) -> None:
    space = space_of(name)
    function = bound_cost(cost, space)
    low, high = (float(function(counts)) for counts in (space.sizes * 0.4, space.sizes * 0.4 + 0.5))
    assert 0 < low <= high <= function.dense


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("cost", NAMES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=5)
def test_wider_networks_cost_no_less(name: str, cost: str, seed: int) -> None:
    space = space_of(name)
    function, counts = bound_cost(cost, space), np.random.default_rng(seed).integers(1, space.sizes + 1)
    wider = np.minimum(counts + 1, space.sizes)
    assert COSTS[cost].monotone or cost == "latency"
    assert (function.widened(counts, wider) >= function(counts) - 1e-9).all()


@pytest.mark.parametrize("name", SPACES)
def test_memory_of_the_slim_network(name: str) -> None:
    """The closed form is the count on the slimmed network, traced anew."""
    case = prepared(name)
    masks = draw_masks(case.space, seed=4)
    again = dp.trace(dp.slim(case.model, case.space, masks), case.inputs)
    memory = bound_cost("memory", case.space)
    assert float(memory(case.space.kept_counts(masks))) == pytest.approx(bound_cost("memory", again).dense, rel=1e-9)


def test_memory_by_hand() -> None:
    """Images, a residual stream and a branch are in memory together; a view is not counted twice."""
    import torch
    from torch import nn

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.last((x + self.head(self.branch(x).relu_())).flatten(2).view_as(x))

    space = dp.trace(Residual().eval(), torch.randn(2, 3, 5, 5))
    plane = 4 * 25
    assert bound_cost("memory", space).dense == plane * (3 + 4 + 8 + 4)
    assert float(space.activations.written(space.sizes)) == plane * (8 + 4)  # type: ignore[union-attr]


# ------------------------------------------------------------------ names
@pytest.mark.usefixtures("filters")
def test_a_registered_cost_is_an_objective_and_a_budget() -> None:
    space = prepared("residual").space
    assert "filters" in OBJECTIVES and OBJECTIVES["filters"].worst == 1.0 and not OBJECTIVES["filters"].maximise
    assert dp.objectives()["filters"] == "Kept share of the cost: filters of all groups."
    masks = draw_masks(space, seed=1)
    evaluate = dp.Evaluator(prepared("residual").model, space, objectives=("filters", "flops"), recalibrate=None)
    counts = space.kept_counts(masks)
    assert evaluate(masks) == (counts.sum() / space.sizes.sum(), dp.flops(space, masks) / space.flops)
    bound = pickle.loads(pickle.dumps(bound_cost("filters", space)))
    assert float(bound(counts)) == counts.sum()
    with pytest.raises(RegistryError, match="the objective 'filters' is registered already"):
        dp.register_objective("filters", maximise=True, worst=0)(lambda out, y, dense: out)
    assert limit_of("2 kB", "filters") == (None, 2000)


def test_an_unknown_unit() -> None:
    with pytest.raises(ConfigError, match="unit is 'km'; it is '', 'ms', 'bytes'"):
        dp.register_cost("distance", unit="km")


def test_latency_needs_a_table() -> None:
    with pytest.raises(ConfigError, match=r"a latency budget needs a latency table: make one with 'deap-prune latency"):
        bound_cost("latency", prepared("residual").space)


@pytest.mark.parametrize(
    ("value", "cost", "limit"),
    [
        (0.5, "flops", (0.5, None)),
        ("0.5", "flops", (0.5, None)),
        (1, "params", (1, None)),
        ("150M", "flops", (None, 150e6)),
        ("1.5 G", "flops", (None, 1.5e9)),
        ("20000", "params", (None, 20000.0)),
        ("4 ms", "latency", (None, 4.0)),
        ("250us", "latency", (None, 0.25)),
        ("0.5 ms", "latency", (None, 0.5)),
        ("2 MiB", "memory", (None, 2.0**21)),
    ],
)
def test_limits(value: object, cost: str, limit: object) -> None:
    assert limit_of(value, cost) == pytest.approx(limit)


@pytest.mark.parametrize("bad", ["4 ms", "many", "-3M", "0", "", "1e400M", "4 4", True, 1.5, 0, float("nan"), [0.5]])
def test_illegal_limits(bad: object) -> None:
    with pytest.raises(BudgetError, match=r"max_params is .*; it is the kept share of the params, above 0 and"):
        limit_of(bad, "params")
