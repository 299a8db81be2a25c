"""Files of weights, and factories: what loads, and the messages about what does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from deap_prune.config import load_config
from deap_prune.errors import ConfigError, ModelError
from deap_prune.search.from_config import open_config
from deap_prune.weights import load_weights, read_weights, save_weights

FACTORY = {"factory": "deap_prune.zoo:digits_resnet", "kwargs": {"width": 4}}


def network(tmp_path: Path, **model: Any) -> nn.Module:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": {**FACTORY, **model}, "data": {"format": "digits"}}))
    return open_config(load_config(path)).task.model


def test_weights_files(tmp_path: Path) -> None:
    model = network(tmp_path)
    save_weights(model, tmp_path / "a.safetensors")
    torch.save(model.state_dict(), tmp_path / "a.pth")
    torch.save({"state_dict": nn.DataParallel(model).state_dict()}, tmp_path / "wrapped.pth")
    save_weights(nn.DataParallel(model), tmp_path / "unwrapped.safetensors")
    from safetensors.torch import save_file

    save_file(nn.DataParallel(model).state_dict(), tmp_path / "wrapped.safetensors")
    for name in ("a.safetensors", "a.pth", "wrapped.pth", "unwrapped.safetensors", "wrapped.safetensors"):
        again = network(tmp_path, weights=str(tmp_path / name))
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items()), name


class Malice:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("deap_prune_was_here"),))


def test_weights_that_can_not_be_loaded(tmp_path: Path) -> None:
    missing = tmp_path / "none.safetensors"
    with pytest.raises(ModelError, match=rf"no weights at '{missing}'; set model.weights to a .safetensors or .pth"):
        network(tmp_path, weights=str(missing))
    with pytest.raises(ModelError, match=r"no weights at '.*none.safetensors'; give a"):
        read_weights(missing)
    model = network(tmp_path)
    for name in ("garbage.safetensors", "garbage.pth"):
        (tmp_path / name).write_bytes(b"not a file of weights at all" * 9)
        with pytest.raises(ModelError, match=f"{name}' can't be read"):
            load_weights(model, tmp_path / name)
    torch.save({"a": Malice()}, tmp_path / "malice.pth")
    with pytest.raises(ModelError, match=r"malice.pth' can't be read as a plain state dict"):
        read_weights(tmp_path / "malice.pth")
    assert not Path("deap_prune_was_here").exists()
    torch.save({"a": 3}, tmp_path / "numbers.pth")
    with pytest.raises(ModelError, match=r"numbers.pth' is no state dict of tensors"):
        read_weights(tmp_path / "numbers.pth")
    save_weights(nn.Linear(2, 2), tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"the weights in '.*other.safetensors' don't fit the network: .*conv1.weight"):
        load_weights(model, tmp_path / "other.safetensors")


def test_factories_that_fail(tmp_path: Path) -> None:
    for factory, message in [
        ("digits_resnet", "factory 'digits_resnet' is not 'module:function', such as"),
        ("deap_prune.zoo:digit", "factory 'deap_prune.zoo:digit' can't be imported"),
        ("no_such_module:make", "factory 'no_such_module:make' can't be imported"),
        ("builtins:dict", "factory 'builtins:dict' made a dict, not an nn.Module"),
        ("math:sqrt", "factory 'math:sqrt' failed: TypeError"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            network(tmp_path, factory=factory)
