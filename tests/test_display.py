"""Short texts, HTML tables and pictures of public objects."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pytest
import torch
from torch import nn
from torchvision import models

import deap_prune as dp
from deap_prune.display import short

mpl.use("agg")


@pytest.fixture(scope="module")
def resnet50() -> dict[str, Any]:
    """Space, scores, clusters and a front of eight solutions of a ResNet-50 with random weights."""
    torch.manual_seed(0)
    model = models.resnet50().eval()
    space = dp.trace(model, torch.zeros(1, 3, 64, 64))
    scores = dp.score(model, space, criteria=("l1", "l2", "fpgm", "bn_scale"))
    clusters = dp.cluster(scores, n_clusters=3)
    genome = dp.Genome(space, scores, clusters)
    solutions = []
    for number in range(30):
        masks = dp.Masks.random(space, keep=0.2 + number / 40, seed=number)
        flops, params = dp.flops(space, masks), dp.params(space, masks)
        values = {"accuracy": 0.50001 + number / 100, "flops": flops / space.flops}
        solutions.append(dp.Solution(values, masks, flops, params, (0.5,) * 300))
    dense = {"flops": space.flops, "params": space.params, "values": {"accuracy": 0.9, "flops": 1.0}}
    front = dp.ParetoFront.of(solutions, {"accuracy": 1.0, "flops": -1.0}, dense)
    return {
        "space": space,
        "group": space.groups[0],
        "scores": scores,
        "clusters": clusters,
        "masks": solutions[0].masks,
        "solution": solutions[0],
        "front": front,
        "genome": genome,
        "layout": genome.layout,
        "flops_of": space.flops_of,
    }


def test_reprs_of_a_resnet50_are_short(resnet50: dict[str, Any]) -> None:
    for name, thing in resnet50.items():
        text = repr(thing)
        assert len(text) < 2000 and len(text.splitlines()) <= 12, (name, len(text))
    assert "print(space)" in repr(resnet50["space"]) and "160,432,640" not in repr(resnet50["group"])
    assert len(str(resnet50["space"]).splitlines()) > 30


@pytest.mark.parametrize("name", ["space", "scores", "clusters", "solution", "front"])
def test_html_is_a_table(resnet50: dict[str, Any], name: str) -> None:
    html = resnet50[name]._repr_html_()
    assert "<table>" in html and "</table>" in html and len(html) < 40_000


def test_a_front_prints_each_figure_once_and_the_dense_network(resnet50: dict[str, Any]) -> None:
    front = resnet50["front"]
    text = str(front)
    assert text.splitlines()[0] == f"{len(front)} solutions"
    for row, solution in zip(text.splitlines()[2:], front, strict=False):
        accuracy, flops = (f"{value:.4f}" for value in solution.values.values())
        assert row.split()[1:5] == [accuracy, flops, f"{solution.flops:,}", f"{solution.params:,}"]
    assert text.splitlines()[-1].split()[:3] == ["dense", "0.9000", "1.0000"]
    assert "dense" in repr(front)


def test_the_share_of_a_cost_stands_beside_it_if_it_is_no_objective() -> None:
    dense = {"flops": 1000, "params": 100, "values": {"loss": 0.2}}
    solution = dp.Solution({"loss": 0.3}, dp.Masks({}), 500, 40)
    row = str(dp.ParetoFront.of([solution], {"loss": -1.0}, dense)).splitlines()[2]
    assert row.split() == ["0", "0.3000", "500", "(50.0%)", "40", "(40.0%)"]


def test_to_frame_without_pandas(resnet50: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deap_prune.evolution.front.find_spec", lambda _: None)
    rows = resnet50["front"].to_frame()
    assert isinstance(rows, list) and len(rows) == len(resnet50["front"])
    assert rows[0]["kept_flops"] == rows[0]["flops"] and rows[0]["multiply_adds"] == resnet50["front"][0].flops


def test_to_frame_with_pandas(resnet50: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Pandas:
        DataFrame = staticmethod(lambda rows: ("frame", rows))

    monkeypatch.setattr("deap_prune.evolution.front.find_spec", lambda _: True)
    monkeypatch.setattr("deap_prune.evolution.front.import_module", lambda name: {"pandas": Pandas}[name])
    kind, rows = resnet50["front"].to_frame()
    assert kind == "frame" and list(rows[0])[:2] == ["accuracy", "flops"]


def test_plots_return_axes(resnet50: dict[str, Any]) -> None:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    for name in ("front", "scores"):
        own = Figure().add_subplot()
        assert isinstance(resnet50[name].plot(), Axes)
        assert resnet50[name].plot(axes=own) is own
    assert resnet50["scores"].plot("layer1.0.conv1").get_title(loc="left") == "layer1.0.conv1"
    with pytest.raises(dp.errors.DataError, match=r"did you mean 'layer1\.0\.conv1'"):
        resnet50["scores"].plot("layer1.0.conv11")


@pytest.mark.parametrize("objectives", [("accuracy", "flops"), ("loss",)])
def test_result_prints_and_plots(objectives: tuple[str, ...]) -> None:
    from matplotlib.axes import Axes

    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    data = torch.randn(24, 1, 8, 8), torch.arange(24) % 3
    result = dp.search(
        model.eval(),
        data[0],
        calibration=data,
        validation=data,
        criteria=("l1", "l2"),
        objectives=objectives,
        max_flops=None if len(objectives) > 1 else 0.5,
        population=4,
        generations=1,
        progress=False,
    )
    assert str(result).startswith(f"{len(result.front)} solution") and "evaluations" in str(result)
    assert any(line.startswith("dense") for line in str(result).splitlines())
    assert len(repr(result).splitlines()) <= 12 and "<table>" in result._repr_html_()
    assert isinstance(result.plot(), Axes) and isinstance(result.front.plot(), Axes)


def test_short_cuts_lines_and_their_length() -> None:
    text = short(["x" * 500] * 40, "print(it)")
    assert len(text.splitlines()) == 12 and max(map(len, text.splitlines())) <= 140
    assert text.endswith("... 29 more lines: print(it)")
