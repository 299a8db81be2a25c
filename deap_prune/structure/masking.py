"""The masked network: full size, with pruned channels ignored by the layers that read them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.arguments import checked
from deap_prune.errors import MaskError
from deap_prune.structure.inputs import in_order
from deap_prune.structure.layers import Indices, LayerSpec, narrow_layer, selection, spec_of, tensor_named
from deap_prune.structure.masks import Masks
from deap_prune.structure.mixing import KeptChannels
from deap_prune.structure.slim import check_network, unwrap
from deap_prune.structure.space import PruningSpace

Index = tuple[Tensor | slice, ...]
Saved = list[tuple[Tensor, Index | None, Tensor]]  # tensor, overwritten part (None: all), original values


@dataclass(frozen=True, eq=False)
class _Active:
    """The mask that a network is under.

    Attributes:
        space: Its space.
        masks: What is kept.
        with_state: Whether weights of a slimmed network are in force.
        mixing: Runs mixing functions on the kept channels; None if none is pruned.
    """

    space: PruningSpace
    masks: Masks
    with_state: bool
    mixing: KeptChannels | None


_ACTIVE: MutableMapping[nn.Module, _Active] = WeakKeyDictionary()


@checked
@contextmanager
def masked(
    model: nn.Module, space: PruningSpace, masks: Masks, *, state: nn.Module | None = None
) -> Iterator[nn.Module]:
    """Mask the network in place: layers ignore the pruned channels that they read. Undone when the context ends.

    Run a backward pass inside the context: autograd reads the masked weights, which are restored at the end. Layers
    that use all their channels at once (LayerNorm, GroupNorm, ...) run as narrowed copies and get no gradients.
    Inside the context of another mask a filter stays if both masks keep it.

    Args:
        model: The traced network, wrapped or not, on any device.
        space: Its pruning space.
        masks: Filters that stay.
        state: A slimmed network whose weights and statistics replace those of the kept channels (as evaluated, with
            re-estimated BN statistics); None keeps the network's own.

    Examples:
        >>> with torch.no_grad(), dp.masked(model, space, masks) as network:
        ...     torch.allclose(network(images), dp.slim(model, space, masks)(images), atol=1e-5)
        True

    Raises:
        MaskError: If the masks don't fit the space, or, inside another mask, what both keep does not, or a ``state``
            is given or in force.
    """
    network, kept = unwrap(model), space.kept(masks)
    check_network(network, space)
    if (outer := _ACTIVE.get(network)) is not None:
        masks = _both(outer, space, masks, with_state=state is not None)
        kept = space.kept(masks)
    now = (space, masks, state is not None)
    donor = dict(state.named_modules()) if state is not None else {}
    saved: Saved = []
    replaced: list[tuple[nn.Module, Any]] = []
    try:
        for entry in space.layers:
            ins, outs = np.flatnonzero(kept[entry.inputs]), np.flatnonzero(kept[entry.outputs])
            if entry.dim is not None:
                if state is not None:
                    index = [slice(None)] * entry.dim + [outs]
                    value = tensor_named(state, entry.name)
                    _overwrite(tensor_named(network, entry.name), tuple(index), value, saved)
                continue
            layer = network.get_submodule(entry.name)
            spec = spec_of(layer)
            if spec.whole and len(ins) < len(entry.inputs):
                replaced.append((layer, vars(layer).get("forward")))
                _run_narrowed(layer, donor.get(entry.name), spec, ins, outs)
                continue
            _mask_layer(layer, donor.get(entry.name), spec, kept[entry.inputs], outs, saved)
        if state is not None:
            traced = {entry.name for entry in space.layers}
            for name, value in state.named_buffers():  # statistics of layers outside of the space
                if name.rpartition(".")[0] not in traced and name not in traced:
                    _overwrite(network.get_buffer(name), (), value, saved)
        with _mixing(network, space, kept, outer) as mixing, _noted(network, outer, _Active(*now, mixing)):
            yield model
    finally:
        for tensor, part, original in reversed(saved):
            if part is None:
                tensor.data = original
            else:
                tensor.data[part] = original.to(tensor)
        for layer, own in reversed(replaced):
            vars(layer).pop("forward", None)
            if own is not None:
                layer.forward = own


def _both(outer: _Active, space: PruningSpace, masks: Masks, *, with_state: bool) -> Masks:
    """What a mask and the one around it keep.

    Raises:
        MaskError: If they can't be combined.
    """
    if outer.space is not space:
        raise MaskError("the network is under a mask of another space; end that context first (a trace makes a space)")
    if outer.with_state or with_state:
        raise MaskError(
            "the network is under a mask already, and weights that were evaluated with one mask do not fit another: "
            "end that context first (Evaluator.masked does not nest)"
        )
    both = {**outer.masks, **{n: keep & outer.masks[n] if n in outer.masks else keep for n, keep in masks.items()}}
    try:
        space.kept(Masks(both))
    except MaskError as error:
        raise MaskError(f"a mask inside another keeps what both keep, which is no mask: {error}") from error
    return Masks(both)


@contextmanager
def _noted(network: nn.Module, outer: _Active | None, mask: _Active) -> Iterator[None]:
    """Note the mask that a network is under, in the place of the one around it."""
    _ACTIVE[network] = mask
    try:
        yield
    finally:
        if outer is None:
            del _ACTIVE[network]
        else:
            _ACTIVE[network] = outer


@contextmanager
def _mixing(
    network: nn.Module, space: PruningSpace, kept: NDArray[np.bool_], outer: _Active | None
) -> Iterator[KeptChannels | None]:
    """Run the mixing functions on the kept channels, in the place of the mask around this one."""
    pruned = [
        call
        for call in space.mixing
        if any(side is not None and not kept[side[1]].all() for side in (*call.inputs, *call.outputs))
    ]
    if not pruned:
        yield None
        return
    around = None if outer is None else outer.mixing
    with nullcontext() if around is None else around.suspended(), KeptChannels(network, pruned, kept) as mixing:
        yield mixing


def _mask_layer(
    layer: nn.Module,
    donor: nn.Module | None,
    spec: LayerSpec,
    keep_in: NDArray[np.bool_],
    outs: Indices,
    saved: Saved,
) -> None:
    """Zero the weights of pruned inputs, and copy the donor's values to the kept ones."""
    for name, dims in spec.tensors.items():
        tensor = getattr(layer, name)
        if tensor is None or (donor is None and ("in" not in dims or keep_in.all())):
            continue
        if donor is not None:
            saved.append((tensor, None, tensor.data))
            tensor.data = tensor.detach().clone()
        if "in" in dims and not keep_in.all():
            part = _columns(tensor, spec, name, np.flatnonzero(~keep_in))
            saved.append((tensor, part, tensor.data[part]))
            tensor.data[part] = 0
        if donor is not None:
            index = selection(tensor, spec, name, np.flatnonzero(keep_in), outs)
            tensor.data[index] = getattr(donor, name).detach().to(tensor).reshape(tensor[index].shape)


