"""Data as people have it (a pair of tensors, a DataLoader) turned into batches that stay on the device."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from deap_prune.errors import DataError

Data = tuple[Tensor, Tensor] | Iterable[Any]
Forward = Callable[[nn.Module, Any], tuple[Any, Any]]
Loss = Callable[[Any, Any], Tensor]


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is CUDA where there is a device, the CPU elsewhere.

    Raises:
        DataError: If torch knows no such device, or CUDA is asked for and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise DataError(f"unknown device '{device}'; use 'auto', 'cpu', 'cuda' or 'cuda:1'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"device '{device}' was asked for, but torch finds no CUDA device; use device='auto' or 'cpu'")
    return chosen


def default_forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """(outputs, targets) of a batch (inputs, targets); inputs may be a tensor, a tuple or a dict."""
    inputs, targets = batch
    if isinstance(inputs, dict):
        return model(**inputs), targets
    return (model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)), targets


def to_batches(data: Data, *, name: str, batch_size: int = 250, device: torch.device) -> list[Any]:
    """All batches of :func:`stream`, to stay on the device.

    Raises:
        DataError: As there.
    """
    return list(stream(data, name=name, batch_size=batch_size, device=device))


def stream(data: Data, *, name: str, batch_size: int = 250, device: torch.device) -> Iterator[Any]:
    """Batches on the device, one after the other.

    Args:
        data: (inputs, targets) tensors, split here; or an iterable of batches, taken as they are.
        name: What to call the data in messages.
        batch_size: Samples a batch, for tensors.
        device: Where they stay.

    Raises:
        DataError: If there is nothing in it, lengths differ, or an input is not finite.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(d, Tensor) for d in data):
        inputs, targets = data
        if len(inputs) != len(targets):
            raise DataError(f"{name}: {len(inputs)} inputs but {len(targets)} targets")
        parts = -(-len(inputs) // batch_size)  # of nearly equal size: a batch of one has no batch statistics
        split = (inputs.tensor_split(parts), targets.tensor_split(parts)) if parts else ((), ())
        batches: Iterable[Any] = zip(*split, strict=True)
    else:
        batches = iterable(data, name)
    empty = True
    for batch in batches:
        leaves = tree_leaves(batch)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if leaves and not tensors:
            kind = type(leaves[0]).__name__
            raise DataError(f"{name} holds no tensors but {kind}: convert it first (torch.from_numpy for NumPy arrays)")
        empty = empty and not any(tensor.numel() for tensor in tensors)
        moved = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, batch)
        for leaf in tree_leaves(moved):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                raise DataError(f"{name} holds values that are not finite; clean or normalise the data first")
        yield moved
    if empty:
        raise DataError(f"{name} is empty: give (inputs, targets) tensors or an iterable of such batches")


def iterable(data: Any, name: str) -> Iterable[Any]:
    """The data, if it can be read batch by batch.

    Raises:
        DataError: If it is a dataset, whose items are samples, or no iterable.
    """
    if isinstance(data, torch.utils.data.Dataset):
        raise DataError(f"{name} is a {type(data).__name__}: wrap it in a torch.utils.data.DataLoader")
    if not isinstance(data, Iterable):
        kind = type(data).__name__
        raise DataError(f"{name} is a {kind}; give (inputs, targets) tensors or an iterable of such batches")
    return data


def first_forward(forward: Forward, model: nn.Module, batch: Any, *, name: str, labels: bool = True) -> tuple[Any, Any]:
    """Forward, with the data's name in what goes wrong.

    Raises:
        DataError: If the network fails on the batch, or labels (where they are looked at) are outside its classes.
    """
    try:
        outputs, targets = forward(model, batch)
    except Exception as error:
        raise DataError(
            f"the network fails on the {name} data: {type(error).__name__}: {error}; batches are (inputs, targets), "
            "with inputs as the network takes them (else pass forward=)"
        ) from error
    if labels:
        check_labels(outputs, targets, name=name)
    return outputs, targets


def check_batches(
    forward: Forward, model: nn.Module, batches: Sequence[Any], *, name: str, judge: Callable[[Any, Any], Any]
) -> None:
    """The network takes the data, the labels are of its classes, and the first batch can be judged.

    Args:
        forward: Function of (model, batch) to (outputs, targets).
        model: The network.
        batches: The data.
        name: What to call it in messages.
        judge: Called with (outputs, targets).

    Raises:
        DataError: If not.
    """
    if not batches:
        return
    outputs, targets = first_forward(forward, model, batches[0], name=name)
    for batch in batches[1:] if forward is default_forward else ():
        check_labels(outputs, batch[1], name=name)
    try:
        judge(outputs, targets)
    except Exception as error:
        kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
        raise DataError(
            f"the objectives fail on the {name} data: {kind}{error}; class labels are whole numbers, "
            "one a sample (labels.long()); for other targets give a loss of your own (loss=), or an objective "
            "(dp.register_objective)"
        ) from error


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of tuples, lists and dicts, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def count_samples(batch: Any) -> int:
    """Samples in a batch: the first dimension of its first tensor."""
    return next((len(tensor) for tensor in tensors_of(batch) if tensor.dim()), 0)


