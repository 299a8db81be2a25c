"""Surgery: remove pruned filters from a copy of the network."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.arguments import checked
from deap_prune.errors import MaskError
from deap_prune.structure.inputs import copied
from deap_prune.structure.layers import describe_layer, narrow_layer, replace_tensor, spec_of, tensor_named

if TYPE_CHECKING:
    from deap_prune.structure.masks import Masks
    from deap_prune.structure.space import LayerChannels, PruningSpace


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside (Distributed)DataParallel or the wrapper of torch.compile, or the model itself."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@checked
def slim(model: nn.Module, space: PruningSpace, masks: Masks) -> nn.Module:
    """Copy the network without its pruned filters, as modules of the same classes.

    The copy gives the outputs of :func:`deap_prune.masked`. Weights and BN statistics are those of the dense network;
    ``Evaluator.slim`` gives the compensated network that was evaluated.

    Args:
        model: The traced network, wrapped or not; it is not changed.
        space: Its pruning space.
        masks: Filters that stay.

    Examples:
        >>> dp.slim(model, space, dp.Masks.random(space, keep=0.5))[3]
        Conv2d(4, 3, kernel_size=(3, 3), stride=(1, 1))

    Raises:
        MaskError: If the masks don't fit the space, or the space was traced on another network.
    """
    small = narrowed_copy(model, space, masks)
    alike = {entry.name for entry in space.idle_layers}
    kept = space.kept(masks)
    sides = [ids for entry in _narrowed(space, kept) for ids in (entry.inputs, entry.outputs)]
    widths = {len(ids) for ids in sides if not kept[ids].all()}
    network = unwrap(model)
    unchanged = [name for name in space.idle if name not in alike and widths & _widths(network.get_submodule(name))]
    if unchanged:
        warnings.warn(
            "these layers did not run when the network was traced, so slim leaves them at full width: "
            f"{', '.join(unchanged)}; if they run on pruned channels they fail: trace a forward pass that runs "
            "them, or keep the layers that they read dense (ignore=)",
            stacklevel=2,
        )
    return small


def _widths(layer: nn.Module) -> set[int]:
    spec = spec_of(layer)
    return {spec.in_channels, spec.out_channels}


def _narrowed(space: PruningSpace, kept: NDArray[np.bool_]) -> list[LayerChannels]:
    entries = (*space.layers, *space.idle_layers)
    return [e for e in entries if not (kept[e.inputs].all() and kept[e.outputs].all())]


def narrowed_copy(model: nn.Module, space: PruningSpace, masks: Masks, *, shared: bool = False) -> nn.Module:
    """As :func:`slim`, without a warning about layers that did not run.

    Args:
        model: The traced network.
        space: Its pruning space.
        masks: Filters that stay.
        shared: Share torch's layers that stay as they are with the network instead of copying them (for a comparison).
    """
    kept = space.kept(masks)
    network = unwrap(model)
    check_network(network, space)
    narrowed = _narrowed(space, kept)
    memo = _tensors_to_narrow(network, narrowed)
    small = copied(network, {**_layers_to_share(network, space, narrowed), **memo} if shared else memo)
    for entry in narrowed:
        ins, outs = np.flatnonzero(kept[entry.inputs]), np.flatnonzero(kept[entry.outputs])
        if entry.dim is not None:
            _narrow_parameter(small, entry.name, entry.dim, outs)
        else:
            narrow_layer(small.get_submodule(entry.name), ins, outs)
    rewrite_widths(small, space, kept)
    return small


def rewrite_widths(small: nn.Module, space: PruningSpace, kept: NDArray[np.bool_]) -> None:
    """Set the attributes of a slimmed network that hold widths.

    Args:
        small: The slimmed network.
        space: Its pruning space.
        kept: True for the channel ids that stay, as from ``space.kept(masks)``.
    """
    for width in space.widths:
        owner, count = small.get_submodule(width.module), int(kept[width.ids].sum())
        if width.index is None:
            setattr(owner, width.attribute, count)
            continue
        values = list(getattr(owner, width.attribute))
        values[width.index] = count
        setattr(owner, width.attribute, type(getattr(owner, width.attribute))(values))


def _tensors_to_narrow(network: nn.Module, entries: Iterable[LayerChannels]) -> dict[int, Any]:
    """A memo for deepcopy that shares the tensors which narrowing replaces anyway."""
    memo: dict[int, Any] = {}
    for entry in entries:
        if entry.dim is not None:
            tensors: list[Tensor] = [tensor_named(network, entry.name)]
        else:
            layer = network.get_submodule(entry.name)
            spec = spec_of(layer)
            sliced = spec.tensors if spec.narrow is None else ()
            tensors = [t for name in sliced if isinstance(t := getattr(layer, name), Tensor)]
        memo.update((id(tensor), tensor) for tensor in tensors)
    return memo


def _layers_to_share(network: nn.Module, space: PruningSpace, narrowed: Iterable[LayerChannels]) -> dict[int, Any]:
    """A memo for deepcopy that shares torch's layers which neither narrowing nor rewriting changes."""
    changed = {width.module for width in space.widths}
    changed |= {entry.name if entry.dim is None else entry.name.rpartition(".")[0] for entry in narrowed}
    return {
        id(module): module
        for name, module in network.named_modules(remove_duplicate=False)
        if name not in changed and type(module).__module__.startswith("torch.nn.modules.") and not module._modules
    }


def check_network(network: nn.Module, space: PruningSpace) -> None:
    """Check that the network has the traced layers and widths.

    Raises:
        MaskError: If a layer is missing or has another width.
    """
    modules = dict(network.named_modules())
    for entry in (*space.layers, *space.idle_layers):
        if entry.dim is not None:
            continue
        spec = describe_layer(modules[entry.name]) if entry.name in modules else None
        traced = (len(entry.inputs), len(entry.outputs))
        if spec is None or (spec.in_channels, spec.out_channels) != traced:
            widths = f"has {spec.in_channels} inputs and {spec.out_channels} outputs" if spec else "is missing"
            raise MaskError(
                f"the space was traced on another network: '{entry.name}' {widths}, in the space it has {traced[0]} "
                f"and {traced[1]}; trace this network"
            )


def _narrow_parameter(model: nn.Module, name: str, dim: int, outs: np.ndarray) -> None:
    path, _, leaf = name.rpartition(".")
    old = tensor_named(model, name)
    value = old.detach().index_select(dim, torch.as_tensor(outs, device=old.device))
    replace_tensor(model.get_submodule(path), leaf, value)
