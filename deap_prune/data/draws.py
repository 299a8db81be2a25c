"""Images as the fitness reads them: loaded to the device, shifted and mirrored if asked for, channels innermost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from deap_prune.data.batches import Data, to_batches
from deap_prune.data.splits import augment
from deap_prune.errors import ConfigError, DataError


def load_batches(data: Data | None, name: str, *, needed: bool, batch_size: int, device: torch.device) -> list[Any]:
    """All batches on the device; an empty list if the data is neither needed nor given.

    Raises:
        DataError: If the data is missing although it is needed, empty, or not finite.
    """
    if data is None and needed:
        raise DataError(f"{name} data is needed: give {name}=(inputs, targets) tensors or an iterable of such batches")
    if data is None:
        return []
    return channels_last(to_batches(data, name=name, batch_size=batch_size, device=device))


def augmented(batches: list[Any], seed: int) -> list[Any]:
    """The batches with their images shifted by up to an eighth of the width, and half of them mirrored.

    Training images are memorised by the network; shifted copies are harder, so that a search can't overfit them as
    easily. All candidates see the same shifts (common random numbers).

    Args:
        batches: Of (images, targets), images of shape (N, C, H, W).
        seed: Seed of the shifts.

    Raises:
        ConfigError: If a batch holds no such images.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003)
    return channels_last([_shifted(batch, generator) for batch in batches])


def _shifted(batch: Any, generator: torch.Generator) -> Any:
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(inputs, Tensor) or inputs.dim() != 4:
        raise ConfigError("augment takes batches (images, targets) with images of shape (N, C, H, W)")
    shifted = augment(inputs, generator, padding=max(1, inputs.shape[-1] // 8))
    return shifted if inputs is batch else (shifted, *batch[1:])


def channels_last(batches: Any) -> Any:
    """The batches with channels innermost in memory, which makes forward convolutions faster."""
    return tree_map(
        lambda x: x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.dim() == 4 else x,
        batches,
    )
