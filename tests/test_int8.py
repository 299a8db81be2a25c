"""Eight bits: slimmed networks nearly keep their outputs, whatever channels are gone; the comparison is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import deap_prune as dp
from deap_prune.cli import app
from deap_prune.errors import ExportError
from deap_prune.int8 import INT8, export_int8
from deap_prune.onnx_files import onnx_session
from tests.helpers.networks import conv
from tests.helpers.pruning import prepared

pytest.importorskip("onnxruntime")


def mobile() -> nn.Module:
    """A depthwise convolution between two that mix channels."""
    torch.manual_seed(0)
    depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    return nn.Sequential(conv(3, 24), nn.BatchNorm2d(24), nn.ReLU6(), depthwise, nn.ReLU6(), conv(24, 12), *head).eval()


def cases() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    return {
        "residual": (prepared("residual").model, tuple(prepared("residual").inputs[:1].shape)),
        "concat": (prepared("concat").model, tuple(prepared("concat").inputs[:1].shape)),
        "mobile": (mobile(), (1, 3, 8, 8)),
    }


@pytest.mark.parametrize("name", ["residual", "concat", "mobile"])
def test_pruned_channels_do_not_break_quantisation(name: str, tmp_path: Path) -> None:
    """Outputs of random networks with odd widths, against the fp32 network in torch."""
    model, shape = cases()[name]
    images = torch.randn(64, *shape[1:], generator=torch.Generator().manual_seed(1))
    space = dp.trace(model, images[:1])
    small = dp.slim(model, space, dp.Masks.random(space, keep=(0.3, 0.8), seed=2))
    with torch.no_grad():
        expected = small.eval()(images)
    labels = expected.argmax(1)
    data = (images, labels)
    done = export_int8(small, images[:2], tmp_path, calibration=data, test=data, dense=model, repeats=1)
    assert [v.name for v in done.variants] == ["dense fp32", "dense int8", "slim fp32", "slim int8"]
    (outputs,) = onnx_session(done.file).run(None, {onnx_session(done.file).get_inputs()[0].name: images.numpy()})
    assert np.abs(outputs - expected.numpy()).mean() < 0.03 * float(expected.abs().max())
    accuracies = {v.name: v.accuracy for v in done.variants}
    assert accuracies["slim fp32"] == 1.0
    assert accuracies["slim int8"] == float((outputs.argmax(1) == labels.numpy()).mean())
    assert done.variants[-1].size == done.file.stat().st_size and done.file.name == INT8
    assert "slim int8" in str(done) and str(done).count("%") == 4


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a run that Python started, whose folder has no test images: validation images, and it says so."""
    search: dict[str, Any] = {"population": 2, "generations": 0, "criteria": ("l1",), "finalists": 0, "refine": False}
    images, labels = torch.randn(32, 3, 8, 8), torch.arange(32) % 4
    data = {"calibration": (images, labels), "validation": (images, labels)}
    where = {"out": tmp_path / "run", "factory": f"{__name__}:mobile", "keep_data": True, "progress": False}
    dp.search(mobile(), images[:1], **data, **search, **where)
    done = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--number", "0", "--int8"], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and (tmp_path / "run" / "export" / INT8).is_file(), done.output
    assert "dense int8" in done.output and "accuracy on validation images" in done.output
    monkeypatch.setattr("deap_prune.int8.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"ONNX needs onnx, onnxscript, onnxruntime: pip install"):
        export_int8(mobile(), images[:1], tmp_path, calibration=data["calibration"])
