"""The grid of another device: written, timed by the script without torch, and read back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import deap_prune as dp
from deap_prune.cli import app
from deap_prune.costs import LatencyTable, check_latency
from deap_prune.costs.device import Grid, Times, file_name, points_of, whole_name
from deap_prune.costs.measure import calibration_masks, random_widths
from deap_prune.errors import ConfigError
from deap_prune.structure.layers import spec_of
from tests.helpers.latency import comb
from tests.helpers.pruning import prepared

pytest.importorskip("onnxruntime")
FACTORY = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10))
"""


def test_the_script_alone_makes_the_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written and read by the command; timed in a process in which torch and this package can't be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deap_prune.costs.measure.CALIBRATION", 4)
    Path("own_network.py").write_text(FACTORY)
    config = {
        "model": {"factory": "own_network:make"},
        "data": {"format": "digits", "calibration": 20, "validation": 20},
    }
    Path("run.yaml").write_text(yaml.safe_dump(config))

    def run(*args: str) -> Any:
        return CliRunner().invoke(app, ["latency", "run.yaml", "--quiet", *args], env={"COLUMNS": "200"})

    done = run("--export", "grid", "--threads", "1")
    assert done.exit_code == 0 and "networks in grid; copy it to the device" in done.output, done.output
    script = Path("grid/time_networks.py")
    assert len(script.read_text().splitlines()) <= 60
    assert max(path.stat().st_size for path in Path("grid").glob("*.onnx")) < 20_000
    blocked = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['deap_prune'] = None; "
        "sys.path.pop(0); runpy.run_path('grid/time_networks.py', run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", blocked], check=True, capture_output=True, env={"PYTHONPATH": ""})
    plan, times = (json.loads(Path(f"grid/{name}.json").read_text()) for name in ("plan", "times"))
    assert set(times["times"]) == set(plan["files"]) and {len(t) for t in times["times"].values()} == {3}
    done = run("--import", "grid/times.json", "--out", "table.json")
    assert done.exit_code == 0 and "dense network" in done.output, done.output
    assert LatencyTable.load("table.json").about["device"] == "elsewhere"
    refused = run("--import", "grid/plan.json", "--out", "table.json")
    assert refused.exit_code == 2 and "is no times.json of time_networks.py" in refused.output
    refused = run()
    assert refused.exit_code == 2 and "give --out FILE for a table" in refused.output


def times_by_formula(grid: Grid) -> dict[str, list[float]]:
    """What the script would write on a device that follows a formula."""

    def whole(network: Any) -> float:
        layers = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        return sum(comb(spec_of(m).in_channels, spec_of(m).out_channels) for m in layers)

    times = {}
    for number, (unit, entry) in enumerate(grid.entries()):
        for point in points_of(entry):
            times[file_name(number, point)] = [whole(unit.at(point))] * 3
    for number, masks in enumerate(calibration_masks(grid.space)):
        times[whole_name(number)] = [whole(dp.slim(grid.network, grid.space, masks))] * 3
    return times


def test_the_table_of_a_device_that_follows_a_formula() -> None:
    case = prepared("residual")
    grid = Grid.of(case.model, case.space, case.inputs, batch=1, threads=2)
    times = Times(version="1", digest=grid.digest, batch=1, threads=2, times=times_by_formula(grid))
    table = grid.table(times)
    latency = table.prediction(case.space)
    rng = np.random.default_rng(4)
    for _ in range(5):
        masks = random_widths(case.space, rng)
        small = dp.slim(case.model, case.space, masks)
        layers = [m for m in small.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        expected = sum(comb(spec_of(m).in_channels, spec_of(m).out_channels) for m in layers)
        assert float(latency(case.space.kept_counts(masks))) == pytest.approx(expected, rel=0.05)
    with pytest.raises(ConfigError, match="was measured on another device; networks can't be timed for it here"):
        check_latency([], [], table, case.model, case.space, case.inputs)
    with pytest.raises(ConfigError, match="these times belong to another network"):
        grid.table(times.model_copy(update={"digest": "0"}))
    del times.times["network0.onnx"]
    with pytest.raises(ConfigError, match=r"the times lack 'network0.onnx'; run time_networks.py to the end"):
        grid.table(times)


def test_points_allow_for_every_kernel() -> None:
    """The points of a device's grid hold those that any outcome of the scan asks for."""
    case = prepared("residual")
    for _, entry in Grid.of(case.model, case.space, case.inputs, batch=1, threads=1).entries():
        points = set(points_of(entry))
        assert {*entry.next_points(slow=False), *entry.next_points(slow=True)} <= points
