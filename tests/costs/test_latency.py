"""Latency tables: interpolation, files, measuring, and searches under a budget in milliseconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

import deap_prune as dp
from deap_prune.cli import app
from deap_prune.costs import LatencyCheck, LatencyTable, bound_cost, check_latency
from deap_prune.costs.entry import Axis, Entry, fast_multiple
from deap_prune.costs.measure import begun_entry, calibration_masks, random_widths
from deap_prune.costs.prediction import Rest, TableLatency, axis_of
from deap_prune.costs.runtimes import RUNTIMES, Clock, Setting
from deap_prune.costs.units import units_of
from deap_prune.errors import BudgetError, ConfigError, RegistryError
from deap_prune.structure.layers import spec_of
from deap_prune.structure.space import LayerChannels
from deap_prune.weights import save_weights
from deap_prune.zoo import digits_resnet
from tests.helpers.latency import ABOUT, comb, formula_runtime, synthetic_table, synthetic_times, timed_by
from tests.helpers.networks import conv
from tests.helpers.pruning import prepared
from tests.helpers.random_scores import SPACES


# ------------------------------------------------------------------ one unit
def prediction_of(entry: Entry) -> TableLatency:
    """The prediction of one layer that joins two groups."""
    sizes = np.array([entry.inputs.dense, entry.outputs.dense])
    groups = [SimpleNamespace(size=size, blocks=1) for size in sizes.tolist()]
    space: Any = SimpleNamespace(groups=groups, sizes=sizes, activations=0, params_of=0)
    ids = np.split(np.arange(sizes.sum()), [sizes[0]])
    return TableLatency.of([LayerChannels("layer", *ids)], [entry], 1.0, Rest(), space)


def stairs(n_in: int, n_out: int) -> float:
    return (1 + n_in / 7) * (3 + -(-n_out // 16))


@pytest.mark.parametrize("dense", [(40, 24), (200, 72), (16, 1), (3, 64)])
@pytest.mark.parametrize(("time", "multiple"), [(stairs, 1), (comb, 4)])
def test_every_width_is_exact_for_stairs_and_fast_kernels(dense: Any, time: Any, multiple: int) -> None:
    """Also between the windows of a long axis, which is timed at 64 widths."""
    entry = timed_by(Entry("unit", Axis(1, dense[0]), Axis(1, dense[1])), time)
    assert entry.multiple == (multiple if dense[0] > 16 else 1) and len(entry.points) < 400
    whole = prediction_of(entry)
    first = 1 if entry.multiple == 1 else 17 if dense[0] <= 64 else 52  # narrow inputs have a kernel of their own
    for i in range(first, dense[0] + 1):
        outputs = np.arange(1, dense[1] + 1)
        times = whole.units(np.column_stack([np.full(dense[1], i), outputs]))[:, 0]
        np.testing.assert_allclose(times, [time(i, o) for o in outputs.tolist()], rtol=0.03)


def test_the_fast_multiple_of_a_scan() -> None:
    rng = np.random.default_rng(0)
    widths = np.arange(1, 65)
    for multiple in (1, 2, 4, 8, 16):
        line = 5 + widths * np.where(widths % multiple == 0, 1.0, 1.5) * rng.normal(1, 0.02, 64)
        assert fast_multiple(dict(zip(widths.tolist(), line, strict=True))) == multiple
    assert fast_multiple({width: 1.0 + width for width in range(1, 9)}) == 1


def test_axes_hold_the_widths_that_masks_can_give() -> None:
    for name in SPACES:
        case = prepared(name)
        masks = [dp.Masks.random(case.space, keep=(0.1, 0.9), seed=seed) for seed in range(3)]
        small = [dp.slim(case.model, case.space, one) for one in masks]
        for layer in (layer for layer in case.space.layers if layer.dim is None):
            for side, ids in (("in_channels", layer.inputs), ("out_channels", layer.outputs)):
                axis = axis_of(case.space, ids)
                widths = [getattr(spec_of(network.get_submodule(layer.name)), side) for network in small]
                assert axis.widths[-1] == len(ids) and set(widths) <= set(axis.widths.tolist())


# ------------------------------------------------------------------ the prediction
@pytest.mark.parametrize("name", SPACES)
def test_prediction_is_the_sum_of_the_slim_layers_and_a_rest(name: str) -> None:
    """Beside the widths of the slimmed network's layers, looked up one at a time."""
    case = prepared(name)
    table, times = synthetic_table(case.space), synthetic_times(case.space)
    latency = table.on(case.space).latency_of
    for seed in range(4):
        masks = dp.Masks.random(case.space, keep=(0.1, 0.9), seed=seed)
        small, total = dp.slim(case.model, case.space, masks), 0.0
        for layer, time in times.items():
            spec = spec_of(small.get_submodule(layer))
            total += time(spec.in_channels, spec.out_channels)
        kept = case.space.kept_counts(masks)
        rest = 0.5 + 3e-6 * float(case.space.activations.written(kept)) + 0.25e-6 * int(case.space.params_of(kept))
        assert latency is not None and float(latency(kept)) == pytest.approx(rest + 1.25 * 2.0 * total)


