"""Rules for operators that treat each channel separately: products, sampling, sorting, indexing, windows over space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from deap_prune.structure.tracing.operator_rules import Step, pointwise, reduce_dims, refuse


def _along_spatial(step: Step) -> None:
    """Keep the labels of the first argument, which may not vary over space; freeze those of the others."""
    _, label = step.source
    for tensor in step.tensors[1:]:
        step.tracer.freeze(step.tracer.of(tensor), f"is read by '{step.name}' as positions")
    if any(n > 1 for n in label.shape[2:]):
        step.tracer.freeze(label, f"is mixed with other channels by '{step.name}'{step.tracer.where()}")
    step.tracer.attach(step.out, label.narrow(2, 0, 1) if label.dim() > 2 else label)


def _unpool(step: Step) -> None:
    """Values and their positions have the same channels."""
    _, label = step.source
    if (indices := step.tracer.of(step.tensors[1])) is not None:
        step.tracer.tie(label, indices, f"meets positions of fixed width in '{step.name}'")
    step.tracer.attach(step.out, label)


def _glu(step: Step) -> None:
    """The first half of the channels, gated by the second: both are tied, position by position."""
    tensor, label = step.source
    dim = step.argument("dim", -1) % tensor.dim()
    if label.shape[dim] > 1:
        first, second = label.chunk(2, dim)
        step.tracer.tie(first, second, "is gated by channels that stay dense")
        label = first
    step.tracer.attach(step.out, label)


def _im2col(step: Step) -> None:
    """Each channel becomes as many as a window has positions."""
    _, label = step.source
    taps = prod(step.argument("kernel_size"))
    if label.shape[1] > 1:
        step.tracer.attach(step.out, label.reshape(1, -1).repeat_interleave(taps, 1)[..., None])


def _col2im(step: Step) -> None:
    """The positions of a window become one channel again."""
    _, label = step.source
    taps = prod(step.argument("kernel_size"))
    if label.shape[1] > 1:
        windows = label.expand(-1, -1, 1).reshape(1, -1, taps)
        step.tracer.tie(windows, windows[..., :1], "is folded together with channels that stay dense")
        step.tracer.attach(step.out, windows[..., 0].reshape(1, -1, 1, 1))


def _product(step: Step) -> None:
    """Matrix products: rows of the first and columns of the second factor survive; contracted channels are mixed."""
    first, second = step.tensors[-2:]
    a, b = step.tracer.of(first), step.tracer.of(second)
    depth = -2 if second.dim() > 1 else -1
    if step.name == "bmm" and a is not None and b is not None and _along_batch(a) and _along_batch(b):
        step.tracer.tie(a, b, "meets other channels in 'bmm', which stay dense")
        step.tracer.attach(step.out, torch.maximum(a, b))
        step.tracer.charge(step.out, first.shape[-1])
        return
    if _contract(step, a, b, depth):
        step.tracer.charge(first, second.shape[-1] if second.dim() > 1 else 1)
        step.tracer.mark_constant(step.out)
        return
    a = None if a is not None and a.shape[-1] > 1 else a
    b = None if b is not None and b.shape[depth] > 1 else b
    rows = a is not None and a.numel() > 1
    if rows and b is not None and b.numel() > 1:
        for label in (a, b):
            step.tracer.freeze(label, f"meets other channels in '{step.name}', which can't be narrowed")
        return
    label = a if rows else b
    if label is None or label.numel() == 1:
        return
    step.tracer.attach(step.out, label if second.dim() > 1 else label.squeeze(-1))
    if step.name in ("mm", "bmm", "addmm"):
        step.tracer.charge(step.out, first.shape[-1])
    if step.name in ("addmm", "baddbmm") and (bias := step.tracer.of(step.tensors[0])) is not None:
        step.tracer.tie(bias, label, f"meets values of fixed width in '{step.name}'")


def _along_batch(label: Tensor) -> bool:
    """Whether labels vary along the batch of a product only (heads of attention)."""
    return label.shape[0] > 1 and label.shape[1] == label.shape[2] == 1


def _contract(step: Step, a: Tensor | None, b: Tensor | None, depth: int) -> bool:
    """Tie and mix the channels that a product contracts; True if both factors have such channels.

    Args:
        step: The product.
        a: Labels of the first factor; its last dimension is contracted.
        b: Labels of the second factor.
        depth: Its dimension that is contracted.
    """
    sides = [(a, -1), (b, depth)]
    contracted = [(x, d) for x, d in sides if x is not None and x.shape[d] > 1]
    if len(contracted) < 2:
        for label, _ in contracted:
            reason = f"is contracted by '{step.name}', which can't be narrowed{step.tracer.where()}"
            step.tracer.freeze(label, reason)
        return False
    reason = f"is contracted with values of fixed width by '{step.name}'{step.tracer.where()}"
    one, two = (x.movedim(d, 0).reshape(x.shape[d], -1) for x, d in contracted)
    for label in (one, two):  # a matrix of parameters has a label for each element
        step.tracer.tie(label, one[:, :1], reason)
        step.tracer.mix(label[:, 0], f"is contracted by '{step.name}'{step.tracer.where()}")
    return True


def _batch_norm(step: Step) -> None:
    """Statistics of each channel (functional batch and instance norm)."""
    _, label = step.source
    for tensor in step.tensors[1:]:
        own = step.tracer.of(tensor)
        if own is None:
            step.tracer.freeze(label, f"meets values of fixed width in '{step.name}'")
        else:
            step.tracer.tie(own.reshape(-1), label.reshape(-1), f"meets values of fixed width in '{step.name}'")
    if any(n > 1 for d, n in enumerate(label.shape) if d != 1):
        step.tracer.freeze(label, f"is mixed with other channels by '{step.name}'{step.tracer.where()}")
        return
    step.tracer.attach(step.outputs[0], label)


def _convolution(step: Step) -> None:
    """A depthwise convolution without a layer (a blur, for example) keeps the channels; others can't be narrowed."""
    x, weight = step.tensors[:2]
    groups, label = step.argument("groups", 1), step.source[1]
    if x.shape[1] == 1 and len(label) > 1 and step.tracer.of(weight) is None and len(weight) == groups == 1:
        step.tracer.attach(step.out, label)  # channels that are folded into the batch
        if not step.argument("transposed"):
            step.tracer.charge(step.out, int(weight[0].numel()))
        return
    if groups != x.shape[1] or groups == 1 or len(weight) % groups or any(n > 1 for n in label.shape[2:]):
        refuse(step)
        return
    made = label.repeat_interleave(len(weight) // groups, 1)
    for tensor in step.tensors[1:]:
        if (own := step.tracer.of(tensor)) is not None:
            wide = own.reshape(1, len(own), *(own.numel() // len(own),) if own.dim() > 1 else ())
            step.tracer.tie(wide, made.reshape(1, -1, *(1,) * (wide.dim() - 2)), "meets a kernel of fixed width")
    step.tracer.attach(step.out, made)
    if not step.argument("transposed"):
        step.tracer.charge(step.out, int(weight[0].numel()))


def _layer_norm(step: Step) -> None:
    """Statistics over the last dimensions: fine over space."""
    tensor, label = step.source
    over = range(tensor.dim() - len(step.args[1]), tensor.dim())
    mixed = [d for d in over if label.shape[d] > 1]
    for weight in step.tensors[1:]:
        own = step.tracer.of(weight)
        if mixed and own is not None:
            step.tracer.tie(own, label, f"meets values of fixed width in '{step.name}'")
        elif mixed:
            step.tracer.freeze(label, f"meets values of fixed width in '{step.name}'")
    if mixed:
        step.tracer.mix(label, f"is mixed with other channels by '{step.name}'{step.tracer.where()}")
    step.tracer.attach(step.outputs[0], label)


def _embedding(step: Step) -> None:
    """Rows of a table, by position."""
    table, label = step.source
    step.tracer.freeze(step.tracer.of(step.args[1]), "is used as an index")
    step.tracer.attach(step.out, label.expand(table.shape)[step.args[1]])


def _regions(step: Step) -> None:
    """Pooling over regions of interest: one row of results for each region."""
    _, label = step.source
    step.tracer.freeze(step.tracer.of(step.tensors[1]), f"is read by '{step.name}' as positions")
    step.tracer.attach(step.outputs[0], label)


def _index(step: Step) -> None:
    """Indexing by tensors: fine along any dimension without channels."""
    tensor, label = step.source
    indices = list(step.args[1])
    if step.name != "index" and _is_own_mask(step, indices):
        pointwise(step)
        return
    for index in indices:
        if isinstance(index, Tensor):
            step.tracer.freeze(step.tracer.of(index), "is used as an index")
    dims: list[int] = []
    d = 0
    for index in indices:
        width = index.dim() if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) else 1
        dims += range(d, d + width) if isinstance(index, Tensor) else []
        d += width
    if any(label.shape[d] > 1 for d in dims):
        step.tracer.freeze(label, f"is indexed by fixed positions ('{step.name}')")
        return
    if step.name == "index":
        step.tracer.attach(step.out, step.func(label.expand(tensor.shape), step.args[1]))
    else:  # index_put: the values that are written keep their channels
        values = step.args[2]
        step.tracer.freeze(step.tracer.of(values), f"is written by '{step.name}', which can't be narrowed")
        step.tracer.attach(step.out, label)


def _is_own_mask(step: Step, indices: Sequence[Any]) -> bool:
    """Whether one value is written where a mask of the tensor's shape is true."""
    mask = indices[0]
    whole = len(indices) == 1 and isinstance(mask, Tensor) and mask.dtype == torch.bool
    return whole and mask.shape == step.tensors[0].shape and step.args[2].numel() == 1


def _gather(step: Step) -> None:
    """Values and positions along one dimension; the other dimensions match."""
    tensor, label = step.source
    dim = step.argument("dim", 0) % tensor.dim()
    index = next(t for t in step.tensors[1:])
    if label.shape[dim] > 1:
        step.tracer.freeze(label, f"is mixed with other channels by '{step.name}'{step.tracer.where()}")
        return
    own = step.tracer.of(index)
    if own is not None and own.shape[dim] == 1:
        step.tracer.tie(own, label, f"meets positions of fixed width in '{step.name}'")
    elif own is not None:
        step.tracer.freeze(own, "is used as an index")
    step.tracer.attach(step.out, label)


def _scatter(step: Step) -> None:
    """Values written at positions along one dimension; the other dimensions match."""
    tensor, label = step.source
    dim = step.argument("dim", 0) % tensor.dim()
    owners = [own for t in step.tensors[1:] if (own := step.tracer.of(t)) is not None]
    if label.shape[dim] > 1 or any(own.dim() != label.dim() for own in owners):
        for own in (label, *owners):
            step.tracer.freeze(own, f"is mixed with other channels by '{step.name}'{step.tracer.where()}")
        return
    for own in owners:
        step.tracer.tie(own, label, f"meets values of fixed width in '{step.name}'")
    step.tracer.attach(step.out, label)


def _compared(step: Step) -> None:
    """Each value by itself against the same boundaries for all channels."""
    for tensor in step.tensors[1:]:
        step.tracer.freeze(step.tracer.of(tensor), f"is read by '{step.name}' as boundaries")
    step.tracer.attach(step.out, step.source[1])


def _windows(step: Step) -> None:
    """Sliding windows along a dimension, which become a new last dimension."""
    tensor, label = step.source
    dim = step.argument("dimension", 0) % tensor.dim()
    if label.shape[dim] > 1:
        step.tracer.freeze(label, "is cut into windows of channels")
        return
    step.tracer.attach(step.out, label.unsqueeze(-1))


def _along_dims(step: Step) -> None:
    """Fourier transforms along dimensions."""
    dims = step.argument("dim")
    reduce_dims(step, dims if isinstance(dims, Sequence) else [dims])


def _with_parts(step: Step) -> None:
    """A last dimension for the real and the imaginary part."""
    _, label = step.source
    step.tracer.attach(step.out, label.unsqueeze(-1))


def _without_parts(step: Step) -> None:
    _, label = step.source
    step.tracer.attach(step.out, label.squeeze(-1))


def _new(step: Step) -> None:
    """A new constant: with the channels of its source if it has the same shape."""
    tensor, label = step.source
    if step.out.shape == tensor.shape:
        step.tracer.attach(step.out, label)
    step.tracer.mark_constant(step.out)


def _every_group(step: Step) -> None:
    """Group norm without a registered layer mixes the channels of a group."""
    tensor, label = step.source
    reason = f"is mixed with other channels by '{step.name}'{step.tracer.where()}"
    for weight in step.tensors[1:]:
        own = step.tracer.of(weight)
        if own is not None:
            step.tracer.tie(own.reshape(-1), label.reshape(-1), f"meets values of fixed width in '{step.name}'")
        else:
            step.tracer.freeze(label, f"meets values of fixed width in '{step.name}'")
    if step.argument("group") == 1:
        step.tracer.mix(label, reason)
    elif step.argument("group") != tensor.shape[1]:
        step.tracer.freeze(label, reason)
    step.tracer.attach(step.outputs[0], label)


NAMED: dict[str, Callable[[Step], None]] = {
    "torchvision.roi_align": _regions,
    "torchvision.roi_pool": _regions,
}
ROWS: tuple[tuple[Callable[[Step], None], str], ...] = (
    (_along_spatial, "grid_sampler_2d grid_sampler_3d cudnn_grid_sampler"),
    (_unpool, "max_unpool2d max_unpool3d"),
    (_glu, "glu"),
    (_im2col, "im2col"),
    (_col2im, "col2im"),
    (_product, "mm bmm addmm baddbmm mv"),
    (_batch_norm, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm"),
    (_layer_norm, "native_layer_norm"),
    (_convolution, "convolution"),
    (_every_group, "native_group_norm"),
    (_index, "index index_put index_put_ _unsafe_index"),
    (_gather, "gather"),
    (_embedding, "embedding"),
    (_scatter, "scatter scatter_ scatter_add scatter_add_ index_add index_add_ index_copy index_copy_"),
    (_compared, "bucketize"),
    (_windows, "unfold"),
    (_along_dims, "_fft_r2c _fft_c2r _fft_c2c"),
    (_with_parts, "view_as_real"),
    (_without_parts, "view_as_complex"),
    (_new, "new_zeros new_ones new_full new_empty new_empty_strided"),
)
