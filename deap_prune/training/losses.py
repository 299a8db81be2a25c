"""Training losses: the loss on the targets, and the distillation loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from deap_prune.data.batches import (
    Loss,
    are_class_labels,
    check_labels,
    check_map,
    cross_entropy,
    divergence,
    logits_of,
    tensors_of,
)
from deap_prune.errors import DataError, ModelError


def in_fp32(outputs: Any) -> Any:
    """The outputs with all floating-point tensors in fp32."""
    return tree_map(lambda x: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x, outputs)


def target_loss(loss: Loss | None, outputs: Any, targets: Any) -> Tensor:
    """The mean over a batch of the user's loss, or of cross-entropy.

    Args:
        loss: Function of (outputs, targets) to a mean, or to one value a sample; None for cross-entropy.
        outputs: Of the network; for cross-entropy logits (N, classes, ...), or a dict with them under "out".
        targets: For cross-entropy int64 labels (N, ...), or class probabilities (N, classes, ...).

    Raises:
        ModelError: If the outputs are not logits.
        DataError: If targets do not fit the outputs, or the loss does not return a tensor.
    """
    if loss is None:
        check_targets(logits_of(outputs), targets)
        try:
            return cross_entropy(outputs, targets)
        except DataError as error:
            raise DataError(f"{error}; in Python, give your own loss (loss=)") from error
    value = loss(outputs, targets)
    if not isinstance(value, Tensor):
        raise DataError(f"the loss returns a {type(value).__name__}; return a tensor: a mean, or one value a sample")
    return value.mean()


def has_one_label_each(outputs: Any, targets: Any) -> bool:
    """Whether outputs are logits (N, classes), and targets int64 labels (N,)."""
    return are_class_labels(outputs, targets) and targets.dim() == 1


def check_targets(logits: Any, targets: Any) -> None:
    """Raise an error unless these are logits, and labels of their classes or class probabilities.

    Raises:
        ModelError: If the network does not give logits.
        DataError: If targets do not fit.
    """
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ModelError(
            f"the network gives {shape}; logits (N, classes, ...) are needed: give forward=, a function of "
            "(model, batch) to (logits, targets), or your own loss (loss=)"
        )
    if not isinstance(targets, Tensor):
        raise DataError(f"targets are a {type(targets).__name__}; give labels, or your own loss (loss=)")
    if targets.is_floating_point():
        return  # cross_entropy checks class probabilities
    label_shape = tuple(logits.shape[:1] + logits.shape[2:])
    if targets.dtype != torch.int64 or targets.shape != label_shape:
        raise DataError(
            f"targets are {targets.dtype} {tuple(targets.shape)}; give torch.int64 {label_shape}, "
            "or your own loss (loss=)"
        )
    check_labels(logits, targets, name="the data")
    if targets.dim() > 1:
        check_map(logits, targets)


def distillation_loss(outputs: Any, teacher_outputs: Any, temperature: float, *, classes: bool) -> Tensor:
    """Distance of a network's outputs from its teacher's.

    Args:
        outputs: Of the network.
        teacher_outputs: Of the teacher.
        temperature: T.
        classes: Whether outputs are logits. If so: T^2 KL(softmax(t / T) || softmax(z / T)), the mean over samples and
            positions (Hinton et al. 2015, arXiv 1503.02531). If not: the mean squared difference, averaged over the
            output tensors (Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, arXiv 1312.6184).

    Raises:
        ModelError: If their shapes differ, or there are no tensors.
    """
    if classes:
        outputs, teacher_outputs = logits_of(outputs), logits_of(teacher_outputs)
    ours, theirs = ([x for x in tensors_of(tree) if x.is_floating_point()] for tree in (outputs, teacher_outputs))
    if not ours:
        raise ModelError("the outputs hold no tensors to compare with the teacher's; return tensors from forward=")
    our_shapes, their_shapes = ([tuple(x.shape) for x in tensors] for tensors in (ours, theirs))
    if our_shapes != their_shapes:
        raise ModelError(
            f"the teacher gives {_listed(their_shapes)} and the network {_listed(our_shapes)}; "
            "give a teacher with the same outputs"
        )
    if not classes:
        return torch.stack([F.mse_loss(z, t) for z, t in zip(ours, theirs, strict=True)]).mean()
    (logits,), (teacher_logits,) = ours, theirs
    return divergence(logits, teacher_logits, temperature)


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes)) or "nothing"