def _columns(tensor: Tensor, spec: LayerSpec, name: str, ins: Indices) -> Index:
    """Index of all weights that read these input channels."""
    if spec.blocks > 1:
        return selection(tensor, spec, name, ins, np.arange(spec.out_channels))
    positions = torch.as_tensor(ins, device=tensor.device)
    return tuple(positions if axis == "in" else slice(None) for axis in spec.tensors[name])


def _overwrite(tensor: Tensor, index: tuple[Any, ...], value: Tensor, saved: Saved) -> None:
    full = tensor.detach().clone()
    full[index] = value.detach().to(full)
    saved.append((tensor, None, tensor.data))
    tensor.data = full


def _run_narrowed(layer: nn.Module, donor: nn.Module | None, spec: LayerSpec, ins: Indices, outs: Indices) -> None:
    """Run the layer on its kept channels only: gather, run the narrowed copy, scatter."""
    small = copy.deepcopy(layer)
    vars(small).pop(
        "forward", None
    )  # drop an instance-level forward (of another mask, or the user's): the class's forward is narrowed
    narrow_layer(small, ins, outs)
    if donor is not None:
        small.load_state_dict(donor.state_dict())

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        (x, *others), named = in_order(small, args, kwargs)
        index, dim = torch.as_tensor(ins, device=x.device), spec.axis(x.dim())
        small.train(layer.training)
        narrow = small.forward(
            x.index_select(dim, index), *others, **named
        )  # not small(...): hooks run once, around the whole layer
        shape = list(narrow.shape)
        dim = spec.axis(narrow.dim())
        shape[dim] = spec.out_channels
        return narrow.new_zeros(shape).index_copy_(dim, torch.as_tensor(outs, device=x.device), narrow)

    layer.forward = forward
