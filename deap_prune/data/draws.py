"""Which images a generation is judged on.

A search on fixed training images ends in fitting those images: their loss keeps falling while test accuracy does, too.
Fewer of them, drawn anew for every generation and shifted and mirrored, are harder to memorise. All candidates of a
generation, parents included, see the same draw (common random numbers), so that what is compared is comparable.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from deap_prune.data.batches import Data, count_samples, join, samples_of, to_batches
from deap_prune.data.splits import augment
from deap_prune.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which validation images a generation is judged on; by default all of them, as they are.

    Attributes:
        images: How many are drawn, without repetition; None: all.
        augment: Shift them by up to an eighth of their size, and mirror half of them.
        redraw: A new draw for every generation; parents are judged again on it.
        seed: Of the draws.

    Raises:
        ConfigError: If ``images`` is below 1, or there is nothing to redraw.
    """

    images: int | None = None
    augment: bool = False
    redraw: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 1:
            raise ConfigError(f"sampling: images is {self.images}; give a number from 1 up, or None for all")
        if self.redraw and self.images is None and not self.augment:
            raise ConfigError("sampling: redraw changes nothing with all images as they are; set images or augment")

    def draw(self, batches: list[Any], number: int, batch_size: int) -> list[Any]:
        """The batches of a generation.

        Args:
            batches: All validation batches.
            number: Of the generation; without ``redraw`` all get the same.
            batch_size: Samples a batch.

        Raises:
            ConfigError: If there are not so many images, or the data is not of images where augmentation is asked for.
        """
        if self.images is None and not self.augment:
            return batches
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + (number if self.redraw else 0))
        total = sum(count_samples(b) for b in batches)
        count = total if self.images is None else self.images
        if count > total:
            raise ConfigError(f"sampling: images is {count}, but the validation data has {total} samples")
        if count < total:
            chosen = torch.randperm(total, generator=generator)[:count].sort().values
            batches = _take(batches, chosen, -(-count // batch_size))
        if self.augment:
            batches = [_shift(batch, generator) for batch in batches]
        return channels_last(batches)


EVERYTHING = Sampling()


def _take(batches: list[Any], chosen: Tensor, parts: int) -> list[Any]:
    """The chosen samples, in batches of nearly equal size."""
    try:
        joined = join(batches)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ConfigError(f"sampling: the validation batches can't be joined to draw images from ({error})") from error
    return [samples_of(joined, part) for part in chosen.to(_device_of(joined)).tensor_split(parts)]


def _device_of(batch: Any) -> torch.device:
    return next(leaf.device for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))


def _shift(batch: Any, generator: torch.Generator) -> Any:
    inputs = batch[0] if isinstance(batch, (tuple, list)) else None
    if not isinstance(inputs, Tensor) or inputs.dim() != 4:
        raise ConfigError("sampling: augment takes batches (images, targets) with images of shape (N, C, H, W)")
    return (augment(inputs, generator, padding=max(1, inputs.shape[-1] // 8)), *batch[1:])


def load(data: Data | None, name: str, needed: bool, batch_size: int, device: torch.device) -> list[Any]:
    """The data as batches on the device; none where it is not needed and not there.

    Raises:
        DataError: If it is missing, empty or not finite.
    """
    if data is None and needed:
        raise DataError(f"{name} data is needed: give {name}=(inputs, targets) tensors or an iterable of such batches")
    if data is None:
        return []
    return channels_last(to_batches(data, name=name, batch_size=batch_size, device=device))


def channels_last(batches: Any) -> Any:
    """Images with channels innermost: convolutions run faster so, forward. Weights stay as they are."""
    return tree_map(
        lambda x: x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.dim() == 4 else x,
        batches,
    )


@contextmanager
def full_precision() -> Iterator[None]:
    """fp32 means fp32: TF32 off, and deterministic cuDNN choices, so that a resumed run judges alike."""
    cudnn = torch.backends.cudnn
    before = (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic)
    products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = False, False, True
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
        torch.set_float32_matmul_precision(products)
