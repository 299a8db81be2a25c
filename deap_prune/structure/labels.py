"""Channel labels: which channels of a network are one and the same, found by following them through one forward pass.

Every layer that makes new channels labels them; the labels then travel with the activations. A data movement (view,
cat, chunk, pad, flatten, ...) is applied to the label tensor just as it is to the activation, so no index map has to
be written for it. Where two channels meet element by element (a residual addition, a gate), their labels are tied: they
can only be pruned together. Where something reads channels in a way that can't be narrowed, their labels are frozen,
with the reason. Nothing is assumed: an operator that is not known freezes what it touches.

Label tensors have the activation's number of dimensions, with size 1 wherever the label does not vary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from deap_prune.structure.layers import LayerSpec, describe_layer

aten = torch.ops.aten
DENSE = 0  # the label of everything that can't be pruned: inputs, constants, fixed padding

_VIEWS = {aten.view, aten._unsafe_view, aten.reshape}
_MOVES = {
    aten.transpose, aten.permute, aten.t, aten.unsqueeze, aten.squeeze, aten.expand, aten.flip, aten.roll,
    aten.repeat, aten.cat, aten.stack, aten.detach, aten.alias, aten.movedim,
}  # fmt: skip
_SPLITS = {aten.split, aten.split_with_sizes, aten.chunk, aten.unbind, aten.tensor_split}
_SLICES = {aten.slice, aten.select, aten.index_select, aten.narrow}
_LIKE_POINTWISE = {
    aten.hardswish, aten.hardswish_, aten.contiguous, aten._to_copy, aten.copy_, aten.zeros_like, aten.ones_like,
    aten.empty_like, aten.full_like, aten.hardsigmoid, aten.log_sigmoid_forward, aten.threshold, aten.dropout,
    aten.native_dropout, aten.where, aten._prelu_kernel, aten.lift_fresh,
}  # fmt: skip
_SPATIAL = {
    aten.max_pool1d, aten.max_pool2d, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices, aten.avg_pool1d,
    aten.avg_pool2d, aten.avg_pool3d, aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d, aten.adaptive_avg_pool1d,
    aten.adaptive_max_pool2d, aten.adaptive_max_pool3d, aten.upsample_nearest1d, aten.upsample_nearest2d,
    aten.upsample_nearest3d, aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.upsample_linear1d,
    aten.upsample_trilinear3d, aten.reflection_pad1d, aten.reflection_pad2d, aten.replication_pad1d,
    aten.replication_pad2d, aten._upsample_nearest_exact2d, aten._upsample_bilinear2d_aa, aten.grid_sampler_2d,
}  # fmt: skip
_SOFTMAX = {aten._softmax, aten._log_softmax, aten.cumsum}
# What fvcore counts outside of layers: flops per element of the (input, output).
_COUNTED = {F.adaptive_avg_pool2d: (1, 0), aten.upsample_nearest2d: (0, 1), aten.upsample_bilinear2d: (0, 4)}

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class LayerCall:
    """One layer as it was used: the labels it read and made, and its cost as a polynomial in the two widths."""

    name: str
    spec: LayerSpec
    inputs: Labels
    outputs: Labels
    flops: tuple[tuple[str, float], ...]


class LabelTracer(TorchDispatchMode):
    """Follows channel labels through everything that runs inside it.

    After the pass: ``calls`` (layers in order of use), ``vectors`` (per-channel parameters used outside of a layer),
    ``ties`` (pairs of label arrays that are one), ``frozen`` (labels with the reason), ``counted`` (labels of each
    element that an operator outside of the layers is charged for, with the charge).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[LayerCall] = []
        self.vectors: dict[str, tuple[int, Labels]] = {}
        self.ties: list[tuple[Labels, Labels]] = []
        self.frozen: list[tuple[Labels, str]] = []
        self.counted: list[tuple[float, Labels]] = []
        self.size = 1
        self._labels: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        self._made: dict[str, tuple[Labels, Labels]] = {}
        self._inside = 0
        self._names = {id(layer): name for name, layer in model.named_modules()}

    # ------------------------------------------------------------------ the pass
    def run(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pass of ``model`` with labels; labels of the outputs are frozen at the end."""
        handles: list[Any] = []
        for layer in model.modules():
            if describe_layer(layer) is not None:
                handles.append(layer.register_forward_pre_hook(self._enter))
                handles.append(layer.register_forward_hook(self._leave, always_call=True))
        try:
            with torch.no_grad(), self, _FunctionalCounter(self):
                outputs = model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor):
                self.freeze(self._of(leaf), "is an output of the network")
        return outputs

    def fresh(self, n: int) -> Tensor:
        """``n`` labels that nothing else has."""
        self.size += n
        return torch.arange(self.size - n, self.size)

    def freeze(self, labels: Tensor | None, reason: str) -> None:
        """Keep these channels dense."""
        if labels is not None:
            self.frozen.append((np.unique(labels.numpy()), reason))

    def tie(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Make two label tensors (broadcast against each other) one; what meets a dense channel is dense."""
        pairs = torch.stack([x.reshape(-1) for x in torch.broadcast_tensors(a, b)])
        pairs = pairs[:, pairs[0] != pairs[1]]
        if pairs.numel() == 0:
            return
        pairs = torch.unique(pairs, dim=1)
        dense = (pairs == DENSE).any(dim=0)
        self.freeze(pairs[:, dense] if dense.any() else None, reason)
        self.ties.append((pairs[0, ~dense].numpy(), pairs[1, ~dense].numpy()))

    # ------------------------------------------------------------------ layers
    def _enter(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        self._inside += 1

    def _leave(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        try:
            if self._inside == 1 and isinstance(output, Tensor):
                self._record(layer, args, output)
        finally:
            self._inside -= 1

    def _record(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        spec, name = describe_layer(layer), self._names[id(layer)]
        source = next((a for a in args if isinstance(a, Tensor)), None)
        if spec is None or source is None:
            raise RuntimeError(f"layer '{name}' was called without a tensor argument")
        read = self._channels(self._of(source), source, spec.channel_dim, name)
        if self._made.get(name) is None:
            made = read.repeat_interleave(spec.coupled) if spec.coupled else self.fresh(spec.out_channels)
            self._made[name] = (read.numpy(), made.numpy())
        else:  # used twice: one weight, so the channels of both uses are the same
            first, made = (torch.from_numpy(a) for a in self._made[name])
            self.tie(read, first, f"'{name}' is used on channels that stay dense")
        if name == "" or hasattr(layer, "parametrizations"):
            reason = f"'{name}' is parametrized: bake it with torch.nn.utils.parametrize.remove_parametrizations first"
            self.freeze(torch.cat([read, made]), reason)
        shape = [1] * output.dim()
        shape[spec.channel_dim] = -1
        self._labels[output] = made.view(shape)
        cost = tuple(spec.flops(tuple(source.shape), tuple(output.shape)).items())
        self.calls.append(LayerCall(name, spec, read.numpy(), made.numpy(), cost))

    def _channels(self, labels: Tensor | None, source: Tensor, dim: int, name: str) -> Tensor:
        """One label for each channel that a layer reads; labels that differ inside a channel are tied."""
        n = source.shape[dim]
        if labels is None:
            return torch.full((n,), DENSE)
        moved = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)
        self.tie(moved, moved[:, :1], f"a channel that '{name}' reads is dense in part")
        return moved[:, 0].expand(n).contiguous()

    # ------------------------------------------------------------------ operators between the layers
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._inside:
            labels = [(t, self._of(t)) for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
            if any(label is not None for _, label in labels):
                self._follow(func, args, kwargs or {}, labels, out)
        return out

    def _of(self, tensor: Tensor) -> Tensor | None:
        """The labels of a tensor; a parameter that is used outside of a layer gets its own, if it is a vector."""
        if tensor in self._labels:
            return self._labels[tensor]  # type: ignore[no-any-return]
        name = self._parameters.get(id(tensor))
        if name is None or max(tensor.shape, default=0) != tensor.numel() or tensor.numel() < 2:
            return None
        dim = int(np.argmax(tensor.shape))
        self._labels[tensor] = self.fresh(tensor.numel()).view(tensor.shape)
        self.vectors[name] = (dim, self._labels[tensor].reshape(-1).numpy())
        return self._labels[tensor]  # type: ignore[no-any-return]

    def _follow(self, func: Any, args: Any, kwargs: Any, labels: list[tuple[Tensor, Tensor | None]], out: Any) -> None:
        packet = func.overloadpacket
        name = packet.__name__
        charge = _COUNTED.get(packet)
        if torch.Tag.pointwise in func.tags or packet in _LIKE_POINTWISE:
            self._pointwise(name, labels, out)
        elif packet in _VIEWS:
            self._view(labels[0], out)
        elif packet is aten.constant_pad_nd:
            self._pad(args, out)
        elif packet in _MOVES:
            self._move(func, args, kwargs, out)
        elif packet in _SPLITS:
            self._split(func, args, kwargs, labels[0], out)
        elif packet in _SLICES:
            self._slice(func, args, kwargs, labels[0], out)
        elif packet in _SPATIAL:
            self._reduce(name, labels[0], range(2, labels[0][0].dim()), out, keep=True)
        elif packet in {aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle}:
            self._move(func, args, kwargs, out)
        elif packet in _SOFTMAX:
            self._reduce(name, labels[0], [args[1]], out, keep=True)
        elif torch.Tag.reduction in func.tags or packet in {aten.linalg_vector_norm, aten.var_mean, aten.std}:
            self._reduction(name, func, args, kwargs, labels[0], out)
        else:
            for _, label in labels:
                self.freeze(label, f"is read by '{name}', which can't be narrowed")
        if charge:
            self.charge(labels[0][0], charge[0])
            self.charge(out, charge[1])

    def charge(self, tensor: Tensor, per_element: float) -> None:
        """Note the cost of an operator that fvcore counts by the elements of a tensor."""
        labels = self._of(tensor)
        if per_element and labels is not None:
            scale = per_element * tensor.numel() / labels.numel()
            self.counted.append((scale, labels.reshape(-1).numpy()))

    def _set(self, tensor: Any, labels: Tensor) -> None:
        """Attach labels, dropping every dimension along which they do not vary."""
        for d in range(labels.dim()):
            if labels.shape[d] > 1 and bool((labels == labels.narrow(d, 0, 1)).all()):
                labels = labels.narrow(d, 0, 1)
        self._labels[tensor] = labels.contiguous()

    def _pointwise(self, name: str, labels: list[tuple[Tensor, Tensor | None]], out: Any) -> None:
        shape = max((tuple(t.shape) for t, _ in labels), key=len)
        shape = torch.broadcast_shapes(*(t.shape for t, _ in labels)) if len(labels) > 1 else torch.Size(shape)
        aligned = [(t, _align(t, len(shape)), None if x is None else _align(x, len(shape))) for t, x in labels]
        varying = {d for _, _, x in aligned if x is not None for d in range(len(shape)) if x.shape[d] > 1}
        result: Tensor | None = None
        for _, tensor, label in aligned:
            spread = {d for d in varying if tensor.shape[d] > 1}
            if label is None:
                if spread:  # a constant as wide as the channels: it would not shrink with them
                    label = torch.full([1] * len(shape), DENSE)
                else:
                    continue
            elif spread != varying and not (label.numel() == 1 and int(label.reshape(-1)[0]) == DENSE):
                self.freeze(label, f"is broadcast over other channels by '{name}'")
                continue
            if result is None:
                result = label
            else:
                self.tie(result, label, f"meets values of fixed width in '{name}'")
                result = torch.maximum(*torch.broadcast_tensors(result, label)) if label.numel() > 1 else result
        if result is None:
            for _, _, label in aligned:
                self.freeze(label, f"is combined by '{name}' along several dimensions")
            return
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.dim() == len(shape):
                self._set(leaf, result)

    def _view(self, source: tuple[Tensor, Tensor | None], out: Tensor) -> None:
        tensor, label = source
        if label is None:
            return
        before = sum(n > 1 for n in label.shape)
        self._set(out, label.expand(tensor.shape).reshape(out.shape))
        split = [d for d, n in enumerate(self._labels[out].shape) if n > 1]
        if len(split) > before:  # channels were folded into several dimensions: every fold keeps the same ones
            first = self._labels[out]
            self.tie(first, first.narrow(split[0], 0, 1), "is folded together with channels that stay dense")

    def _move(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        self._set(out, func(*self._swap(args), **self._swap(kwargs)))

    def _swap(self, tree: Any) -> Any:
        """The same arguments with labels in the place of tensors."""

        def label(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            found = self._of(leaf)
            return torch.full((1,) * leaf.dim(), DENSE).expand(leaf.shape) if found is None else found.expand(leaf.shape)

        return tree_map(label, tree)

    def _pad(self, args: Any, out: Tensor) -> None:
        label = self._of(args[0])
        if label is None:
            return
        pads = list(args[1])
        for k in range(len(pads) // 2):  # pads count from the last dimension
            if label.shape[label.dim() - 1 - k] == 1:
                pads[2 * k] = pads[2 * k + 1] = 0
        self._set(out, F.pad(label, pads, value=DENSE))

    def _split(self, func: Any, args: Any, kwargs: Any, source: tuple[Tensor, Tensor | None], out: Sequence[Tensor]) -> None:
        if source[1] is None:
            return
        parts = func(*self._swap(args), **self._swap(kwargs))
        for tensor, part in zip(out, parts, strict=True):
            self._set(tensor, part)
        found = [self._labels[t] for t in out]
        if all(torch.equal(f, found[0]) for f in found):
            return  # not split along the channels
        if len({f.shape for f in found}) == 1:  # chunk: every part keeps the same number, so the same positions
            for other in found[1:]:
                self.tie(other, found[0], "is split beside channels that stay dense")
        else:
            self.freeze(source[1], "is split into parts of unequal width")

    def _slice(self, func: Any, args: Any, kwargs: Any, source: tuple[Tensor, Tensor | None], out: Tensor) -> None:
        tensor, label = source
        if label is None:
            return
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % tensor.dim()
        if label.shape[dim] > 1 and out.shape != tensor.shape:
            self.freeze(label, "is indexed by fixed positions")
        self._move(func, args, kwargs, out)

    def _reduction(
        self, name: str, func: Any, args: Any, kwargs: Any, source: tuple[Tensor, Tensor | None], out: Any
    ) -> None:
        """A reduction whose dimensions are an argument: the one called ``dim`` in the operator's schema."""
        place = next((i for i, a in enumerate(func._schema.arguments) if a.name == "dim"), None)
        dims = None if place is None else (args[place] if place < len(args) else kwargs.get("dim"))
        n = source[0].dim()
        chosen = list(range(n)) if dims is None or dims == [] else [d % n for d in (dims if isinstance(dims, list) else [dims])]
        first = next(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        self._reduce(name, source, chosen, out, keep=first.dim() == n)

    def _reduce(self, name: str, source: tuple[Tensor, Tensor | None], dims: Any, out: Any, *, keep: bool) -> None:
        tensor, label = source
        if label is None:
            return
        dims = [d % tensor.dim() for d in dims]
        if any(label.shape[d] > 1 for d in dims):
            self.freeze(label, f"is mixed with other channels by '{name}'")
            return
        if not keep:
            label = label.reshape([n for d, n in enumerate(label.shape) if d not in dims])
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.dim() == label.dim():
                self._set(leaf, label)


class _FunctionalCounter(TorchFunctionMode):
    """Sees functional operators whose identity is lost on the way down (adaptive pooling to 1x1 becomes a mean)."""

    def __init__(self, tracer: LabelTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        charge = _COUNTED.get(func)
        if charge is not None and not self.tracer._inside and isinstance(args[0], Tensor):
            self.tracer.charge(args[0], charge[0])
        return out


def _align(tensor: Tensor, dims: int) -> Tensor:
    """View with leading dimensions of size 1, as broadcasting adds them."""
    return tensor.view([1] * (dims - tensor.dim()) + list(tensor.shape)) if isinstance(tensor, Tensor) else tensor
