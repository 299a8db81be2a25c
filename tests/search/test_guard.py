"""Held-out images and patience: what stops a search, and what is logged but decides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import deap_prune as dp
from deap_prune.options import SearchOptions
from deap_prune.search.evolve import stops
from deap_prune.search.time_limit import TimeLimit
from tests.helpers.fakes import Fake
from tests.helpers.pruning import prepared
from tests.helpers.runs import labelled_data, labelled_search, problem


def test_the_guard_is_logged_and_changes_nothing() -> None:
    x, y = labelled_data()["validation"]
    guarded = labelled_search(guard=60, refine=False)
    plain = labelled_search(validation=(x[:-60], y[:-60]), refine=False)
    assert [dict(s.values) for s in guarded.front] == [dict(s.values) for s in plain.front]
    hypervolumes = [record["guard"] for record in guarded.logbook]
    assert all(0 < value < 1 for value in hypervolumes)
    values = [guarded.evaluator.measure(guarded.slim(s), s.masks, (x[-60:], y[-60:])) for s in guarded.front]
    front = dp.ParetoFront.of(
        [dp.Solution(dict(zip(("accuracy", "flops"), v, strict=True)), dp.Masks({}), 0, 0) for v in values],
        guarded.front.weights,
        guarded.front.dense,
    )
    assert hypervolumes[-1] == pytest.approx(front.hypervolume(), rel=1e-6)


def test_with_one_objective_the_guard_is_the_best_networks_value() -> None:
    result = labelled_search(guard=60, refine=False, objectives=("loss",), max_flops=0.5, generations=1)
    x, y = labelled_data()["validation"]
    (value,) = result.evaluator.measure(result.slim(result.best), result.best.masks, (x[-60:], y[-60:]))
    assert result.logbook[-1]["guard"] == pytest.approx(value, rel=1e-6)


def test_patience_stops_a_run_and_its_resumption(tmp_path: Path) -> None:
    """Three guard images soon allow no progress."""
    options = {"guard": 3, "patience": 1, "generations": 30, "population": 4}
    result = labelled_search(tmp_path / "run", **options)
    assert 2 <= len(result.logbook) < 31
    assert result.logbook[-1]["guard"] <= max(record["guard"] for record in list(result.logbook)[:-1])
    again = dp.resume(tmp_path / "run", *problem(), **labelled_data())
    assert list(again.logbook) == list(result.logbook)


@pytest.mark.parametrize(
    ("objectives", "guard", "column", "maximise"),
    [
        (("accuracy", "flops"), 40, "guard", True),
        (("accuracy", "flops"), 0, "hypervolume", True),
        (("accuracy",), 40, "guard", True),
        (("accuracy",), 0, "accuracy", True),
        (("loss",), 40, "guard", False),
        (("loss",), 0, "loss", False),
    ],
)
def test_patience_follows_the_guard_if_there_is_one(
    objectives: tuple[str, ...], guard: int, column: str, maximise: bool
) -> None:
    options = SearchOptions(patience=5, guard=guard, max_flops=0.5, objectives=objectives)
    evaluator: Any = Fake(prepared("residual").space, len(objectives))
    evaluator.names, evaluator.weights = objectives, tuple(-1.0 if n != "accuracy" else 1.0 for n in objectives)
    (patience,) = stops(options, evaluator)
    assert patience == dp.algorithms.Patience(5, column, maximise)


def test_stops_that_the_options_name() -> None:
    evaluator: Any = Fake(prepared("residual").space)
    limit = TimeLimit(3.0, 7.0)
    assert stops(SearchOptions(), evaluator) == []
    assert stops(SearchOptions(max_seconds=3.0, patience=5), evaluator, limit=limit)[0] is limit


def test_a_run_stops_when_its_time_is_up() -> None:
    result = labelled_search(max_seconds=1e-6, generations=50, refine=False)
    assert [record["gen"] for record in result.logbook] == [0]
