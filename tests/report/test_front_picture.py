"""Pictures of fronts: their axes."""

from __future__ import annotations

from typing import Any

import pytest

import deap_prune as dp
from deap_prune.plot import plot_front


def solution(accuracy: float, flops: float) -> dp.Solution:
    """A solution without masks."""
    values = {"accuracy": accuracy, "flops": flops}
    return dp.Solution(values, dp.Masks({}), round(1000 * flops), 50, ())


def front_of(*solutions: dp.Solution) -> dp.ParetoFront:
    """A front with a dense network of accuracy 0.95."""
    dense = {"flops": 1000, "params": 100, "values": {"accuracy": 0.95, "flops": 1.0}}
    return dp.ParetoFront.of(solutions, {"accuracy": 1.0, "flops": -1.0}, dense, {})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    figures: list[Any] = []
    monkeypatch.setattr("deap_prune.plot._save", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize(("cheapest", "scale"), [(0.02, "log"), (0.1, "log"), (0.3, "linear")])
def test_costs_over_a_decade_are_drawn_on_a_logarithmic_axis(drawn: list[Any], cheapest: float, scale: str) -> None:
    plot_front(front_of(solution(0.9, 0.8), solution(0.5, cheapest)), "front.png", points={"l1": [(0.4, 0.5)]})
    axes = drawn[0].axes[0]
    assert axes.get_xscale() == scale and axes.get_yscale() == "linear"
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {
        "blends (front)": [[cheapest, 0.5], [0.8, 0.9]],
        "l1": [[0.5, 0.4]],
        "dense network": [[1.0, 0.95]],
    }
    low, high = axes.get_xlim()
    labels = [text.get_text() for text in axes.get_xticklabels() if low <= text.get_position()[0] <= high]
    assert "0.5" in labels or scale == "linear"


def test_a_front_with_a_cost_of_zero_has_a_linear_axis(drawn: list[Any]) -> None:
    plot_front(front_of(solution(0.9, 0.8), solution(0.5, 0.0)), "front.png")
    assert drawn[0].axes[0].get_xscale() == "linear"


def test_an_accuracy_is_never_drawn_on_a_logarithmic_axis(drawn: list[Any]) -> None:
    first, second = (
        dp.Solution({"flops": f, "accuracy": a}, dp.Masks({}), 1, 1, ()) for f, a in ((0.1, 0.05), (0.9, 0.9))
    )
    plot_front(dp.ParetoFront.of([first, second], {"flops": -1.0, "accuracy": 1.0}, {}, {}), "front.png")
    assert drawn[0].axes[0].get_xscale() == "linear"


def test_an_empty_front_is_drawn(drawn: list[Any]) -> None:
    empty = dp.ParetoFront.of([], {"accuracy": 1.0, "flops": -1.0}, {}, {})
    plot_front(empty, "front.png")
    assert len(drawn) == 1
