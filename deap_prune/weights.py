"""Networks and weights from files: safetensors, or torch files read with ``weights_only``; no pickle."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.config import ModelConfig, import_factory
from deap_prune.errors import ConfigError, ModelError
from deap_prune.files import check_writable, write_bytes
from deap_prune.structure.slim import unwrap
from deap_prune.structure.tracing.clean_copy import check_finite


def build_model(config: ModelConfig) -> nn.Module:
    """Build the network that a config describes, in eval mode.

    Raises:
        ConfigError: If the factory can't be imported or called.
        ModelError: If the weights are missing, don't fit, or are not finite.
    """
    if config.weights is not None and not Path(config.weights).is_file():
        raise ModelError(f"no weights at '{config.weights}'; set model.weights to a .safetensors or .pth file")
    factory = torch.hub.load if config.factory == "torch.hub" else import_factory(config.factory)
    try:
        model = factory(*config.args, **config.kwargs)
    except (Exception, SystemExit) as error:
        advice = (
            "; without a network connection give a file: init and prune take --weights FILE, a config model.weights "
            "with model.kwargs.weights=null"
        ) * isinstance(error, OSError)
        raise ConfigError(f"factory '{config.factory}' failed: {type(error).__name__}: {error}{advice}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"factory '{config.factory}' made a {type(model).__name__}, not an nn.Module")
    if config.weights is not None:
        load_weights(model, config.weights)
    check_finite(model)
    return model.eval()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a file, alone or as ``state_dict``, ``model`` or ``model_state_dict`` of a checkpoint.

    The prefixes of DataParallel (``module.``) and torch.compile (``_orig_mod.``) are removed.

    Raises:
        ModelError: If there is no such file, or it contains anything other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"no weights at '{path}'; give a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(str(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"'{path}' can't be read as a plain state dict ({type(error).__name__}); save model.state_dict(), "
            "better as safetensors"
        ) from error
    state = _inner_state(state)
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ModelError(f"'{path}' is no state dict of tensors")
    names = [name.replace("_orig_mod.", "") for name in state]
    if all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return dict(zip(names, state.values(), strict=True))


def _inner_state(content: Any) -> Any:
    """The state dict in a checkpoint that holds it beside other entries, or the content itself."""
    keys = ("state_dict", "model", "model_state_dict")
    inner = [content[key] for key in keys if isinstance(content, dict) and isinstance(content.get(key), dict)]
    return inner[0] if inner else content


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a state dict into a network, strictly.

    Raises:
        ModelError: If names or shapes don't fit.
    """
    state, places = read_weights(path), unwrap(model).state_dict()
    if mixed := [
        name for name in places if name in state and state[name].is_complex() and not places[name].is_complex()
    ]:
        raise ModelError(f"the weights in '{path}' don't fit the network: '{mixed[0]}' is complex")
    try:
        unwrap(model).load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:600]
        raise ModelError(f"the weights in '{path}' don't fit the network: {reason}") from error


def check_weights_file(path: Path) -> None:
    """Check that weights can be written to a file, before the work that makes them.

    Raises:
        ModelError: If the suffix is not that of weights.
        RunError: If the file can't be written.
    """
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ModelError(f"weights are written to .safetensors, .pth or .pt files, not to '{path.name}'")
    check_writable(path)


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a state dict in one step, as safetensors, or as a torch file if the suffix is .pth or .pt.

    Raises:
        ModelError: If the suffix is another, or the state dict holds other values than tensors.
        RunError: If the file can't be written.
    """
    path = Path(path)
    check_weights_file(path)
    write_bytes(path, packed_weights(model, path.suffix))


def packed_weights(model: nn.Module, suffix: str) -> bytes:
    """A state dict as the content of a file.

    Args:
        model: The network.
        suffix: Suffix of the file: .safetensors, .pth or .pt.

    Raises:
        ModelError: If the state dict holds other values than tensors.
    """
    from safetensors.torch import save

    others = [name for name, value in unwrap(model).state_dict().items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(f"'{others[0]}' is no tensor (of a quantized layer?), so it can't be saved")
    state = {name: value.detach().cpu().contiguous().clone() for name, value in unwrap(model).state_dict().items()}
    if suffix == ".safetensors":
        return save(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