def samples_of(batch: Any, which: slice | Tensor) -> Any:
    """Some samples of a batch: of each tensor that has one row a sample; what belongs to no sample stays."""
    count = count_samples(batch)
    return tree_map(lambda x: x[which] if isinstance(x, Tensor) and x.dim() and len(x) == count else x, batch)


def join(batches: Sequence[Any]) -> Any:
    """Batches as one; what belongs to no sample, and is the same in all, stays as it is.

    Raises:
        DataError: If it differs from batch to batch.
    """
    counts = [count_samples(batch) for batch in batches]

    def joined(*leaves: Any) -> Any:
        each = zip(leaves, counts, strict=True)
        if all(isinstance(x, Tensor) and x.dim() and len(x) == count for x, count in each):
            return torch.cat(leaves)
        if any(isinstance(x, Tensor) and not torch.equal(x, leaves[0]) for x in leaves):
            raise DataError(
                f"batches hold tensors of shape {tuple(leaves[0].shape)} that differ from one to the next and have no "
                "row a sample, so samples can't be drawn from them"
            )
        return leaves[0]

    return tree_map(joined, *batches)


def logits_of(outputs: Any) -> Any:
    """The outputs, or what a dict has under "out" (torchvision's segmentation networks)."""
    return outputs["out"] if isinstance(outputs, Mapping) and "out" in outputs else outputs


def are_class_labels(outputs: Any, targets: Any) -> bool:
    """Whether outputs are logits (N, classes, ...) of at least two classes, and targets int64 labels (N, ...)."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.dim() < 2:
        return False
    fits = targets.shape == outputs.shape[:1] + outputs.shape[2:]
    return fits and targets.dtype == torch.int64 and outputs.shape[1] > 1


def divergence(logits: Tensor, dense_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(dense_logits / T) || softmax(logits / T)) in nats, the mean over samples and positions.

    Args:
        logits: Shape (N, classes, ...).
        dense_logits: Of the dense network or a teacher, the same shape.
        temperature: T (Hinton et al. 2015, arXiv 1503.02531).
    """
    ours, theirs = ((x / temperature).log_softmax(1) for x in (logits, dense_logits))
    positions = logits.numel() // logits.shape[1]
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) / positions * temperature**2


def cross_entropy(outputs: Any, targets: Tensor, *, by_sample: bool = False) -> Tensor:
    """Mean cross-entropy in nats, of labels or of shares of classes; labels below 0, and 255, are left out.

    Args:
        outputs: Logits, shape (N, classes, ...), or a dict with them under "out".
        targets: Labels, shape (N, ...), or shares that sum to 1 over the classes, shape (N, classes, ...).
        by_sample: The mean of each sample, shape (N,), and not of all.

    Raises:
        DataError: If targets are real numbers, but no such shares.
    """
    logits = logits_of(outputs)
    if targets.is_floating_point():
        _check_shares(logits, targets)
        values = F.cross_entropy(logits, targets, reduction="none").reshape(len(logits), -1)
        return values.mean(1) if by_sample else values.mean()
    known = counted(logits, targets)
    labels = targets.where(known, -100)
    if not by_sample:
        return F.cross_entropy(logits, labels, ignore_index=-100) if bool(known.any()) else 0 * logits.sum()
    values = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none").reshape(len(logits), -1)
    return values.sum(1) / known.reshape(len(known), -1).sum(1).clamp_min(1)


def counted(logits: Tensor, targets: Tensor) -> Tensor:
    """Which labels count: not those below 0, nor 255 where there is no such class."""
    return (targets >= 0) & ((targets != 255) | (logits.shape[1] > 255))


def check_map(logits: Tensor, targets: Tensor) -> Tensor:
    """Labels that count index the classes; which ones count.

    Raises:
        DataError: If one is above the classes.
    """
    known, classes = counted(logits, targets), logits.shape[1]
    if bool((targets[known] >= classes).any()):
        raise DataError(
            f"labels reach {int(targets[known].max())}; the network has classes 0 to {classes - 1} (mark what is to be "
            "left out by 255 or a negative label)"
        )
    return known


def _check_shares(logits: Tensor, targets: Tensor) -> None:
    shares = targets.shape == logits.shape and logits.dim() > 1 and logits.shape[1] > 1
    if not (shares and bool((targets >= 0).all()) and bool(((targets.float().sum(1) - 1).abs() < 1e-2).all())):
        raise DataError(
            f"targets are real numbers of shape {tuple(targets.shape)} but no shares of classes, and cross-entropy "
            "says nothing of them"
        )


def check_labels(outputs: Any, targets: Any, *, name: str) -> None:
    """Class labels (N,) must index the classes of outputs (N, classes).

    Raises:
        DataError: If a label is outside.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or targets.is_floating_point():
        return
    if outputs.dim() != 2 or targets.dim() != 1 or not targets.numel():
        return  # maps of labels may mark what to ignore by a number of its own
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= outputs.shape[1]:
        raise DataError(f"{name} has labels from {low} to {high}; the network has classes 0 to {outputs.shape[1] - 1}")


def name_of(device: torch.device) -> str:
    """What a device is called, with torch's threads where it is a CPU; latencies are worth nothing without it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} {device.type}, {torch.get_num_threads()} threads"
