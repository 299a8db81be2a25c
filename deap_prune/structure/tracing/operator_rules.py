"""Rules for the effect of operators on channel labels; an operator without a rule freezes its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from deap_prune.data.batches import tensors_of

aten = torch.ops.aten
DENSE = 0  # label of values that can't be pruned: inputs, constants, fixed padding

# Operators outside of layers that fvcore counts: flops per element of the (input, output).
COUNTED = {F.adaptive_avg_pool2d: (1, 0), aten.upsample_nearest2d: (0, 1), aten.upsample_bilinear2d: (0, 4)}


class Tracer(Protocol):
    """Store of the labels; see ``LabelTracer``."""

    def of(self, tensor: Tensor) -> Tensor | None: ...  # noqa: D102
    def attach(self, tensor: Any, labels: Tensor) -> None: ...  # noqa: D102
    def tie(self, a: Tensor, b: Tensor, reason: str) -> None: ...  # noqa: D102
    def freeze(self, labels: Tensor | None, reason: str) -> None: ...  # noqa: D102
    def note_split(self, labels: Tensor) -> None: ...  # noqa: D102
    def charge(self, tensor: Tensor, per_element: float) -> None: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Step:
    """One call of an operator, with the labels of its arguments."""

    tracer: Tracer
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def name(self) -> str:
        """The operator's name."""
        return str(self.func.overloadpacket.__name__)

    @property
    def tensors(self) -> list[Tensor]:
        """Tensor arguments."""
        return tensors_of((self.args, self.kwargs))

    @property
    def outputs(self) -> list[Tensor]:
        """Tensor results."""
        return tensors_of(self.out)

    @property
    def source(self) -> tuple[Tensor, Tensor]:
        """The first tensor argument and its labels (dense if it has none)."""
        tensor = self.tensors[0]
        labels = self.tracer.of(tensor)
        return tensor, torch.full([1] * tensor.dim(), DENSE) if labels is None else labels

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the operator's schema."""
        for place, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)
        return default

    def on_labels(self) -> Any:
        """Result of the operator, applied to the labels instead of the tensors."""

        def labels(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            label = self.tracer.of(leaf)
            return (torch.full([1] * leaf.dim(), DENSE) if label is None else label).expand(leaf.shape)

        return self.func(*tree_map(labels, self.args), **tree_map(labels, self.kwargs))


def follow(step: Step) -> None:
    """Label the outputs of an operator; tie or freeze the labels of its inputs."""
    packet = step.func.overloadpacket
    if packet in RULES:
        RULES[packet](step)
    elif torch.Tag.pointwise in step.func.tags:
        pointwise(step)
    elif torch.Tag.reduction in step.func.tags:
        reduction(step)
    else:
        for tensor in step.tensors:
            step.tracer.freeze(step.tracer.of(tensor), f"is read by '{step.name}', which can't be narrowed")
    for per_element, tensor in zip(COUNTED.get(packet, ()), (step.tensors[0], step.outputs[0]), strict=False):
        step.tracer.charge(tensor, per_element)


def pointwise(step: Step) -> None:
    """Tie channels that meet; freeze labels that are broadcast over other channels."""
    tensors, tracer = step.tensors, step.tracer
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    wide = [t.reshape([1] * (len(shape) - t.dim()) + list(t.shape)) for t in tensors]
    own = [tracer.of(t) for t in tensors]
    labels = [None if x is None else x.reshape([1] * (len(shape) - x.dim()) + list(x.shape)) for x in own]
    varying = {d for x in labels if x is not None for d in range(len(shape)) if x.shape[d] > 1}
    result: Tensor | None = None
    for tensor, label in zip(wide, labels, strict=True):
        spread = {d for d in varying if tensor.shape[d] > 1}
        if label is None and not spread:
            continue  # the same constant for all channels
        if label is None:  # a constant as wide as the channels does not shrink with them
            label = torch.full([1] * len(shape), DENSE)
        elif spread != varying and not bool((label == DENSE).all()):
            tracer.freeze(label, f"is broadcast over other channels by '{step.name}'")
            continue
        if result is not None:
            tracer.tie(result, label, f"meets values of fixed width in '{step.name}'")
            label = torch.maximum(*torch.broadcast_tensors(result, label))
        result = label
    for leaf in step.outputs:
        if result is not None and leaf.dim() == len(shape):
            tracer.attach(leaf, result)


def view(step: Step) -> None:
    """Reshape the labels; channels that are split over two dimensions must keep the same positions in each part."""
    tensor, label = step.source
    folded = label.expand(tensor.shape).reshape(step.out.shape)
    step.tracer.attach(step.out, folded)
    label_out = step.tracer.of(step.out)
    varying = [d for d in range(folded.dim()) if label_out is not None and label_out.shape[d] > 1]
    if label_out is not None and len(varying) > sum(n > 1 for n in label.shape):
        first = label_out.narrow(varying[0], 0, 1)
        step.tracer.tie(label_out, first, "is folded together with channels that stay dense")


def move(step: Step) -> None:
    """Apply a data movement to the labels as to the activations."""
    step.tracer.attach(step.out, step.on_labels())


def restride(step: Step) -> None:
    """Keep the labels where only the memory layout changes (as at the end of pooling in channels_last)."""
    tensor, label = step.source
    if step.out.shape != tensor.shape:
        step.tracer.freeze(label, "is viewed with fixed strides")
    step.tracer.attach(step.out, label)


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
    """Tie parts of equal width position by position; freeze parts of unequal width."""
    step.tracer.note_split(step.source[1])
    for tensor, part in zip(step.out, step.on_labels(), strict=True):
        step.tracer.attach(tensor, part)
    labels = [label for t in step.out if (label := step.tracer.of(t)) is not None]
    if len({label.shape for label in labels}) > 1:
        step.tracer.freeze(step.source[1], "is split into parts of unequal width")
    elif not all(torch.equal(label, labels[0]) for label in labels):
        for label in labels[1:]:
            step.tracer.tie(label, labels[0], "is split beside channels that stay dense")


def pick(step: Step) -> None:
    """Freeze channels that are sliced or selected by fixed positions; other dimensions are free."""
    tensor, label = step.source
    dim = step.argument("dim", 0) % tensor.dim()
    if label.shape[dim] > 1 and step.out.shape != tensor.shape:
        step.tracer.freeze(label, "is indexed by fixed positions")
    move(step)


def spatial(step: Step) -> None:
    """Pooling, resizing and padding over space: the last 1, 2 or 3 dimensions, by the operator's name."""
    _reduce(step, range(-int(next((c for c in step.name if c in "123"), "2")), 0))


def along(step: Step) -> None:
    """Softmax and the like along one dimension."""
    _reduce(step, [step.argument("dim", 0)])


def reduction(step: Step) -> None:
    """Mean, sum, norm, ... over the dimensions of the argument ``dim``, or over all."""
    dims = step.argument("dim")
    every = dims is None or dims == []
    _reduce(step, range(step.source[0].dim()) if every else dims if isinstance(dims, (list, tuple)) else [dims])


def _reduce(step: Step, dims: Iterable[int]) -> None:
    tensor, label = step.source
    chosen = {d % tensor.dim() for d in dims} if tensor.dim() else set()
    if any(label.shape[d] > 1 for d in chosen):
        step.tracer.freeze(label, f"is mixed with other channels by '{step.name}'")
        return
    for leaf in step.outputs:
        if leaf.dim() != tensor.dim():  # keepdim=False
            kept = label.reshape([n for d, n in enumerate(label.shape) if d not in chosen])
            step.tracer.attach(leaf, kept)
        else:
            step.tracer.attach(leaf, label)


def _table(*rows: tuple[Callable[[Step], None], str]) -> dict[Any, Callable[[Step], None]]:
    """Rules by operator; names that this version of torch does not have are left out."""
    return {getattr(aten, n): rule for rule, names in rows for n in names.split() if hasattr(aten, n)}


RULES = _table(
    (view, "view _unsafe_view reshape"),
    (move, "transpose permute t unsqueeze squeeze expand flip repeat cat stack detach alias movedim"),
    (roll, "roll"),
    (restride, "as_strided as_strided_"),
    (move, "pixel_shuffle pixel_unshuffle channel_shuffle"),
    (pad, "constant_pad_nd"),
    (split, "split split_with_sizes chunk unbind tensor_split"),
    (pick, "slice select index_select narrow"),
    (pointwise, "hardswish hardswish_ contiguous _to_copy copy_ zeros_like ones_like empty_like full_like lift_fresh"),
    (pointwise, "hardsigmoid log_sigmoid_forward threshold dropout native_dropout where _prelu_kernel"),
    (spatial, "max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d"),
    (spatial, "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    (spatial, "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d"),
    (spatial, "upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa"),
    (spatial, "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"),
    (along, "_softmax _log_softmax cumsum"),
    (reduction, "linalg_vector_norm var_mean std var norm"),
)
