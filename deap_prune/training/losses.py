"""What training makes small: a loss on the targets, and the distance from a teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from deap_prune.data.batches import Loss, check_labels, check_map, cross_entropy, logits_of, tensors_of
from deap_prune.errors import DataError, ModelError


def single(outputs: Any) -> Any:
    """Outputs in fp32, whatever precision they were computed in."""
    return tree_map(lambda x: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x, outputs)


def on_targets(own: Loss | None, outputs: Any, targets: Any) -> Tensor:
    """The mean of a loss of the user's over a batch, or cross-entropy.

    Args:
        own: Function of (outputs, targets) to a mean, or to one value a sample; None for cross-entropy.
        outputs: What the network gives; for cross-entropy logits (N, classes, ...), or a dict with them under "out".
        targets: For cross-entropy labels (N, ...), int64, or shares (N, classes, ...).

    Raises:
        ModelError: If the outputs are no logits.
        DataError: If targets do not fit to the outputs, or the loss gives no tensor.
    """
    if own is None:
        check_targets(logits_of(outputs), targets)
        try:
            return cross_entropy(outputs, targets)
        except DataError as error:
            raise DataError(f"{error}; from Python, give a loss of your own (loss=)") from error
    found = own(outputs, targets)
    if not isinstance(found, Tensor):
        raise DataError(f"the loss gives a {type(found).__name__}; it gives a tensor: a mean, or one value a sample")
    return found.mean()


def are_labels(outputs: Any, targets: Any) -> bool:
    """Outputs are logits (N, classes, ...) of two classes or more, and targets int64 labels (N, ...)."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.dim() < 2:
        return False
    fits = targets.shape == outputs.shape[:1] + outputs.shape[2:]
    return fits and targets.dtype == torch.int64 and outputs.shape[1] > 1


def one_label_each(outputs: Any, targets: Any) -> bool:
    """Outputs are logits (N, classes), and targets int64 labels (N,)."""
    return are_labels(outputs, targets) and targets.dim() == 1


def check_targets(logits: Any, targets: Any) -> None:
    """Logits, and labels that index their classes (or shares of them).

    Raises:
        ModelError: If the network does not give logits.
        DataError: If targets do not fit.
    """
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ModelError(
            f"the network gives {shape}; give logits (N, classes, ...), if need be by forward=, a function of model "
            "and batch to (logits, targets), or a loss of your own (loss=)"
        )
    if not isinstance(targets, Tensor):
        raise DataError(f"targets are a {type(targets).__name__}; give labels, or a loss of your own (loss=)")
    if targets.is_floating_point():
        return  # cross_entropy looks at shares
    wanted = logits.shape[:1] + logits.shape[2:]
    if targets.dtype != torch.int64 or targets.shape != wanted:
        raise DataError(
            f"targets are {targets.dtype} {tuple(targets.shape)}; give torch.int64 {tuple(wanted)}, "
            "or a loss of your own (loss=)"
        )
    check_labels(logits, targets, name="the data")
    if targets.dim() > 1:
        check_map(logits, targets)


def from_teacher(outputs: Any, wanted: Any, temperature: float, *, classes: bool) -> Tensor:
    """How far a network's outputs are from its teacher's.

    Args:
        outputs: The network's.
        wanted: The teacher's.
        temperature: T.
        classes: Outputs are logits: T^2 KL(softmax(t / T) || softmax(z / T)), the mean over samples and positions
            (Hinton et al. 2015, arXiv 1503.02531). Else the mean squared difference of the outputs (of several tensors
            the mean of theirs; Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, arXiv 1312.6184).

    Raises:
        ModelError: If their shapes differ.
    """
    if classes:
        outputs, wanted = logits_of(outputs), logits_of(wanted)
    ours, theirs = ([x for x in tensors_of(tree) if x.is_floating_point()] for tree in (outputs, wanted))
    if not ours:
        raise ModelError("the outputs hold no tensors to compare with the teacher's; give some by forward=")
    if (here := [tuple(x.shape) for x in ours]) != (there := [tuple(x.shape) for x in theirs]):
        raise ModelError(
            f"the teacher gives {_shapes(there)} and the network {_shapes(here)}; give a teacher with the same outputs"
        )
    if not classes:
        return torch.stack([F.mse_loss(z, t) for z, t in zip(ours, theirs, strict=True)]).mean()
    (z,), (t,) = ours, theirs
    student, master = F.log_softmax(z / temperature, 1), F.log_softmax(t / temperature, 1)
    places = z.numel() // z.shape[1]
    return F.kl_div(student, master, reduction="sum", log_target=True) / places * temperature**2


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes)) or "nothing"
