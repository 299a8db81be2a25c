"""What stops a run: time, evaluations, a target, or no progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import deap_prune as dp
from deap_prune.errors import ConfigError
from tests.helpers.fakes import fake_toolbox
from tests.helpers.runs import files, resume, search


def run_with(*stops: Any, ngen: int = 30) -> dp.algorithms.Generation:
    loop = dp.algorithms.Loop("mu_plus_lambda", fake_toolbox(), dp.algorithms.Variation(6), stops=stops)
    return loop.run(loop.start(6), ngen)


def test_stops() -> None:
    assert run_with(dp.algorithms.MaxSeconds(0.0)).number == 0
    state = run_with(dp.algorithms.MaxEvaluations(20))
    counts = [record["nevals"] for record in state.logbook]
    assert sum(counts) >= 20 > sum(counts[:-1])
    goal = run_with(ngen=10).logbook[6]["hypervolume"]
    reached = run_with(dp.algorithms.Target("hypervolume", goal), ngen=10)
    assert reached.number <= 6 and reached.logbook[-1]["hypervolume"] >= goal > reached.logbook[-2]["hypervolume"]
    cheap = run_with(dp.algorithms.Target("flops", 0.99, maximise=False))
    assert cheap.number == 0
    patient = dp.algorithms.Patience(3)
    state = run_with(patient)
    values = [record["hypervolume"] for record in state.logbook]
    if state.number < 30:
        assert max(values[-3:]) == values[-4]


@pytest.mark.parametrize("stop", [dp.algorithms.Target("acc", 0.5), dp.algorithms.Patience(1, "acc")])
def test_a_stop_names_a_missing_column(stop: Any) -> None:
    with pytest.raises(ConfigError, match=r"the logbook has no column 'acc'; .*known: .*hypervolume"):
        run_with(stop)


def test_a_stop_may_read_a_column_of_a_callback() -> None:
    def note(state: dp.algorithms.Generation) -> None:
        if state.number:
            state.logbook[-1]["size"] = state.number

    for stop, last in ((dp.algorithms.Target("size", 3), 3), (dp.algorithms.Patience(2, "size", maximise=False), 3)):
        loop = dp.algorithms.Loop(
            "mu_plus_lambda", fake_toolbox(), dp.algorithms.Variation(4), callbacks=[note], stops=[stop]
        )
        assert loop.run(loop.start(4), 9).number == last


def test_patience_by_hand() -> None:
    state = dp.algorithms.Generation(0, [])
    for number, value in enumerate([1.0, 2.0, 2.0, 3.0, 3.0, 3.0]):
        state.logbook.record(gen=number, quality=value, loss=-value)
    assert dp.algorithms.Patience(2, "quality")(state) and not dp.algorithms.Patience(3, "quality")(state)
    assert dp.algorithms.Patience(2, "loss", maximise=False)(state) and not dp.algorithms.Patience(
        3, "loss", maximise=False
    )(state)
    assert dp.algorithms.Patience(5, "quality", least=2.0)(state) and not dp.algorithms.Patience(
        6, "quality", least=2.0
    )(state)


def test_a_stopped_run_stays_stopped(tmp_path: Path) -> None:
    """A stop that depends on the logbook holds for a resumed run too."""
    result = search(tmp_path / "run", patience=1, generations=30)
    before = files(tmp_path / "run")
    assert len(result.logbook) < 31
    resume(tmp_path / "run")
    assert files(tmp_path / "run") == before
