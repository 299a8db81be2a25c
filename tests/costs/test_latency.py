"""Latency tables: interpolation, files, measuring, and searches under a budget in milliseconds."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

import deap_prune as dp
from deap_prune.cli import app
from deap_prune.costs import LatencyTable, bound_cost, check_latency
from deap_prune.costs.latency import affine_widths
from deap_prune.costs.measure import calibration_masks
from deap_prune.costs.runtimes import Clock, Setting
from deap_prune.costs.units import units_of
from deap_prune.errors import BudgetError, ConfigError, RegistryError
from deap_prune.weights import save_weights
from deap_prune.zoo import digits_resnet
from tests.helpers.latency import ABOUT, synthetic_table
from tests.helpers.networks import conv
from tests.helpers.pruning import prepared
from tests.helpers.random_scores import SPACES


# ------------------------------------------------------------------ the prediction
@pytest.mark.parametrize("name", SPACES)
def test_prediction_is_the_sum_of_interpolated_units_and_a_rest(name: str) -> None:
    """Beside NumPy's interpolation, one unit and one axis at a time; kept counts need not be whole."""
    space = prepared(name).space
    table = synthetic_table(space)
    rng = np.random.default_rng(1)
    counts = np.concatenate(
        [rng.integers(1, space.sizes + 1, (6, len(space.sizes))), 1 + rng.random((3, 1)) * (space.sizes - 1)]
    )
    expected = []
    for kept in counts:
        total = 0.0
        for layer_name, number in table.units:
            entry, layer = table.entries[number], next(x for x in space.layers if x.name == layer_name)
            widths = [
                fixed + slopes @ kept
                for fixed, slopes in (affine_widths(space, s) for s in (layer.inputs, layer.outputs))
            ]
            rows = [np.interp(widths[1], entry.outputs, row) for row in entry.times]
            total += float(np.interp(widths[0], entry.inputs, rows))
        written = float(space.activations.written(kept)) / 1e6  # type: ignore[union-attr]
        expected.append(0.5 + 3.0 * written + 1.25 * table.anchor * total)
    np.testing.assert_allclose(table.on(space).latency_of(counts), expected, rtol=1e-12)  # type: ignore[misc]


def test_prediction_is_exact_at_grid_points() -> None:
    space = prepared("residual").space
    table = synthetic_table(space)
    units = table.on(space).latency_of.units(space.sizes)  # type: ignore[union-attr]
    dense = [table.anchor * table.entries[number].times[-1, -1] for _, number in table.units]
    np.testing.assert_array_equal(units, dense)


def test_a_prediction_takes_microseconds() -> None:
    space = synthetic_table(plain := prepared("concat").space).on(plain)
    start = time.process_time()
    for _ in range(200):
        space.latency_of(space.sizes)  # type: ignore[misc]
    assert (time.process_time() - start) / 200 < 1e-3  # tens of microseconds on an idle machine


def test_tables_go_to_json_and_back(tmp_path: Path) -> None:
    space = prepared("shuffle").space
    table = synthetic_table(space)
    table.save(tmp_path / "table.json")
    again = LatencyTable.load(tmp_path / "table.json")
    assert again == table and again.digest == table.digest != synthetic_table(space, seed=1).digest
    for text in ("", "[]", "{}", table.to_json().replace('"format": 1', '"format": 9'), json.dumps({"format": 1})):
        with pytest.raises(ConfigError, match="this is no latency table of this version"):
            LatencyTable.from_json(text)
    damaged = json.loads(table.to_json())
    damaged["entries"][0]["inputs"].append(1)
    with pytest.raises(ConfigError, match=r"the grid of '.*' is damaged"):
        LatencyTable.from_json(json.dumps(damaged))
    with pytest.raises(ConfigError, match=r"the latency table '.*none.json' can't be read"):
        LatencyTable.load(tmp_path / "none.json")


