"""Accuracy and loss of a network on data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.arguments import Count, checked
from deap_prune.data.batches import (
    Data,
    Forward,
    Loss,
    check_labels,
    count_samples,
    default_forward,
    resolve_device,
    stream,
)
from deap_prune.data.check_batches import errors_name
from deap_prune.data.devices import evaluating_on
from deap_prune.data.unchanged import copied
from deap_prune.errors import DataError, ModelError
from deap_prune.training.losses import has_one_label_each, in_fp32, target_loss


@checked
def accuracy(
    model: nn.Module,
    data: Data,
    *,
    batch_size: Count = 500,
    device: str | torch.device = "auto",
    forward: Forward | None = None,
) -> float:
    """Top-1 accuracy in [0, 1]: the share of images whose largest logit is the target's, in eval mode.

    Afterwards the network has its old modes and is on its old device.

    Args:
        model: The network.
        data: Inputs (N, ...) and targets (N,), or batches of them.
        batch_size: Images a batch; used for two tensors only.
        device: Where to compute; "auto" is CUDA if it is available, else the CPU.
        forward: Function of (model, batch) to (logits, targets); default: ``model(inputs)``, batch (inputs, targets).

    Raises:
        DataError: If there is no batch, targets do not fit the inputs or the network, or the device does not exist.
        ModelError: If the network does not give logits (N, classes).
    """
    device = resolve_device(device)
    hits = count = 0
    with evaluating_on(device, model), torch.no_grad():
        for batch in stream(data, name="the data for the accuracy", batch_size=batch_size, device=device):
            with errors_name("given"):
                logits, targets = (forward or default_forward)(model, copied(batch))
            _check_classes(logits, targets)
            hits += int((logits.argmax(1) == targets).sum())
            count += len(targets)
    return hits / count


def loss_and_accuracy(
    model: nn.Module,
    data: Data,
    *,
    device: str | torch.device = "auto",
    forward: Forward | None = None,
    loss: Loss | None = None,
) -> tuple[float, float | None]:
    """The mean loss, and the accuracy as in :func:`accuracy`, or None if samples do not have one label each.

    Args:
        model: The network.
        data: Two tensors or batches, as for :func:`deap_prune.finetune`.
        device: Where to compute; "auto" is CUDA if it is available, else the CPU.
        forward: Function of (model, batch) to (outputs, targets).
        loss: Function of (outputs, targets) to a mean, or to one value a sample; None for cross-entropy.

    Raises:
        DataError: If there is no batch, or targets do not fit.
        ModelError: If the outputs are not logits and no loss is given.
    """
    device = resolve_device(device)
    total, count, hits, labels, has_labels = 0.0, 0, 0, 0, True
    with evaluating_on(device, model), torch.no_grad():
        for batch in stream(data, name="the validation data", batch_size=500, device=device):
            with errors_name("validation"):
                outputs, targets = (forward or default_forward)(model, copied(batch))
            size = max(count_samples(batch), 1)
            total += float(target_loss(loss, in_fp32(outputs), targets)) * size
            count += size
            has_labels = has_labels and has_one_label_each(outputs, targets)
            if has_labels:
                hits += int((outputs.argmax(1) == targets).sum())
                labels += len(targets)
    return total / count, hits / labels if has_labels else None


def _check_classes(logits: Any, targets: Any) -> None:
    """Raise an error unless these are logits (N, classes) and int64 targets (N,) in 0 .. classes - 1."""
    if not isinstance(targets, Tensor):
        raise DataError(f"targets are a {type(targets).__name__}; give torch.int64 (N,)")
    if (
        not isinstance(logits, Tensor)
        or logits.ndim != 2
        or len(logits) != len(targets)
        or not logits.is_floating_point()
    ):
        shape = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"the network gives {shape} for {len(targets)} targets; logits (N, classes) are needed: give forward=, "
            "a function of (model, batch) to (logits, targets)"
        )
    if targets.dtype != torch.int64 or targets.ndim != 1:
        raise DataError(f"targets are {targets.dtype} {tuple(targets.shape)}; give torch.int64 (N,)")
    check_labels(logits, targets, name="the data")
