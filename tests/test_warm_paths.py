"""Dict batches, checkpoints of other programs, factories beside a config, ONNX axes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.config import ModelConfig, load_config
from deap_prune.training.evaluation import loss_and_accuracy
from deap_prune.weights import build_model, load_weights
from deap_prune.zoo import digits_resnet


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()


def pair() -> tuple[Tensor, Tensor]:
    return torch.randn(24, 1, 8, 8), torch.arange(24) % 3


def as_dicts(data: tuple[Tensor, Tensor]) -> list[dict[str, Tensor]]:
    return [{"pixels": x, "labels": y} for x, y in zip(data[0].split(8), data[1].split(8), strict=True)]


def forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return model(batch["pixels"]), batch["labels"]


def test_helpers_take_dict_batches() -> None:
    model, data = network(), pair()
    dicts = as_dicts(data)
    assert dp.accuracy(model, dicts, forward=forward) == dp.accuracy(model, data)
    assert loss_and_accuracy(model, dicts, forward=forward)[0] == pytest.approx(loss_and_accuracy(model, data)[0])
    result = dp.search(
        model,
        data[0],
        calibration=dicts,
        validation=dicts,
        forward=forward,
        criteria=("l1", "taylor_gate"),
        population=4,
        generations=1,
        progress=False,
    )
    small = result.slim(0)
    dp.finetune(small, dicts, dicts, epochs=1, forward=forward, progress=False)
    dp.recover(small, model, dicts, steps=2, forward=forward)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_checkpoints_are_unwrapped(key: str | None, prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, again = digits_resnet(width=4), digits_resnet(width=4)
    state: Any = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "net.pth")
    load_weights(again, tmp_path / "net.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_compiled_submodules_are_unwrapped(tmp_path: Path) -> None:
    model = network()
    state = {name.replace("0.", "0._orig_mod.", 1): value for name, value in model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "net.pth")
    again = network()
    load_weights(again, tmp_path / "net.pth")
    assert torch.equal(again[0].weight, model[0].weight)


def test_a_factory_beside_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    home = tmp_path / "project"
    home.mkdir()
    (home / "beside_config.py").write_text("from torch import nn\n\ndef make():\n    return nn.Conv2d(1, 2, 3)\n")
    (home / "own.yaml").write_text("model: {factory: 'beside_config:make'}\n")
    config = load_config(home / "own.yaml")
    assert config.imports == [str(home)] and config.model is not None
    assert isinstance(build_model(config.model), nn.Conv2d)
    (home / "other.yaml").write_text("model: {factory: 'deap_prune.zoo:digits_resnet'}\n")
    assert load_config(home / "other.yaml").imports == []


def test_a_run_folder_names_the_folder_of_its_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "far_factory.py").write_text("from torch import nn\n\ndef make():\n    return nn.ReLU()\n")
    (tmp_path / "run").mkdir()
    text = f"model: {{factory: 'far_factory:make'}}\nimports: {tmp_path / 'far'}\n"
    (tmp_path / "run" / "config.yaml").write_text(text)
    config = load_config(tmp_path / "run")
    assert config.model is not None and isinstance(build_model(config.model), nn.ReLU)


def test_load_in_another_process(tmp_path: Path) -> None:
    model = digits_resnet(width=4).eval()
    inputs = torch.randn(3, 1, 8, 8)
    space = dp.trace(model, inputs)
    masks = dp.Masks.random(space, keep=0.5)
    small = dp.slim(model, space, masks)
    source = ModelConfig(factory="deap_prune.zoo:digits_resnet", kwargs={"width": 4})
    dp.export(small, inputs, tmp_path / "slim", formats=("safetensors",), masks=masks, model=source)
    dp.export(small, inputs, tmp_path / "program", formats=("safetensors", "torch"), masks=masks)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = (
        "import torch, deap_prune as dp\nx = torch.load('inputs.pt')\n"
        "a, b = dp.load('slim/'), dp.load('program/')\n"
        "torch.save([a(x).detach(), b(x).detach()], 'outputs.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    for outputs in torch.load(tmp_path / "outputs.pt"):
        torch.testing.assert_close(outputs, small(inputs).detach(), rtol=1e-4, atol=1e-5)


def test_onnx_axes_have_names(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    dp.export(network(), torch.randn(3, 1, 8, 8), tmp_path, formats=("onnx",), repeats=1)
    graph = onnx.load(str(tmp_path / "network.onnx")).graph
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