def test_a_table_of_another_network() -> None:
    with pytest.raises(ConfigError, match=r"measured on another network: '.*' has widths .* in it, and .* here"):
        synthetic_table(prepared("residual").space).on(prepared("concat").space)
    table = replace(synthetic_table(prepared("residual").space), rest=None)
    with pytest.raises(ConfigError, match="the latency table is not complete; measure it to the end"):
        table.on(prepared("residual").space)


# ------------------------------------------------------------------ measuring
def small_network() -> nn.Module:
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    return nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 12), nn.Hardswish(), *head).eval()


def test_units_hold_what_follows_a_layer() -> None:
    units = units_of(small_network(), ((torch.randn(2, 3, 6, 6),), {}))
    assert [(u.name, len(u.norms), type(u.activation).__name__) for u in units] == [
        ("0", 1, "ReLU"),
        ("3", 0, "Hardswish"),
        ("7", 0, "NoneType"),
    ]
    assert units[0].shape == (2, 3, 6, 6) and units[1].shape[1] == 8
    narrow = units[0].narrowed(3, 5)
    assert narrow(torch.randn(1, 3, 6, 6)).shape[1] == 5


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_table_is_measured_and_resumed(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    model, image, path = small_network(), torch.randn(1, 3, 6, 6), tmp_path / "table.json"
    space = dp.trace(model, image)
    how: dict[str, Any] = {"runtime": runtime, "threads": 1, "repeats": 2, "out": path, "progress": False}
    timed, calls = Clock.__call__, []

    def stops(clock: Clock, runs: Any) -> list[float]:
        calls.append(len(runs))
        if len(calls) == 9:
            raise KeyboardInterrupt
        return timed(clock, runs)

    monkeypatch.setattr(Clock, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        dp.latency_table(model, space, image, **how)
    begun = LatencyTable.load(path)
    assert begun.rest is None and len(begun.entries) >= 1
    table = dp.latency_table(model, space, image, **how)
    assert table.entries[0].samples[0] == begun.entries[0].samples[0] and len(table.whole) == 3
    assert LatencyTable.load(path) == table and table.about["runtime"] == runtime
    before = len(calls)
    assert dp.latency_table(model, space, image, **how) == table and len(calls) == before
    fast = table.on(space)
    networks = [dp.slim(model, space, masks) for masks in calibration_masks(space)[:3]]
    predicted = fast.latency_of([space.kept_counts(m) for m in calibration_masks(space)[:3]])  # type: ignore[misc]
    check = check_latency(networks, predicted, table, image, repeats=2)
    assert (predicted > 0).all() and np.isfinite(check.median_error) and f"({runtime}, batch 1" in str(check)
    with pytest.raises(ConfigError, match=r"holds a table of .*, not of .*'batch': 2.*; choose another file"):
        dp.latency_table(model, space, image, **how, batch=2)


def test_illegal_settings() -> None:
    with pytest.raises(RegistryError, match=r"unknown runtime 'torhc'; did you mean 'torch'\?"):
        Setting("torhc")
    with pytest.raises(ConfigError, match="batch is 0; give 1 or more"):
        Setting(batch=0)
    with pytest.raises(ConfigError, match="device is 'cuda'; the runtime 'onnxruntime' is timed on the CPU"):
        Setting("onnxruntime", device="cuda")


# ------------------------------------------------------------------ in a search
def test_the_objective_is_the_prediction() -> None:
    case = prepared("residual")
    space = synthetic_table(case.space).on(case.space)
    evaluate = dp.Evaluator(case.model, space, objectives=("latency", "flops"), recalibrate=None)
    masks = calibration_masks(space)[1]
    assert evaluate(masks)[0] == float(bound_cost("latency", space)(space.kept_counts(masks)))
    assert evaluate.dense["latency"] == evaluate.dense["values"]["latency"] and not evaluate.is_timed


def test_a_front_with_latencies(tmp_path: Path) -> None:
    weights, dense = {"accuracy": 1.0, "flops": -1.0}, {"flops": 100, "params": 10, "latency": 8.0, "values": {}}
    fast, slow = (
        dp.Solution({"accuracy": a, "flops": f}, dp.Masks({"g": np.ones(2, dtype=bool)}), round(100 * f), 5, (), ms)
        for a, f, ms in ((0.8, 0.5, 2.0), (0.9, 0.6, 5.0))
    )
    front = dp.ParetoFront.of([fast, slow], weights, dense)
    front.save(tmp_path)
    for one in (front, dp.ParetoFront.load(tmp_path)):
        assert one.best(max_latency=0.5).latency == one.best(max_latency="4 ms").latency == 2.0
        assert one.best(max_latency="5000 us", max_params=0.5).latency == 5.0
        assert one.cheapest(at_least=0.85, cost="latency").latency == 5.0
    assert (tmp_path / "front.csv").read_text().splitlines()[0].endswith("parameters,milliseconds")
    with pytest.raises(BudgetError, match=r"no solution is within max_latency 1 ms; .* keeps 0.2500 of the latency"):
        front.best(max_latency="1 ms")
    plain = dp.ParetoFront.of([replace(fast, latency=None)], weights, {**dense, "latency": 8.0} | {"latency": 8.0})
    without = dp.ParetoFront.of(list(plain), weights, {"flops": 100, "params": 10, "values": {}})
    with pytest.raises(BudgetError, match="the front does not hold the cost 'latency' of its networks"):
        without.best(max_latency=0.5)
    measured = dp.ParetoFront.of(
        [dp.Solution({"accuracy": 0.8, "latency": 3.0}, dp.Masks({}), 50, 5)],
        {"accuracy": 1.0, "latency": -1.0},
        {"flops": 100, "params": 10, "values": {"accuracy": 0.9, "latency": 4.0}},
    )
    assert measured.best(max_latency=0.75).values["latency"] == measured.best(max_latency="3 ms").values["latency"]


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table from the command line, a search under two budgets, and its network within a limit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deap_prune.costs.measure.PASSES", 1)
    search = {"population": 4, "generations": 1, "criteria": ["l1", "l2"], "objectives": ["agreement"], "refine": False}
    config = {
        "model": {"factory": "deap_prune.zoo:digits_resnet", "kwargs": {"width": 8}, "weights": "net.safetensors"},
        "data": {"format": "digits", "calibration": 40, "validation": 40},
        "search": {**search, "max_latency": 0.9, "max_params": 0.5, "finalists": 0},
    }
    save_weights(digits_resnet(width=8), Path("net.safetensors"))
    Path("run.yaml").write_text(yaml.safe_dump(config))

    def run(*args: str) -> Any:
        return CliRunner().invoke(app, [*args, *(["--quiet"] if args[0] != "slim" else [])], env={"COLUMNS": "200"})

    refused = run("search", "run.yaml", "--out", "a")
    assert refused.exit_code == 2 and "max_latency is 0.9, which needs a latency table" in refused.stderr
    done = run("latency", "run.yaml", "--threads", "1", "--out", "table.json")
    assert done.exit_code == 0 and "dense network" in done.stdout, done.output
    about = LatencyTable.load("table.json").about
    assert {name: about[name] for name in ("runtime", "batch", "threads", "device")}.items() <= ABOUT.items()
    done = run("search", "run.yaml", "--out", "a", "--set", "search.latency_table=table.json")
    assert done.exit_code == 0, done.output
    front = dp.ParetoFront.load("a")
    best, dense = front.best(), front.dense
    assert best.latency is not None and best.latency <= 0.9 * dense["latency"] and best.params <= 0.5 * dense["params"]
    done = run("slim", "a", "--max-latency", "0.9", "--max-params", "0.5")
    assert done.exit_code == 0 and Path("a/slim.safetensors").is_file(), done.output
    refused = run("slim", "a", "--max-latency", "1 us")
    assert refused.exit_code == 2 and "no solution is within max_latency 1 us" in refused.stderr
    Path("table.json").write_text(synthetic_table(prepared("residual").space).to_json())
    refused = run("slim", "a")
    assert refused.exit_code == 2 and refused.stderr