def test_layouts_are_converted_between_fast_and_other_kernels() -> None:
    """Two layers that follow each other with widths in fours save a conversion, which each of them alone makes."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 32), nn.ReLU(), conv(32, 32), nn.ReLU(), conv(32, 40), nn.ReLU(), conv(40, 8)).eval()
    image = torch.randn(1, 3, 6, 6)
    space = dp.trace(model, image)
    entries = tuple(timed_by(begun_entry(space, unit), comb) for unit in units_of(model, ((image,), {})))
    uses = tuple((name, number) for number, name in enumerate("0246"))
    table = LatencyTable(ABOUT, 1.0, entries, uses)
    plain, saving = (replace(table, rest=rest).prediction(space) for rest in (Rest(), Rest(saved=1.0)))
    for kept in ([32, 32, 40], [32, 31, 40], [28, 24, 22], [5, 20, 20], [30, 8, 36]):
        inputs = [3, *kept]
        fast = [width % 4 == 0 or width < 16 for width in inputs]
        saved = sum(4 * 36 * inputs[n] for n in range(1, 4) if fast[n] and fast[n - 1]) / 1e6
        assert float(plain(kept)) - float(saving(kept)) == pytest.approx(saved)


def test_predictions_of_a_population() -> None:
    space = synthetic_table(plain := prepared("concat").space).on(plain)
    counts = np.random.default_rng(0).integers(1, space.sizes + 1, (2, 5, len(space.sizes)))
    together = space.latency_of(counts)  # type: ignore[misc]
    one_by_one = [[float(space.latency_of(kept)) for kept in row] for row in counts]  # type: ignore[misc]
    np.testing.assert_allclose(together, one_by_one)


def test_tables_go_to_json_and_back(tmp_path: Path) -> None:
    space = prepared("shuffle").space
    table = synthetic_table(space)
    table.save(tmp_path / "table.json")
    again = LatencyTable.load(tmp_path / "table.json")
    assert again == table and again.digest == table.digest != synthetic_table(space, seed=1).digest
    for text in ("", "[]", "{}", table.to_json().replace('"format": 2', '"format": 9'), json.dumps({"format": 2})):
        with pytest.raises(ConfigError, match="this is no latency table of this version"):
            LatencyTable.from_json(text)
    for part, value, message in (
        ("inputs", {"lowest": 0, "dense": 3, "stride": 1}, r"the times of '.*' are damaged"),
        ("samples", [[1.0]], r"the times of '.*' are damaged"),
        ("points", [[1, 1]] * len(table.entries[0].points), r"times of '.*' are missing"),
    ):
        damaged = json.loads(table.to_json())
        damaged["entries"][0][part] = value
        with pytest.raises(ConfigError, match="was changed after it was written"):
            LatencyTable.from_json(json.dumps(damaged))
        del damaged["sha256"]
        with pytest.raises(ConfigError, match=message):
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


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtimes_run_the_network(runtime: str) -> None:
    for package in RUNTIMES[runtime].packages:
        pytest.importorskip(package)
    network, image = small_network(), torch.randn(2, 3, 6, 6)
    result = Setting(runtime, threads=1).prepare(network, ((image,), {}))()
    outputs = result if isinstance(result, torch.Tensor) else torch.from_numpy(np.array(result[0]))
    with torch.inference_mode():
        torch.testing.assert_close(outputs, network(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_table_is_measured_and_resumed(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    model, image, path = small_network(), torch.randn(1, 3, 6, 6), tmp_path / "table.json"
    space = dp.trace(model, image)
    how: dict[str, Any] = {"runtime": runtime, "threads": 1, "repeats": 2, "out": path, "progress": False}
    timed, calls = Clock.__call__, []
    monkeypatch.setattr("deap_prune.costs.runtimes.BURST", 0)

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
    assert table.entries[0].samples[0] == begun.entries[0].samples[0] and len(table.whole) == 2
    assert LatencyTable.load(path) == table and table.about["runtime"] == runtime
    before = len(calls)
    assert dp.latency_table(model, space, image, **how) == table and len(calls) == before
    fast = table.on(space)
    networks = [dp.slim(model, space, masks) for masks in calibration_masks(space)[:3]]
    check = check_latency(networks, calibration_masks(space)[:3], table, model, fast, image, repeats=2)
    assert min(check.predicted) > 0 and np.isfinite(check.median_error) and f"({runtime}, batch 1" in str(check)
    with pytest.raises(ConfigError, match=r"holds a table of .*, not of .*'batch': 2.*; choose another file"):
        dp.latency_table(model, space, image, **how, batch=2)
    other = dp.trace(model, image, ignore=[space.layers[0].name])
    with pytest.raises(ConfigError, match=r"holds a table of .*'network': .*; choose another file"):
        dp.latency_table(model, other, image, **how)


def test_a_measured_table_predicts_a_device_that_follows_a_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a virtual clock: fast kernels, stairs, and a join between layers that follow them."""
    formula_runtime(monkeypatch)
    case = prepared("residual")
    table = dp.latency_table(
        case.model, case.space, case.inputs, runtime="formula", threads=1, repeats=2, progress=False
    )
    space = table.on(case.space)
    rng = np.random.default_rng(3)
    masks = [random_widths(space, rng) for _ in range(12)]
    small = [dp.slim(case.model, space, one) for one in masks]
    check = check_latency(small, masks, table, case.model, space, case.inputs, repeats=1)
    assert check.median_error < 0.02 and check.tau > 0.9


