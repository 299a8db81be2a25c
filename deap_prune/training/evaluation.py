"""How good a network is on data, without training it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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
from deap_prune.errors import DataError, ModelError
from deap_prune.training.losses import on_targets, one_label_each, single


def accuracy(
    model: nn.Module,
    data: Data,
    *,
    batch_size: int = 500,
    device: str | torch.device = "auto",
    forward: Forward | None = None,
) -> float:
    """Share of images, 0 .. 1, whose largest logit is the target's (top-1), in eval mode.

    The network is left in the modes and on the device that it came in.

    Args:
        model: The network.
        data: Inputs (N, ...) and targets (N,), or batches of them.
        batch_size: Images a batch, when two tensors are given.
        device: Where to compute; "auto" is CUDA where there is any, else the CPU.
        forward: Model and batch to (logits, targets); default: ``model(inputs)``, batch (inputs, targets).

    Raises:
        DataError: If there is no batch, targets do not fit to inputs or network, or there is no such device.
        ModelError: If the network does not give logits (N, classes).
    """
    place = resolve_device(device)
    hits = count = 0
    with placed(place, model), torch.no_grad():
        for batch in stream(data, name="the data for the accuracy", batch_size=batch_size, device=place):
            logits, targets = (forward or default_forward)(model, batch)
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
    """The mean loss, and the accuracy (as :func:`accuracy`) where each sample has one label, else None.

    Args:
        model: The network.
        data: As for training.
        device: Where to compute; "auto" is CUDA where there is any, else the CPU.
        forward: Model and batch to (outputs, targets).
        loss: A function of the user's; cross-entropy if None.

    Raises:
        DataError: If there is no batch, or targets do not fit.
        ModelError: If the outputs are no logits, and there is no loss for others.
    """
    place = resolve_device(device)
    total, count, hits, labels, labelled = 0.0, 0, 0, 0, True
    with placed(place, model), torch.no_grad():
        for batch in stream(data, name="the validation data", batch_size=500, device=place):
            outputs, targets = (forward or default_forward)(model, batch)
            size = max(count_samples(batch), 1)
            total += float(on_targets(loss, single(outputs), targets)) * size
            count += size
            labelled = labelled and one_label_each(outputs, targets)
            if labelled:
                hits += int((outputs.argmax(1) == targets).sum())
                labels += len(targets)
    return total / count, hits / labels if labelled else None


def _check_classes(logits: Any, targets: Any) -> None:
    """Logits (N, classes) and int64 targets (N,) in 0 .. classes - 1."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(targets):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"the network gives {shape} for {len(targets)} targets; give logits (N, classes), if need be "
            "by forward=, a function of model and batch to (logits, targets)"
        )
    if targets.dtype != torch.int64 or targets.ndim != 1:
        raise DataError(f"targets are {targets.dtype} {tuple(targets.shape)}; give torch.int64 (N,)")
    check_labels(logits, targets, name="the data")


@contextmanager
def placed(place: torch.device, model: nn.Module | None, *, keep_modes: bool = True) -> Iterator[None]:
    """Bring a network to a device in eval mode; afterwards home again, in its old modes or in eval mode."""
    if model is None:
        yield
        return
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.to(place).eval()
        yield
    finally:
        model.to(home).eval()
        if keep_modes:
            for module, mode in modes:
                module.training = mode
