"""Mirror images of the calibration images: more images for refinement, where the dense network sees them alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from deap_prune.data.batches import Forward, are_class_labels, count_samples, join, samples_of

TESTED = 100
"""Number of images whose mirror images the dense network classifies to tell whether they are natural."""
SAME_CLASS = 0.75
"""Least share of them with the class of the image itself; photographs reach 0.9, digits and letters less than 0.5."""


@torch.no_grad()
def with_mirrored(network: torch.nn.Module, batch: Any, most: int, *, forward: Forward) -> Any:
    """The batch, followed by mirror images of its first samples, up to ``most`` samples.

    The batch alone if the network has no class logits, or gives too few mirror images the class of their image.

    Args:
        network: The dense network, in eval mode.
        batch: Samples; floating-point tensors of shape (N, C, H, W) are images.
        most: Most samples of the result, if the batch holds fewer.
        forward: Function of (model, batch) to (outputs, targets).
    """
    missing = min(count_samples(batch), most - count_samples(batch))
    if missing < 1 or not _classifies_alike(network, samples_of(batch, slice(TESTED)), forward):
        return batch
    return join([batch, _mirrored(samples_of(batch, slice(missing)))])


def _classifies_alike(network: torch.nn.Module, batch: Any, forward: Forward) -> bool:
    outputs, targets = forward(network, batch)
    if not are_class_labels(outputs, targets) or outputs.dim() != 2:
        return False
    other = forward(network, _mirrored(batch))[0]
    return float((outputs.argmax(1) == other.argmax(1)).float().mean()) >= SAME_CLASS


def _mirrored(batch: Any) -> Any:
    """The batch with left and right exchanged in its images."""
    count = count_samples(batch)

    def mirror(x: Any) -> Any:
        is_images = isinstance(x, Tensor) and x.dim() == 4 and len(x) == count and x.is_floating_point()
        return x.flip(-1) if is_images else x

    return tree_map(mirror, batch)