def test_steps_are_those_of_the_device() -> None:
    """Widths in eights: outputs in stairs of eight, inputs in a fast kernel for fours."""
    times = timed_by(Entry("unit", Axis(1, 64), Axis(1, 64)), comb)
    assert prediction_of(times).steps.tolist() == [4, 8]
    smooth = timed_by(Entry("unit", Axis(1, 64), Axis(1, 64)), lambda i, o: 1.0 + i * o)
    assert prediction_of(smooth).steps.tolist() == [1, 1]


def test_illegal_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryError, match=r"unknown runtime 'torhc'; did you mean 'torch'\?"):
        Setting("torhc")
    monkeypatch.setattr("deap_prune.costs.runtimes.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="the runtime 'openvino' needs onnx, openvino: pip install onnx openvino"):
        Setting("openvino")
    monkeypatch.undo()
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
    formula_runtime(monkeypatch)
    for name in ("torch", "onnxruntime", "openvino"):
        monkeypatch.delitem(RUNTIMES, name)
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
    done = run("latency", "run.yaml", "--runtime", "formula", "--threads", "1", "--out", "table.json")
    assert done.exit_code == 0 and "dense network" in done.stdout, done.output
    about = LatencyTable.load("table.json").about
    assert (about["runtime"], about["batch"], about["threads"], about["device"]) == ("formula", 1, 1, "cpu")
    done = run("search", "run.yaml", "--out", "a", "--set", "search.latency_table=table.json")
    assert done.exit_code == 0, done.output
    front = dp.ParetoFront.load("a")
    best, dense = front.best(), front.dense
    assert best.latency is not None and best.latency <= 0.9 * dense["latency"] and best.params <= 0.5 * dense["params"]
    check = LatencyCheck.from_json(Path("a/latency.json").read_text())
    assert len(check.predicted) == len(front) and check.predicted[0] == front[0].latency
    assert check.median_error < 0.05 and check.speedups["formula"][0] > 1
    done = run("report", "a", "--no-network")
    assert f"Median error {check.median_error:.1%}" in Path("a/report.html").read_text(), done.output
    with pytest.raises(ConfigError, match=r"this is no comparison of latencies"):
        LatencyCheck.from_json(check.to_json().replace('"formula": [', '"formula": [1.0, '))
    done = run("slim", "a", "--max-latency", "0.9", "--max-params", "0.5")
    assert done.exit_code == 0 and Path("a/slim.safetensors").is_file(), done.output
    refused = run("slim", "a", "--max-latency", "1 us")
    assert refused.exit_code == 2 and "no solution is within max_latency 1 us" in refused.stderr
    Path("table.json").write_text(synthetic_table(prepared("residual").space).to_json())
    refused = run("slim", "a")
    assert refused.exit_code == 2 and refused.stderr
