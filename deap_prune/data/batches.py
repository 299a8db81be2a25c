"""Batches on the device from two tensors or a DataLoader; samples, labels and logits of batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from deap_prune.errors import DataError, PruneError

MOST_SCALE = 1e12
"""Largest value of inputs and targets: squares of larger ones do not fit into fp32 sums."""

Data = tuple[Tensor, Tensor] | Tensor | Iterable[Any]
Forward = Callable[[nn.Module, Any], tuple[Any, Any]]
Loss = Callable[[Any, Any], Tensor]
LARGEST_BATCH = 2**25
"""Most bytes of inputs that tensors are split into: 55 images of 224 x 224, and all 250 of 32 x 32."""


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of that name; ``"auto"`` is CUDA if it is available, else the CPU.

    Raises:
        DataError: If torch knows no such device, or CUDA is not available.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise DataError(f"unknown device '{device}'; use 'auto', 'cpu', 'cuda' or 'cuda:1'") from error
    if chosen.type == "meta":
        raise DataError("device='meta' has no values; use 'auto', 'cpu', 'cuda' or 'cuda:1'")
    if chosen.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=chosen)
        except (RuntimeError, NotImplementedError, AssertionError) as error:
            reason = str(error).split("\n")[0]
            raise DataError(f"device='{device}' can't be used: {reason}; use 'auto', 'cpu' or 'cuda'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"device='{device}', but torch finds no CUDA device; use device='auto' or 'cpu'")
    return chosen


def default_forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """(outputs, targets) of a batch of :func:`parts_of`; inputs may be a tensor, a tuple or a dict."""
    inputs, targets = parts_of(batch)
    if isinstance(inputs, dict):
        return model(**inputs), targets
    return (model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)), targets


def parts_of(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch; targets are None in a batch of inputs alone.

    Raises:
        DataError: If the batch is no such pair.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, (tuple, list)) and len(batch) == 1 and isinstance(batch[0], Tensor):
        return batch[0], None  # as from a TensorDataset of images
    size = f" of {len(batch)} entries" if isinstance(batch, Sized) else ""
    raise DataError(
        f"a batch is a {type(batch).__name__}{size}; give (inputs, targets), or inputs alone, or a function of "
        "(model, batch) to (outputs, targets) (forward=)"
    )


def is_tensor_pair(data: Any) -> TypeGuard[tuple[Tensor, Tensor]]:
    """Whether data is two tensors, inputs and targets, and not an iterable of batches."""
    return isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)


def to_batches(data: Data, *, name: str, batch_size: int = 250, device: torch.device) -> list[Any]:
    """All batches of :func:`stream` as a list.

    Raises:
        DataError: As for :func:`stream`.
    """
    return list(stream(data, name=name, batch_size=batch_size, device=device))


def stream(data: Data, *, name: str, batch_size: int = 250, device: torch.device) -> Iterator[Any]:
    """Yield the batches of the data, on the device.

    Args:
        data: Two tensors (inputs, targets) or one (inputs alone), which are split into batches; or an iterable of
            batches, used as they are. Batches without samples are left out.
        name: Name of the data in messages.
        batch_size: Most samples a batch, and at most 32 MB of inputs; used for two tensors only.
        device: Device of the batches.

    Raises:
        DataError: If the data is empty or can't be read, lengths differ, or values are not finite or of huge scale.
    """
    batch_size = _at_most(data[0] if is_tensor_pair(data) else data, batch_size)
    if is_tensor_pair(data):
        inputs, targets = data
        check_dense(data, name)
        if len(inputs) != len(targets):
            raise DataError(f"{name}: {len(inputs)} inputs but {len(targets)} targets")
        parts = -(-len(inputs) // batch_size)  # of nearly equal size: one sample has no batch statistics
        split = (inputs.tensor_split(parts), targets.tensor_split(parts)) if parts else ((), ())
        batches: Iterable[Any] = zip(*split, strict=True)
    elif isinstance(data, Tensor) and data.dim():
        check_dense([data], name)
        batches = data.tensor_split(-(-len(data) // batch_size)) if data.numel() else ()
    else:
        batches = readable(data, name)
    empty = True
    for batch in batches:
        leaves = tree_leaves(batch)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if leaves and not tensors:
            kind = type(leaves[0]).__name__
            raise DataError(f"{name} holds no tensors but {kind}: convert it first (torch.from_numpy for NumPy arrays)")
        check_dense(tensors, name)
        if tensors and not count_samples(batch):
            continue  # a batch without samples
        empty = empty and not any(tensor.numel() for tensor in tensors)
        moved = tree_map(lambda x: x.detach().to(device) if isinstance(x, Tensor) else x, batch)
        for leaf in tensors_of(moved):
            _check_values(leaf, name)
        yield moved
    if empty:
        raise DataError(f"{name} is empty: give (inputs, targets) tensors or an iterable of such batches")


def _at_most(inputs: Any, batch_size: int) -> int:
    """The batch size, or less where a batch of this tensor would be above ``LARGEST_BATCH``; at least 2."""
    if not isinstance(inputs, Tensor) or inputs.is_nested or not inputs.dim() or not inputs.numel():
        return batch_size
    return min(batch_size, max(2, LARGEST_BATCH * len(inputs) // (inputs.numel() * inputs.element_size())))


def _check_values(tensor: Tensor, name: str) -> None:
    if not tensor.is_floating_point() or not tensor.numel():
        return
    largest = float(tensor.abs().amax())
    if not math.isfinite(largest):
        raise DataError(f"{name} holds values that are not finite; clean or normalise the data first")
    if largest > MOST_SCALE:
        raise DataError(f"{name} holds values up to {largest:.3g}; normalise the data first")


def check_dense(tensors: Iterable[Tensor], name: str) -> None:
    """A DataError if one is sparse, quantized, nested or on the meta device."""
    for tensor in tensors:
        if tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.layout is not torch.strided:
            kind = "on the meta device" if tensor.is_meta else "sparse, quantized or nested"
            raise DataError(f"{name} holds a tensor that is {kind}; give dense tensors with values (to_dense())")


def readable(data: Any, name: str) -> Iterator[Any]:
    """The batches of the data; errors of reading them name the data.

    Raises:
        DataError: If it is no iterable of batches, or reading a batch fails.
    """
    batches, number = iter(iterable(data, name)), 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except PruneError:
            raise
        except Exception as error:
            raise DataError(
                f"batch {number} of {name} can't be read: {type(error).__name__}: {str(error)[:500]}; repair the data "
                "set, or leave out what fails"
            ) from error
        yield batch
        number += 1


def iterable(data: Any, name: str) -> Iterable[Any]:
    """The data itself, if it is an iterable of batches.

    Raises:
        DataError: If it is a dataset, whose items are samples, or not an iterable.
    """
    if isinstance(data, torch.utils.data.Dataset):
        raise DataError(f"{name} is a {type(data).__name__}: wrap it in a torch.utils.data.DataLoader")
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes)) or getattr(data, "ndim", 1) == 0:
        kind = type(data).__name__
        raise DataError(f"{name} is a {kind}; give (inputs, targets) tensors or an iterable of such batches")
    return data


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if type(tree) in (tuple, list):  # quicker than torch's tree, which knows all containers
        return [tensor for entry in tree for tensor in tensors_of(entry)]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return []
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def count_samples(batch: Any) -> int:
    """Number of samples in a batch: the length of its first tensor."""
    return next((len(tensor) for tensor in tensors_of(batch) if tensor.dim()), 0)


def samples_of(batch: Any, which: slice | Tensor) -> Any:
    """The batch with some of its samples; tensors without one row a sample stay as they are."""
    count = count_samples(batch)
    return tree_map(lambda x: x[which] if isinstance(x, Tensor) and x.dim() and len(x) == count else x, batch)


def join(batches: Sequence[Any]) -> Any:
    """The batches joined to one; tensors without one row a sample stay as they are.

    Raises:
        DataError: If such a tensor differs from batch to batch.
    """
    counts = [count_samples(batch) for batch in batches]

    def joined(*leaves: Any) -> Any:
        pairs = zip(leaves, counts, strict=True)
        if all(isinstance(x, Tensor) and x.dim() and len(x) == count for x, count in pairs):
            shapes = list(dict.fromkeys(tuple(x.shape[1:]) for x in leaves))
            if len(shapes) > 1:
                raise DataError(
                    f"batches hold samples of shapes {shapes[0]} and {shapes[1]}, which can't be joined; resize them "
                    "to one shape, or give one batch shape"
                )
            return torch.cat(leaves)
        if any(isinstance(x, Tensor) and not torch.equal(x, leaves[0]) for x in leaves):
            raise DataError(
                f"batches hold tensors of shape {tuple(leaves[0].shape)} that differ from batch to batch and do not "
                "have one row a sample, so samples can't be drawn from them"
            )
        return leaves[0]

    try:
        return tree_map(joined, *batches)
    except ValueError as error:  # batches of different structure; a DataError is one too
        raise error if isinstance(error, DataError) else DataError(f"batches can't be joined: {error}") from None


def logits_of(outputs: Any) -> Any:
    """The outputs, or the entry "out" of a dict (torchvision's segmentation networks)."""
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
    """Mean cross-entropy in nats, with labels or class probabilities; negative labels and 255 are ignored.

    Args:
        outputs: Logits, shape (N, classes, ...), or a dict with them under "out".
        targets: Labels, shape (N, ...), or class probabilities, which sum to 1, shape (N, classes, ...).
        by_sample: Return the mean of each sample, shape (N,), and not of all.

    Raises:
        DataError: If targets are real numbers but not class probabilities.
    """
    logits = logits_of(outputs)
    if targets.is_floating_point():
        _check_probabilities(logits, targets)
        values = F.cross_entropy(logits, targets, reduction="none").reshape(len(logits), -1)
        return values.mean(1) if by_sample else values.mean()
    valid = counted(logits, targets)
    labels = targets.where(valid, -100)
    if not by_sample:
        return F.cross_entropy(logits, labels, ignore_index=-100) if bool(valid.any()) else 0 * logits.sum()
    values = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none").reshape(len(logits), -1)
    return values.sum(1) / valid.reshape(len(valid), -1).sum(1).clamp_min(1)


def counted(logits: Tensor, targets: Tensor) -> Tensor:
    """Which labels count, bool (N, ...): all but negative ones, and 255 if there is no such class."""
    return (targets >= 0) & ((targets != 255) | (logits.shape[1] > 255))


def check_map(logits: Tensor, targets: Tensor) -> Tensor:
    """Which labels of a map count, as :func:`counted`.

    Raises:
        DataError: If a label that counts is not a class.
    """
    valid, classes = counted(logits, targets), logits.shape[1]
    if bool((targets[valid] >= classes).any()):
        raise DataError(
            f"labels reach {int(targets[valid].max())}; the network has classes 0 to {classes - 1} (mark positions to "
            "ignore by 255 or a negative label)"
        )
    return valid


def _check_probabilities(logits: Tensor, targets: Tensor) -> None:
    fits = targets.shape == logits.shape and logits.dim() > 1 and logits.shape[1] > 1
    if not (fits and bool((targets >= 0).all()) and bool(((targets.float().sum(1) - 1).abs() < 1e-2).all())):
        raise DataError(
            f"targets are real numbers of shape {tuple(targets.shape)} but not class probabilities, which "
            "cross-entropy needs"
        )


def check_labels(outputs: Any, targets: Any, *, name: str) -> None:
    """Raise an error unless labels (N,) are classes of outputs (N, classes).

    Raises:
        DataError: If a label is not a class.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or targets.is_floating_point():
        return
    if targets.is_complex():
        raise DataError(f"{name} has complex targets; give real ones")
    if outputs.dim() != 2 or targets.dim() != 1 or not targets.numel():
        return  # maps of labels may mark positions to ignore
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= outputs.shape[1]:
        raise DataError(f"{name} has labels from {low} to {high}; the network has classes 0 to {outputs.shape[1] - 1}")
