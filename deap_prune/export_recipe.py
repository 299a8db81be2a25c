"""The recipe of an exported network: recipe.json beside its weights, from which ``load`` makes the network again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.config import ModelConfig
from deap_prune.errors import ExportError
from deap_prune.files import parse_json, read_text, sealed_json, unsealed_json
from deap_prune.structure.inputs import Call
from deap_prune.structure.masks import Masks

WEIGHTS = "network.safetensors"
MOST_NUMBERS = 10**9
"""Size limit of the example inputs that a recipe describes."""


class _RecipeFile(BaseModel):
    model: dict[str, Any] | None
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    inputs: Any
    ignore: list[str]
    masks: dict[str, dict[str, Any]]
    weights_sha256: str | None = None


@dataclass(frozen=True, eq=False)
class Recipe:
    """The content of recipe.json.

    Attributes:
        model: Fields of the dense network's :class:`ModelConfig`, or None.
        dtype: Type of the weights.
        inputs: Example inputs of zeros.
        ignore: Names of modules that were left dense.
        masks: The filters that the network keeps.
        weights_sha256: Hash of the weights' file; None in recipes of earlier versions.
    """

    model: dict[str, Any] | None
    dtype: torch.dtype
    inputs: Any
    ignore: tuple[str, ...]
    masks: Masks
    weights_sha256: str | None

    def check_weights(self, path: Path) -> None:
        """Check that a file holds the weights that were exported with this recipe.

        Raises:
            ExportError: If it holds others.
        """
        if self.weights_sha256 is not None and path.is_file() and _hash(path) != self.weights_sha256:
            raise ExportError(
                f"'{path}' does not hold the weights that were exported with its recipe.json; export again, or take "
                "both files from a backup"
            )


def read_recipe(path: Path) -> Recipe:
    """Read recipe.json.

    Raises:
        ExportError: If it can't be read, is damaged, or was changed.
    """
    try:
        content = _RecipeFile.model_validate(unsealed_json(parse_json(read_text(path))))
        dtype, inputs = getattr(torch, content.dtype), _zeros(content.inputs)
        masks = Masks.from_json(json.dumps({"masks": content.masks}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ExportError(f"'{path}' can't be read as a recipe of this version: {error!r}; export again") from error
    return Recipe(content.model, dtype, inputs, tuple(content.ignore), masks, content.weights_sha256)


def recipe_text(
    network: nn.Module, masks: Masks, model: ModelConfig | None, ignore: Sequence[str], call: Call, weights: str
) -> str:
    """The text of recipe.json.

    Args:
        network: The slimmed network.
        masks: The filters that it keeps.
        model: Factory of the dense network, or None.
        ignore: Names of modules that were left dense.
        call: Its example inputs.
        weights: Hash of the file of its weights.

    Raises:
        ExportError: If the inputs hold other values than tensors and what JSON takes.
    """
    recipe = {
        "what": "a network slimmed by deap_prune; deap_prune.load(FOLDER) makes it",
        "weights": WEIGHTS,
        "weights_sha256": weights,
        "model": None if model is None else model.model_copy(update={"weights": None}).model_dump(mode="json"),
        "dtype": _short(next(network.parameters()).dtype),
        "inputs": _outline(call[1] or list(call[0])),
        "ignore": list(ignore),
        **json.loads(masks.to_json()),
    }
    try:
        return sealed_json(recipe)
    except TypeError as error:
        raise ExportError(f"the inputs can't be written to a recipe ({error}); leave 'safetensors' out") from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _outline(inputs: Any) -> Any:
    """Inputs for JSON: each tensor is replaced by the shape and dtype of one sample."""

    def described(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return {"shape": list(leaf[:1].shape) if leaf.dim() else [], "dtype": _short(leaf.dtype)}

    return tree_map(described, inputs)


def _zeros(outline: Any) -> Any:
    """Tensors of zeros for the inputs that :func:`_outline` described."""
    if isinstance(outline, dict) and set(outline) == {"shape", "dtype"}:
        shape, dtype = outline["shape"], getattr(torch, outline["dtype"])
        if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) > MOST_NUMBERS:
            raise ValueError(f"it has example inputs of shape {shape!r:.80}")
        return torch.zeros(shape, dtype=dtype)
    if isinstance(outline, dict):
        return {name: _zeros(part) for name, part in outline.items()}
    return [_zeros(part) for part in outline] if isinstance(outline, list) else outline
