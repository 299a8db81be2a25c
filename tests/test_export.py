"""Exports: every file gives the network's outputs, needs no pickle, and contains no code of the package."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

import deap_prune as dp
from deap_prune.config import ModelConfig
from deap_prune.errors import ExportError, ModelError, RegistryError
from deap_prune.zoo import digits_resnet


@pytest.fixture(scope="module")
def small(digits):
    """A slimmed network as it is evaluated, its masks, and images."""
    masks = dp.Masks.random(digits.space, keep=(0.3, 0.7), seed=1)
    return digits.evaluator().slim(masks), masks, digits.validation[0][:16]


def test_rebuilt_from_recipe_and_safetensors(small, tmp_path):
    network, masks, images = small
    source = ModelConfig(factory="deap_prune.zoo:digits_resnet")
    done = dp.export(network, images, tmp_path, formats=("safetensors",), masks=masks, model=source)
    assert [f.name for f in done.files] == ["network.safetensors", "recipe.json"] and done.milliseconds == {}
    rebuilt = dp.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(rebuilt(images), network(images))
    from_model = dp.load(tmp_path, model=digits_resnet(), example_inputs=images[:1])
    assert all(
        torch.equal(a, b) for a, b in zip(from_model.state_dict().values(), network.state_dict().values(), strict=True)
    )


def test_a_factory_that_another_folder_lacks_has_a_next_step(small, tmp_path):
    network, masks, images = small
    source = ModelConfig(factory="far_away_module:make")
    for formats, advice in (
        (("safetensors",), "format 'torch' needs"),
        (("safetensors", "torch"), "torch.export.load"),
    ):
        dp.export(network, images, tmp_path, formats=formats, masks=masks, model=source)
        with pytest.raises(
            ExportError, match="put the folder of 'far_away_module' on PYTHONPATH, or give load"
        ) as error:
            dp.load(tmp_path)
        assert "No module named 'far_away_module'" in str(error.value) and advice in str(error.value)


def test_a_slimmed_network_has_plain_torch_modules():
    """A slimmed network contains no classes, attributes or hooks of deap_prune."""
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    space = dp.trace(dense, torch.zeros(1, 3, 8, 8))
    slimmed = dp.slim(dense, space, dp.Masks.random(space, keep=0.5))
    for pruned, original in zip(slimmed.modules(), dense.modules(), strict=True):
        assert type(pruned) is type(original) and type(pruned).__module__.startswith("torch.nn")
        assert vars(pruned).keys() == vars(original).keys()
        assert not (pruned._forward_hooks or pruned._forward_pre_hooks or pruned._backward_hooks)


def test_torch_export_with_a_dynamic_batch_size(small, tmp_path):
    network, _, images = small
    done = dp.export(network, images[:1], tmp_path, formats=("torch",))
    assert done.difference["torch"] < 1e-5
    program = torch.export.load(tmp_path / "network.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(images), network(images), rtol=1e-4, atol=1e-5)


def test_onnx_in_onnxruntime(small, digits, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network, _, images = small
    done = dp.export(network, images, tmp_path, formats=("onnx",), dense=digits.model, repeats=3)
    assert done.difference["onnx"] < 1e-4 and set(done.milliseconds) == {"dense", "slim"}
    assert "same labels" in str(done) and "dense" in str(done)
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    more = digits.validation[0][:50]
    (logits,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    with torch.no_grad():
        assert (logits.argmax(1) == network(more).argmax(1).numpy()).all()


def test_a_file_that_differs_is_removed(small, tmp_path, monkeypatch):
    network, _, images = small
    wrong = digits_resnet().eval()
    program = torch.export.export(wrong, (images,))
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: program)
    with pytest.raises(ExportError, match=r"outputs .* off \(tolerance 0.0001\); it was removed"):
        dp.export(network, images, tmp_path, formats=("torch",))
    assert not (tmp_path / "network.pt2").exists()


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x, *, parts):
        return self.b(self.a(x).relu()).mean((2, 3)) + parts[0] * parts[1]


def test_keyword_inputs_of_any_precision(tmp_path):
    """The recipe contains names, nesting, constants and dtypes of all inputs."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = Keyword().to(dtype).eval()
        inputs = {"x": torch.randn(3, 3, 8, 8, dtype=dtype), "parts": [torch.randn(3, 4, dtype=dtype), 2.0]}
        space = dp.trace(model, inputs)
        masks = dp.Masks.random(space, keep=0.5, seed=1)
        small, folder = dp.slim(model, space, masks), tmp_path / str(dtype)
        done = dp.export(small, inputs, folder, formats=("safetensors", "torch"), masks=masks)
        assert done.difference["torch"] < 1e-5
        from_model = dp.load(folder, model=Keyword().to(dtype))
        source = ModelConfig(factory=f"{__name__}:Keyword")
        dp.export(small, inputs, folder, formats=("safetensors",), masks=masks, model=source)
        from_factory = dp.load(folder)
        assert all(torch.equal(a, b) for a, b in zip(from_factory.parameters(), small.parameters(), strict=True))
        with torch.no_grad():
            assert torch.equal(from_model(**inputs), small(**inputs))


