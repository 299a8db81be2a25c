"""Rules for operators that cut, shift and pad: the positions of channels must follow from the width."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from deap_prune.structure.tracing.operator_rules import DENSE, Step, move


def roll(step: Step) -> None:
    """Freeze channels that are shifted by a fixed number of positions; shifts along other dimensions are free."""
    tensor, label = step.source
    dims = [d % tensor.dim() for d in step.argument("dims") or range(tensor.dim())]
    if any(label.shape[d] > 1 for d in dims):
        step.tracer.freeze(label, "is shifted by a fixed number of channels")
    move(step)


def pad(step: Step) -> None:
    """Constant padding: along the channels it adds dense channels, elsewhere it changes no label."""
    _, label = step.source
    pads = list(step.args[1])
    for k in range(len(pads) // 2):  # pads count from the last dimension
        if label.shape[label.dim() - 1 - k] == 1:
            pads[2 * k] = pads[2 * k + 1] = 0
    if any(p < 0 for p in pads):
        step.tracer.freeze(label, "is cropped by a fixed number of channels")
    step.tracer.attach(step.out, F.pad(label, pads, value=DENSE))


def split(step: Step) -> None:
    """Tie parts of equal width position by position; parts of unequal width need sizes that follow the width."""
    step.tracer.note_split(step.source[1])
    for tensor, part in zip(step.out, step.on_labels(), strict=True):
        step.tracer.attach(tensor, part)
    labels = [label for t in step.out if (label := step.tracer.of(t)) is not None]
    if len({label.shape for label in labels}) == 1 and not all(torch.equal(label, labels[0]) for label in labels):
        for label in labels[1:]:
            step.tracer.tie(label, labels[0], "is split beside channels that stay dense")


def pick(step: Step) -> None:
    """Slices and selections: equal parts of the channels are tied, as for a split; other parts of channels freeze."""
    tensor, label = step.source
    dim = step.argument("dim", 0) % tensor.dim()
    several = sum(n > 1 for n in label.shape) > 1  # tokens or branches with different labels; the proof decides
    if label.shape[dim] > 1 and step.out.shape != tensor.shape and not several:
        parts = _equal_parts(step, label, dim)
        if parts is not None:
            step.tracer.tie(parts, parts.narrow(dim, 0, 1), "is split beside channels that stay dense")
        if parts is not None or _is_range(step):
            step.tracer.note_split(label)
        else:
            step.tracer.freeze(label, f"is indexed by fixed positions{step.tracer.where()}")
    move(step)


def _is_range(step: Step) -> bool:
    """Whether a slice takes several consecutive positions; an attribute may hold where it starts or ends."""
    return step.name in ("slice", "narrow") and step.argument("step", 1) == 1 and step.out.numel() > 1


def _equal_parts(step: Step, label: Tensor, dim: int) -> Tensor | None:
    """The labels as (..., parts, positions, ...) if a slice takes some of several equal parts, else None."""
    size, length = step.source[0].shape[dim], step.out.shape[dim] if step.out.dim() == label.dim() else 0
    if step.name not in ("slice", "narrow") or not length:
        return None
    start = step.argument("start", 0) or 0
    start = max(start + size, 0) if start < 0 else start
    stride = step.argument("step", 1) if step.name == "slice" else 1
    part = gcd(size, start, length)
    if stride == 1 and part > 1:
        return label.unflatten(dim, (size // part, part))
    if size % length == 0 and stride == size // length and start < stride:
        return label.unflatten(dim, (length, stride)).transpose(dim, dim + 1)
    return None


def _shuffle(step: Step) -> None:
    """Channels in the same place of each group are tied, as for a view by groups."""
    _, label = step.source
    if label.shape[1] > 1:
        groups = label.unflatten(1, (step.argument("groups"), -1))
        step.tracer.tie(groups, groups[:, :1], "is shuffled together with channels that stay dense")
    move(step)


ROWS: tuple[tuple[Callable[[Step], None], str], ...] = (
    (roll, "roll"),
    (pad, "constant_pad_nd"),
    (split, "split split_with_sizes chunk unbind tensor_split"),
    (_shuffle, "channel_shuffle native_channel_shuffle"),
    (pick, "slice select index_select narrow"),
)
