"""Rules for the effect of operators on channel labels; an operator without a rule freezes its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from deap_prune.data.batches import tensors_of
from deap_prune.structure.tracing.positions import Positions, are_positions

aten = torch.ops.aten
DENSE = 0  # label of values that can't be pruned: inputs, constants, fixed padding

# Operators outside of layers that fvcore counts: flops per element of the (input, output).
COUNTED: dict[Any, tuple[int, int]] = {
    aten.upsample_nearest2d: (0, 1),
    aten.upsample_bilinear2d: (0, 4),
    aten.grid_sampler_2d: (0, 4),
    aten.grid_sampler_3d: (0, 4),
}
# Operators whose results are the same for all channels.
UNIFORM = frozenset(["zeros", "ones", "full", "empty", "scalar_tensor", "lift_fresh"])
UNIFORM |= {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_empty"}


class Tracer(Protocol):
    """Store of the labels; see ``LabelTracer``."""

    positions: Positions

    def of(self, tensor: Tensor) -> Tensor | None: ...  # noqa: D102
    def attach(self, tensor: Any, labels: Tensor) -> None: ...  # noqa: D102
    def fresh(self, n: int) -> Tensor: ...  # noqa: D102
    def tie(self, a: Tensor, b: Tensor, reason: str) -> None: ...  # noqa: D102
    def freeze(self, labels: Tensor | None, reason: str) -> None: ...  # noqa: D102
    def mix(self, labels: Tensor, reason: str) -> None: ...  # noqa: D102
    def note_split(self, labels: Tensor) -> None: ...  # noqa: D102
    def charge(self, tensor: Tensor, per_element: float) -> None: ...  # noqa: D102
    def mark_constant(self, tensor: Tensor) -> None: ...  # noqa: D102
    def is_constant(self, tensor: Tensor) -> bool: ...  # noqa: D102
    def cause(self, tensor: Tensor) -> str: ...  # noqa: D102
    def blame(self, tensor: Tensor, cause: str) -> None: ...  # noqa: D102
    def folds_last(self, labels: Tensor) -> bool: ...  # noqa: D102
    def where(self) -> str: ...  # noqa: D102


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
        """An argument by its name in the operator's schema; ``default`` if neither the call nor the schema has it."""
        for place, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                default = argument.default_value if argument.has_default_value() else default
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
    packet, tags = step.func.overloadpacket, step.func.tags
    usual = pointwise if torch.Tag.pointwise in tags else reduction if torch.Tag.reduction in tags else refuse
    try:
        RULES.get(packet, RULES.get(str(packet), usual))(step)
    except Exception:  # an overload with other arguments than the rule expects
        refuse(step)
    if packet in COUNTED:
        for per_element, tensor in zip(COUNTED[packet], (step.tensors[0], step.outputs[0]), strict=True):
            step.tracer.charge(tensor, per_element)


def refuse(step: Step) -> None:
    """Freeze the labels of an operator without a rule, and remember it as the cause of what its results meet."""
    reason = f"is read by '{step.name}', which can't be narrowed"
    if step.func.namespace == "quantized":
        reason = f"is read by the quantised operator '{step.name}': prune first, then quantise"
    for tensor in step.tensors:
        step.tracer.freeze(step.tracer.of(tensor), reason + step.tracer.where())
    for tensor in step.outputs:
        step.tracer.blame(tensor, f"made by '{step.name}'")


def pointwise(step: Step) -> None:
    """Tie channels that meet; freeze labels that are broadcast over other channels."""
    tensors, tracer = step.tensors, step.tracer
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    wide = [_wide(t, len(shape)) for t in tensors]
    own = [tracer.of(t) for t in tensors]
    labels = [None if x is None else x.reshape([1] * (len(shape) - x.dim()) + list(x.shape)) for x in own]
    varying = {d for x in labels if x is not None for d in range(len(shape)) if x.shape[d] > 1}
    result: Tensor | None = None
    causes = sorted({tracer.cause(t) for t, x in zip(tensors, own, strict=True) if x is None} - {""})
    suffix = f", {' and '.join(causes)}" if causes else ""
    for source, tensor, label in zip(tensors, wide, labels, strict=True):
        spread = {d for d in varying if tensor.shape[d] > 1}
        if label is None and (not spread or tracer.is_constant(source)):
            continue  # the same constant for all channels
        if label is None:  # a constant as wide as the channels does not shrink with them
            label = torch.full([1] * len(shape), DENSE)
        elif spread != varying and not bool((label == DENSE).all()):
            tracer.freeze(label, f"is broadcast over other channels by '{step.name}'")
            continue
        if result is not None:
            tracer.tie(result, label, f"meets values of fixed width in '{step.name}'{suffix}{tracer.where()}")
            label = _simpler(result, label)
        result = label
    for leaf in step.outputs:
        if result is not None and leaf.dim() == len(shape):
            tracer.attach(leaf, result)


