"""Export of slimmed networks: safetensors with a recipe, torch.export, ONNX; exported outputs are checked."""

from __future__ import annotations

import copy
import hashlib
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.arguments import Count, NotNegative, checked
from deap_prune.config import ModelConfig, validated
from deap_prune.data.batches import tensors_of
from deap_prune.errors import ConfigError, ExportError, RegistryError, did_you_mean
from deap_prune.export_recipe import WEIGHTS, Recipe, read_recipe, recipe_text
from deap_prune.files import make_folder, write_bytes, write_text
from deap_prune.onnx_files import onnx_session, write_onnx
from deap_prune.structure.inputs import Call, Inputs, as_call, first_line, forward
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import slim, unwrap
from deap_prune.structure.tracing.trace import trace
from deap_prune.weights import build_model, load_weights, packed_weights

FORMATS = ("safetensors", "torch", "onnx")
RECIPE, PROGRAM, ONNX = "recipe.json", "network.pt2", "network.onnx"


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        files: The files written.
        difference: Format to the largest difference of an output from the network's, relative to the largest output.
        milliseconds: Median time of ONNX Runtime for one sample on the CPU, with torch's number of threads, for
            ``"slim"`` and, if it was given, ``"dense"``; empty without ONNX.
    """

    files: tuple[Path, ...]
    difference: Mapping[str, float]
    milliseconds: Mapping[str, float]

    def __str__(self) -> str:
        lines = [f"wrote {', '.join(map(str, self.files))}"]
        lines += [f"{name}: same labels, outputs within {gap:.1e}" for name, gap in self.difference.items()]
        if self.milliseconds:
            times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in self.milliseconds.items())
            lines.append(f"one sample in ONNX Runtime on the CPU (median): {times}")
        return "\n".join(lines)


@checked
def export(
    network: nn.Module,
    example_inputs: Inputs,
    folder: str | Path,
    *,
    formats: Sequence[str] = FORMATS,
    masks: Masks | None = None,
    model: ModelConfig | None = None,
    ignore: Sequence[str] = (),
    dense: nn.Module | None = None,
    tolerance: NotNegative = 1e-4,
    repeats: Count = 30,
) -> Exported:
    """Write a slimmed network in formats that do not need deap_prune (except for the recipe), and check the files.

    The batch size stays dynamic. A file that does not run, or whose outputs differ from the network's, is removed, and
    an error is raised.

    Args:
        network: A network from ``result.slim``, fine-tuned or not; it is not changed.
        example_inputs: Two or more real samples to check the files with: the network's inputs, as for ``dp.trace``.
        folder: Folder to write to; it is created.
        formats: ``"safetensors"`` (weights and recipe.json: see :func:`load`), ``"torch"`` (torch.export's .pt2),
            ``"onnx"``.
        masks: Masks of the network, for the recipe.
        model: Factory of the dense network, for the recipe; without it ``load`` needs the dense network, or the
            format "torch".
        ignore: Names of modules that were left dense, as given to ``dp.trace``.
        dense: The unpruned network, for a comparison of times.
        tolerance: Largest difference allowed, relative to the largest output.
        repeats: Number of timed runs.

    Examples:
        >>> done = dp.export(small, images, "exported", formats=("safetensors",), masks=masks)
        >>> again = dp.load("exported", model=model, example_inputs=images)
        >>> torch.equal(again(images), small(images))
        True

    Raises:
        RegistryError: If a format is unknown.
        ExportError: If a package or the masks are missing, the network can't be exported, or outputs differ.
    """
    _check(formats, masks)
    folder = Path(folder)
    make_folder(folder, may_be_link=True)
    plain, call = plain_copy(network), several_samples(example_inputs)
    files: list[Path] = []
    difference: dict[str, float] = {}
    milliseconds: dict[str, float] = {}
    if "safetensors" in formats and masks is not None:
        weights = packed_weights(plain, ".safetensors")
        recipe = recipe_text(plain, masks, model, ignore, call, hashlib.sha256(weights).hexdigest())
        write_bytes(folder / WEIGHTS, weights)
        write_text(folder / RECIPE, recipe)
        files += [folder / WEIGHTS, folder / RECIPE]
    if "torch" in formats or "onnx" in formats:
        program = program_of(plain, call)
    if "torch" in formats:
        torch.export.save(program, folder / PROGRAM)
        run = torch.export.load(folder / PROGRAM).module()
        difference["torch"] = _compare(plain, call, lambda c: _arrays(forward(run, c)), tolerance, folder / PROGRAM)
        files.append(folder / PROGRAM)
    if "onnx" in formats:
        write_onnx(program, folder / ONNX)
        session = onnx_session(folder / ONNX)
        difference["onnx"] = _compare(plain, call, lambda c: run_session(session, c), tolerance, folder / ONNX)
        files.append(folder / ONNX)
        sessions = {"slim": session}
        if dense is not None:
            with TemporaryDirectory() as temporary:
                write_onnx(program_of(plain_copy(dense), call), Path(temporary) / ONNX)
                sessions = {"dense": onnx_session(Path(temporary) / ONNX), **sessions}
        milliseconds = milliseconds_of(sessions, call, repeats)
    return Exported(tuple(files), difference, milliseconds)


@checked
def load(folder: str | Path, *, model: nn.Module | None = None, example_inputs: Inputs | None = None) -> nn.Module:
    """Load the network that ``export`` wrote into a folder, in this or another process; no pickle is read.

    With a recipe (format ``safetensors``) it is a network of its own class, which can be trained further. Without one,
    or if the recipe names no factory and no model is given, it is the program of the format ``torch``, for inference. A
    recipe's factory imports code: treat recipe.json as code, or give the dense network.

    Args:
        folder: Folder that contains recipe.json or network.pt2.
        model: The dense network, with any weights. Default: built by the recipe's factory.
        example_inputs: As for ``dp.trace``. Default: zeros of the exported shape.

    Returns:
        The slimmed network in eval mode.

    Raises:
        ExportError: If there is neither a usable recipe nor a program.
        PruneError: If network, masks and weights do not belong together.
    """
    path = Path(folder) / RECIPE
    if not path.is_file():
        if model is None and (path.parent / PROGRAM).is_file():
            return _load_program(path.parent / PROGRAM)
        raise ExportError(f"no {RECIPE} in '{folder}'; export with the format 'safetensors' writes it")
    recipe = read_recipe(path)
    if model is None and recipe.model is None:
        if (path.parent / PROGRAM).is_file():
            return _load_program(path.parent / PROGRAM)
        raise ExportError(f"'{path}' names no factory; give load(..., model=), the dense network with any weights")
    network = _dense(recipe, path) if model is None else model
    inputs = recipe.inputs if example_inputs is None else example_inputs
    recipe.check_weights(path.parent / WEIGHTS)
    small = slim(network, trace(network, inputs, ignore=recipe.ignore), recipe.masks)
    load_weights(small, path.parent / WEIGHTS)
    return small.eval()


def _dense(recipe: Recipe, path: Path) -> nn.Module:
    """The dense network that a recipe's factory makes."""
    source = validated(ModelConfig, recipe.model or {})
    try:
        return build_model(source).to(recipe.dtype)
    except ConfigError as error:
        advice = (
            f"'{path}' needs it: put the folder of '{source.factory.partition(':')[0]}' on PYTHONPATH, or give "
            "load(..., model=), the dense network with any weights"
        )
        if (path.parent / PROGRAM).is_file():
            advice += f"; torch.export.load('{path.parent / PROGRAM}').module() needs no class"
        else:
            advice += "; an export with the format 'torch' needs no class"
        raise ExportError(f"{error}. {advice}") from error


def _load_program(path: Path) -> nn.Module:
    try:
        module: nn.Module = torch.export.load(path).module()
    except Exception as error:
        raise ExportError(f"'{path}' can't be read as a torch.export program: {first_line(error)}") from error
    return module


def _check(formats: Sequence[str], masks: Masks | None) -> None:
    for name in (formats,) if isinstance(formats, str) else formats:
        if name not in FORMATS:
            raise RegistryError(f"unknown format '{name}'; {did_you_mean(name, FORMATS)}")
    if "safetensors" in formats and masks is None:
        raise ExportError("the format 'safetensors' needs masks=, of the slimmed network, for its recipe")
    if "onnx" in formats:
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
        if missing:
            raise ExportError(f"ONNX needs {', '.join(missing)}: pip install 'deap-prune[onnx]', or leave 'onnx' out")


def plain_copy(network: nn.Module) -> nn.Module:
    """A copy on the CPU in eval mode."""
    return copy.deepcopy(unwrap(network)).cpu().eval()


def several_samples(inputs: Inputs) -> Call:
    """The inputs on the CPU, with at least two samples: torch.export treats a batch size of one as a constant."""

    def several(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().cpu().contiguous()
        return torch.cat([leaf, leaf]) if leaf.dim() and len(leaf) == 1 else leaf

    call: Call = tree_map(several, as_call(inputs))
    return call


def program_of(network: nn.Module, call: Call) -> Any:
    """The program of torch.export, with a dynamic batch size."""
    args, kwargs = call
    dynamic = tree_map(lambda x: {0: torch.export.Dim.DYNAMIC} if isinstance(x, Tensor) and x.dim() else None, call)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(network, args, kwargs, dynamic_shapes=dynamic[1] if kwargs else dynamic[0])
    except Exception as error:
        raise ExportError(
            f"torch.export can't follow this network ({first_line(error)}); export it with formats=('safetensors',), "
            "or change what the message names"
        ) from error


def _arrays(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    return [(t.float() if t.dtype == torch.bfloat16 else t).detach().numpy() for t in tensors]  # NumPy has no bfloat16


def run_session(session: Any, call: Call) -> list[NDArray[Any]]:
    """Outputs of a session of ONNX Runtime."""
    tensors = _arrays(tensors_of(call))
    names = [entry.name for entry in session.get_inputs()]
    return list(session.run(None, dict(zip(names, tensors, strict=True))))


def _compare(
    network: nn.Module, call: Call, run: Callable[[Call], list[NDArray[Any]]], tolerance: float, path: Path
) -> float:
    """The largest difference of outputs, relative to the largest output, on the whole batch and on one sample.

    Raises:
        ExportError: If the file does not run, a label differs, or the difference exceeds the tolerance.
    """
    gap = 0.0
    single = tree_map(lambda x: x[:1] if isinstance(x, Tensor) and x.dim() else x, call)
    for inputs in (call, single):
        with torch.no_grad():
            expected = _arrays(forward(network, inputs))
            try:
                actual = run(inputs)
            except Exception as error:
                path.unlink()
                raise ExportError(f"'{path}' does not run ({first_line(error)}); it was removed") from error
        scale = max(float(np.abs(e).max()) for e in expected) or 1.0
        differences = [np.abs(a - e).max() / scale for a, e in zip(actual, expected, strict=True)]
        gap = max(gap, *(math.inf if np.isnan(d) else float(d) for d in differences))
        same = all((a.argmax(1) == e.argmax(1)).all() for a, e in zip(actual, expected, strict=True) if e.ndim > 1)
        if gap > tolerance or not same:
            path.unlink()
            labels = "" if same else "other labels, "
            raise ExportError(f"'{path}' gave {labels}outputs {gap:.1e} off (tolerance {tolerance:g}); it was removed")
    return gap


def milliseconds_of(sessions: Mapping[str, Any], call: Call, repeats: int) -> dict[str, float]:
    """Median milliseconds for one sample, networks alternating, after a warm-up; of one thread its own time."""
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    single = tree_map(lambda x: x[:1] if isinstance(x, Tensor) and x.dim() else x, call)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(repeats + 3):
        for name, timed in sessions.items():
            start = now()
            run_session(timed, single)
            if turn >= 3:
                seconds[name].append(now() - start)
    return {name: 1000 * statistics.median(times) for name, times in seconds.items()} if repeats else {}
