"""One sample of the example inputs: which tensors have a batch dimension, learned from runs on parts of the batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from deap_prune.errors import ModelError, did_you_mean
from deap_prune.structure.inputs import Call, forward, same_draws


@dataclass(frozen=True)
class Samples:
    """The tensors of a call that have the batch as their first dimension.

    Attributes:
        leaves: Positions of these tensors among the leaves of the call.
        rows: Rows of the first dimension that make one sample (several frames of one clip, for example).
    """

    leaves: frozenset[int]
    rows: int = 1

    @classmethod
    def single(cls, call: Call) -> Samples:
        """The batch is the first dimension of all tensors where it has size 1."""
        return cls(frozenset(i for i, leaf in enumerate(tree_leaves(call)) if _length(leaf) == 1))

    def first(self, call: Call, count: int = 1) -> Call:
        """The call with the first ``count`` samples."""
        return self._changed(call, lambda x: x[: count * self.rows])

    def repeated(self, call: Call, count: int) -> Call:
        """The call with its first sample repeated ``count`` times."""
        return self._changed(call, lambda x: torch.cat([x[: self.rows]] * count))

    def _changed(self, call: Call, change: Callable[[Tensor], Tensor]) -> Call:
        leaves, structure = tree_flatten(call)
        changed: Call = tree_unflatten([change(x) if i in self.leaves else x for i, x in enumerate(leaves)], structure)
        return changed


def learn_samples(network: nn.Module, call: Call) -> Samples:
    """Learn the batch dimension of the example inputs.

    A tensor has a batch dimension if the outputs for its first rows are the first rows of the outputs. The network runs
    on the first two rows and on the first row; if it fails on them, on all rows and on the first 1, 2, ... of them. If
    no such rows exist (frames of one clip, an image without batch dimension), the example as it is makes one sample.

    Args:
        network: In eval mode.
        call: The example inputs.
    """
    leaves = tree_leaves(call)
    for hypothesis in _hypotheses(leaves):
        size = min(_length(leaves[i]) for i in hypothesis)
        if size == 1:
            return Samples(hypothesis)
        with torch.no_grad():
            if (rows := _rows(network, call, hypothesis, size)) is not None:
                return Samples(hypothesis, rows)
    return Samples.single(call)


def chosen_samples(network: nn.Module, call: Call, batched: Iterable[int | str]) -> Samples:
    """The batch dimension as the user declares it.

    Args:
        network: The network.
        call: The example inputs.
        batched: Positions or names of the arguments with a batch dimension; empty: the example is one sample.

    Raises:
        ModelError: If there is no such argument, or it has no dimension.
    """
    args, kwargs = call
    try:
        parameters = list(inspect.signature(network.forward).parameters)
    except (TypeError, ValueError):
        parameters = []
    names = [*parameters[: len(args)], *kwargs]
    leaves, parts = frozenset[int](), _leaves_by_argument(call)
    for argument in batched:
        place = argument if isinstance(argument, int) else names.index(argument) if argument in names else -1
        if not 0 <= place < len(parts):
            raise ModelError(f"batched names argument {argument!r}; {did_you_mean(str(argument), names)}")
        leaves |= {i for i in parts[place] if _length(tree_leaves(call)[i])}
        if not leaves & set(parts[place]):
            raise ModelError(f"batched names argument {argument!r}, which has no tensor with dimensions")
    return Samples(leaves)


def _leaves_by_argument(call: Call) -> list[list[int]]:
    args, kwargs = call
    counts = [len(tree_leaves(argument)) for argument in (*args, *kwargs.values())]
    stops = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [list(range(stop - count, stop)) for count, stop in zip(counts, stops, strict=True)]


def _length(leaf: object) -> int:
    return len(leaf) if isinstance(leaf, Tensor) and leaf.dim() else 0


def _hypotheses(leaves: list[object]) -> Iterator[frozenset[int]]:
    """Sets of leaves that may share a batch dimension; first all that are as long as the tensor of highest rank."""
    tensors = [(i, x) for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.dim()]
    ordered = sorted(tensors, key=lambda entry: (not entry[1].is_floating_point(), -entry[1].dim(), entry[0]))
    for size in dict.fromkeys(len(x) for _, x in ordered):
        same = [i for i, x in ordered if len(x) == size]
        yield frozenset(same)
        if size > 1 and len(same) > 1:
            yield frozenset(same[:1])
            for i in same[1:4]:
                yield frozenset(same) - {i}


def _rows(network: nn.Module, call: Call, leaves: frozenset[int], size: int) -> int | None:
    """Rows of one sample if these leaves have a batch dimension, else None."""
    two = Samples(leaves).first(call, 2)
    whole = _outputs(network, two)
    if whole is not None and _is_part(network, _outputs(network, Samples(leaves).first(call)), whole, 2, two):
        return 1
    whole = _outputs(network, call) if size > 2 else whole
    for rows in range(1, size):
        if whole is not None and size % rows == 0:
            part = _outputs(network, Samples(leaves, rows).first(call))
            if _is_part(network, part, whole, size // rows, call):
                return rows
    return None


def _outputs(network: nn.Module, call: Call) -> list[Tensor] | None:
    """Output tensors, or None if the network fails."""
    try:
        with same_draws():
            return forward(network, call)
    except Exception:  # the user's forward may raise anything on a part of the batch
        return None


def _is_part(network: nn.Module, part: list[Tensor] | None, whole: list[Tensor], times: int, call: Call) -> bool:
    """Whether ``part`` are the outputs of the first of ``times`` equal parts of a batch with the outputs ``whole``."""
    if part is None or not part:
        return False
    if len(part) * times == len(whole):  # one output per sample
        pairs = list(zip(part, whole[: len(part)], strict=True))
        return all(a.shape == b.shape and _close(a, b) for a, b in pairs)
    if len(part) != len(whole):
        return False
    shared = [a.shape == b.shape for a, b in zip(part, whole, strict=True)]
    scaled = [_is_scaled(a, b, times) for a, b in zip(part, whole, strict=True)]
    if not any(scaled) or not all(a or b for a, b in zip(shared, scaled, strict=True)):
        return False
    return all(_close(a, b[: len(a)] if s else b) for a, b, s in zip(part, whole, scaled, strict=True)) or (
        _depends_on_the_batch(network, call)
    )


def _is_scaled(part: Tensor, whole: Tensor, times: int) -> bool:
    return part.dim() > 0 and part.shape[1:] == whole.shape[1:] and len(part) * times == len(whole)


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(b.abs().max()) if b.is_floating_point() and b.numel() else 1.0
    return a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)


def _depends_on_the_batch(network: nn.Module, call: Call) -> bool:
    """Whether samples influence each other in a known way: norms with batch statistics, or random numbers."""
    norms = (m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    if any(norm.running_mean is None for norm in norms):
        return True
    first, second = forward(network, call), forward(network, call)
    return not all(a.shape == b.shape and _close(a, b) for a, b in zip(first, second, strict=True))