def test_a_file_that_onnx_runtime_cannot_run_is_removed(tmp_path):
    pytest.importorskip("onnxruntime")
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()).double().eval()
    with pytest.raises(ExportError, match=r"ONNX Runtime can't run this network .* export network\.float\(\)"):
        dp.export(network, torch.randn(2, 3, 8, 8, dtype=torch.float64), tmp_path, formats=("onnx",))
    assert list(tmp_path.iterdir()) == []


class DataDependent(nn.Module):
    def forward(self, x):
        return x * 2 if float(x.sum()) > 0 else x


def test_errors(small, tmp_path, monkeypatch):
    network, _, images = small
    with pytest.raises(RegistryError, match="unknown format 'onxx'; did you mean 'onnx'"):
        dp.export(network, images, tmp_path, formats=("onxx",))
    with pytest.raises(ExportError, match="needs masks="):
        dp.export(network, images, tmp_path)
    with pytest.raises(ExportError, match=r"the inputs can't be written to a recipe .*; leave 'safetensors' out"):
        dp.export(network, (images, np.float32(2)), tmp_path, formats=("safetensors",), masks=small[1])
    with pytest.raises(ExportError, match=r"torch\.export can't follow this network"):
        dp.export(DataDependent(), images, tmp_path, formats=("torch",))
    module, find_spec = sys.modules["deap_prune.export"], importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    with pytest.raises(
        ExportError, match=r"ONNX needs (onnx, onnxscript, )?onnxruntime: pip install 'deap-prune\[onnx\]'"
    ):
        dp.export(network, images, tmp_path, formats=("onnx",))
    assert list(tmp_path.iterdir()) == []


def test_errors_of_load(small, tmp_path):
    network, masks, images = small
    with pytest.raises(ExportError, match=r"no recipe\.json in"):
        dp.load(tmp_path)
    dp.export(network, images, tmp_path, formats=("safetensors",), masks=masks)
    with pytest.raises(ExportError, match="names no factory; give load"):
        dp.load(tmp_path)
    (tmp_path / "network.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights at"):
        dp.load(tmp_path, model=digits_resnet())
    older = json.loads((tmp_path / "recipe.json").read_text())
    del older["dtype"], older["sha256"]  # recipes of earlier versions have no checksum
    (tmp_path / "recipe.json").write_text(json.dumps(older))
    with pytest.raises(ExportError, match=r"(?s)can't be read as a recipe of this version: .*dtype.*; export again"):
        dp.load(tmp_path, model=digits_resnet())
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ExportError, match="can't be read as a recipe of this version: "):
        dp.load(tmp_path, model=digits_resnet())
