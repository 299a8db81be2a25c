"""Related methods, each on the digits: benchmarks/neighbours.py with few epochs, and the configs."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import deap_prune as dp
from deap_prune.cli import app

ROOT = Path(__file__).parents[1]


def run(case: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    neighbours = import_module("neighbours")
    measured = neighbours.CASES[case][0](argparse.Namespace(quick=True, epochs=1, images=256), 0)
    assert neighbours.table([{"seed": 0, **row} for row in measured]).count("\n") == len(measured) + 1
    rows = {row["arm"]: row for row in measured}
    assert len(rows) == len(measured)
    shares = {arm: row["flops"] for arm, row in rows.items() if "dense" not in arm}
    searched = shares.pop("searched without labels", 0.3)  # from 0.3 to 0.6: the last filter that fits 0.3 is below it
    assert all(0.3 < share <= 0.5 for share in shares.values()) and 0.3 <= round(searched, 2) <= 0.5
    return rows


def test_compensation_restores_more_than_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Re-fitted networks are above those with new BN statistics alone, for both criteria and allocations."""
    rows = run("compensation", monkeypatch)
    for criterion in ("l2", "compensation"):
        for allocation in ("uniform", "binary"):
            arm = f"{criterion}, {allocation} widths"
            assert rows[f"{arm}, compensated"]["test"] > rows[f"{arm}, BN alone"]["test"] + 0.02


def test_uniform_channel_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths are equal within a stage, in residual streams too; a network from scratch is behind after one epoch."""
    rows = run("uniform", monkeypatch)
    streams_and_blocks = [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    for row in rows.values():
        assert [len({row["widths"][i] for i in stage}) for stage in streams_and_blocks] == [1, 1, 1]
    scratch = next(row for arm, row in rows.items() if "from scratch" in arm)
    assert scratch["test"] < rows["attention, searched rates, compensated"]["test"]


def test_self_supervised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks with and without labels differ, and agree on more than half of the filters; the search uses no label."""
    rows = run("self_supervised", monkeypatch)
    assert 0.5 < rows["taylor_gate, without labels"]["kept by both"] < 1
    assert rows["searched without labels"]["front"] >= 1
    assert all(row["linear probe"] > 0.5 and row["transfer"] > 0.5 for row in rows.values())  # of five classes


@pytest.mark.slow
def test_polyphase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shifts change no label with the layer, dense, pruned or fine-tuned; without it they do.

    Slow: it trains four networks; the example ``shift_invariance.py`` checks the layer in every run.
    """
    rows = run("polyphase", monkeypatch)
    assert all(rows[f"polyphase, {stage}"]["shift"] == 1 for stage in ("dense", "pruned", "fine-tuned"))
    assert all(rows[f"strides, {stage}"]["shift"] < 0.9 for stage in ("dense", "pruned", "fine-tuned"))


def test_points(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run("points", monkeypatch)
    assert rows["dense"]["test"] > 0.3 and rows["pruned"]["test"] > 0.2


def configs() -> list[Any]:
    """The configs. Two are slow; their options are validated in every run, by ``test_cli.py``."""
    slow = {"polyphase", "self-supervised"}
    paths = sorted((ROOT / "configs/neighbours").glob("*.yaml"))
    return [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in slow else []) for p in paths]


@pytest.mark.parametrize("config", configs())
def test_configs_run(config: Path, tmp_path: Path) -> None:
    """Each config runs on a small digits network, with its own search options."""
    changes = ["data={format: digits, calibration: 64, validation: 64}", "model.weights=null", "search.ignore=[]"]
    changes += [
        "model.factory=deap_prune.zoo:digits_resnet",
        "model.kwargs.width=4",
        "search.population=4",
        "search.finalists=1",
    ]
    changes += ["search.generations=0" if config.stem == "compensation" else "search.generations=1"]
    overrides = [word for change in changes for word in ("--set", change)]
    done = CliRunner().invoke(app, ["search", str(config), "--out", str(tmp_path / "run"), "--quiet", *overrides])
    assert done.exit_code == 0, done.output
    front = dp.ParetoFront.load(tmp_path / "run")
    assert len(front) >= 1
    if config.stem in ("compensation", "uniform"):
        assert all(s.flops <= 0.5 * front.dense["flops"] for s in front)