def _simpler(a: Tensor, b: Tensor) -> Tensor:
    """One of two tied label tensors: the one that varies along fewer dimensions, if it is not dense."""
    a_free, b_free = (bool((x != DENSE).all()) for x in (a, b))
    if a_free and b_free and a.dim() == b.dim():
        for x, y in ((a, b), (b, a)):
            if sum(n > 1 for n in x.shape) < sum(n > 1 for n in y.shape):
                return x
    return torch.maximum(*torch.broadcast_tensors(a, b))


def view(step: Step) -> None:
    """Reshape the labels; channels that are split over two dimensions must keep the same positions in each part."""
    tensor, label = step.source
    folded = label.expand(tensor.shape).reshape(step.out.shape)
    step.tracer.attach(step.out, folded)
    label_out = step.tracer.of(step.out)
    varying = [d for d in range(folded.dim()) if label_out is not None and label_out.shape[d] > 1]
    if label_out is not None and len(varying) > sum(n > 1 for n in label.shape):
        free = varying[-2] if step.tracer.folds_last(label) else varying[-1]
        first = label_out
        for d in varying:
            first = first if d == free else first.narrow(d, 0, 1)
        step.tracer.tie(label_out, first, "is folded together with channels that stay dense")
        step.tracer.attach(step.out, first)


def move(step: Step) -> None:
    """Apply a data movement to the labels as to the activations."""
    step.tracer.attach(step.out, step.on_labels())


def join(step: Step) -> None:
    """Concatenate or stack; constants that are the same for all channels take the channels of the others.

    Beside other channels they have channels of their own (a state that starts as zeros).
    """
    tensors = step.args[0]
    own = [step.tracer.of(t) for t in tensors]
    if step.name == "stack":  # stacked branches have equal widths
        branches = [label for label in own if label is not None]
        for branch in branches[1:]:
            step.tracer.tie(branch, branches[0], "is stacked with values of fixed width")
    first = next((x for x in own if x is not None and x.numel() > 1), None)
    if first is None or not any(step.tracer.is_constant(t) for t in tensors):
        move(step)
        return
    dim = step.argument("dim", 0) % step.out.dim()
    beside = step.name == "cat" and first.shape[dim] > 1
    like = first.narrow(dim, 0, 1) if step.name == "cat" else first
    labels = []
    for tensor, label in zip(tensors, own, strict=True):
        if label is None and step.tracer.is_constant(tensor):
            label = step.tracer.fresh(tensor.shape[dim]).view([-1, *like.shape[dim + 1 :]]) if beside else like
        label = torch.full([1] * tensor.dim(), DENSE) if label is None else label
        labels.append(label.expand(tensor.shape))
    step.tracer.attach(step.out, step.func(labels, *step.args[1:], **step.kwargs))


def restride(step: Step) -> None:
    """Keep the labels where only the memory layout changes (as at the end of pooling in channels_last)."""
    tensor, label = step.source
    if step.out.shape != tensor.shape:
        step.tracer.freeze(label, "is viewed with fixed strides")
    step.tracer.attach(step.out, label)


def _wide(tensor: Tensor, dims: int) -> Tensor:
    return tensor.reshape([1] * (dims - tensor.dim()) + list(tensor.shape))


def spatial(step: Step) -> None:
    """Pooling, resizing and padding over space: the last 1, 2 or 3 dimensions, by the operator's name."""
    reduce_dims(step, range(-int(next((c for c in step.name if c in "123"), "2")), 0))


def along(step: Step) -> None:
    """Softmax and the like along one dimension."""
    reduce_dims(step, [step.argument("dim", 0)])


def ranked(step: Step) -> None:
    """Sorting along one dimension: among channels a place would belong to another filter once some are pruned."""
    tensor, label = step.source
    dim = step.argument("dim", -1) % max(tensor.dim(), 1)
    if tensor.dim() and label.shape[dim] > 1:
        step.tracer.freeze(label, f"is sorted across channels by '{step.name}'{step.tracer.where()}")
    else:
        reduce_dims(step, [dim])


def reduction(step: Step) -> None:
    """Mean, sum, norm, ... over the dimensions of the argument ``dim``, or over all."""
    dims = step.argument("dim")
    every = dims is None or dims == []
    reduce_dims(step, range(step.source[0].dim()) if every else dims if isinstance(dims, (list, tuple)) else [dims])


def reduce_dims(step: Step, dims: Iterable[int]) -> None:
    """Combine values along dimensions: branches that are stacked there are tied, channels alone are mixed."""
    tensor, label = step.source
    chosen = {d % tensor.dim() for d in dims} if tensor.dim() else set()
    varying = {d for d, n in enumerate(label.shape) if n > 1}
    if varying & chosen and not varying - chosen:
        mix(step, label, varying)
        return
    for d in varying & chosen:
        first = label.narrow(d, 0, 1)
        step.tracer.tie(label, first, f"is stacked with values of fixed width for '{step.name}'")
        label = first
    for leaf in step.outputs:
        if leaf.dim() != tensor.dim():  # keepdim=False
            kept = label.reshape([n for d, n in enumerate(label.shape) if d not in chosen])
            step.tracer.attach(leaf, kept)
        else:
            step.tracer.attach(leaf, label)


def mix(step: Step, label: Tensor, dims: Iterable[int]) -> None:
    """Mix channels along dimensions: results of the same size there keep the channels, others are the same for all."""
    tensor = step.tensors[0]
    reason = f"is mixed with other channels by '{step.name}'{step.tracer.where()}"
    step.tracer.mix(label, reason)
    for leaf in step.outputs:
        if are_positions(leaf, tensor, step.name):
            named = f"is ranked across channels by '{step.name}', whose positions are used{step.tracer.where()}"
            step.tracer.positions.note(leaf, label, named)
        elif leaf.dim() == tensor.dim() and all(leaf.shape[d] == tensor.shape[d] for d in dims):
            step.tracer.attach(leaf, label)
        elif leaf.dim() < tensor.dim() or all(leaf.shape[d] == 1 for d in dims):
            step.tracer.mark_constant(leaf)
        else:
            step.tracer.freeze(label, reason)


def table(*rows: tuple[Callable[[Step], None], str]) -> dict[Any, Callable[[Step], None]]:
    """Rules by operator; names that this version of torch does not have are left out."""
    return {getattr(aten, n): rule for rule, names in rows for n in names.split() if hasattr(aten, n)}


RULES = table(
    (view, "view _unsafe_view reshape"),
    (move, "transpose permute t unsqueeze squeeze expand flip repeat detach alias movedim"),
    (move, "transpose_ t_ unsqueeze_ squeeze_"),
    (join, "cat stack"),
    (restride, "as_strided as_strided_"),
    (move, "pixel_shuffle pixel_unshuffle rot90 fliplr flipud tile"),
    (pointwise, "hardswish hardswish_ contiguous _to_copy copy_ zeros_like ones_like empty_like full_like lift_fresh"),
    (
        pointwise,
        "fill_ zero_ fill bernoulli bernoulli_ rand_like randn_like randint_like copy masked_fill masked_fill_",
    ),
    (pointwise, "hardsigmoid log_sigmoid_forward threshold dropout native_dropout where _prelu_kernel complex polar"),
    (spatial, "max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d"),
    (spatial, "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    (spatial, "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d"),
    (spatial, "upsample_linear1d upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa"),
    (spatial, "_upsample_nearest_exact1d _upsample_nearest_exact3d _upsample_bicubic2d_aa adaptive_max_pool1d"),
    (spatial, "fractional_max_pool2d fractional_max_pool3d reflection_pad3d replication_pad3d"),
    (spatial, "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d tril triu"),
    (along, "_softmax _log_softmax cumsum cumprod cummax cummin logcumsumexp median kthvalue mode"),
    (ranked, "sort argsort topk"),
    (along, "nanmedian renorm _cummax_helper _cummin_helper"),
    (reduction, "linalg_vector_norm var_mean std var norm"),
)
