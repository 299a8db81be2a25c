"""A slim copy of the network that is kept in memory: the kept weights of each candidate are written into it."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from deap_prune.structure.layers import narrow_layer, replace_tensor, spec_of, tensor_named
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import rewrite_widths
from deap_prune.structure.space import PruningSpace


class SlimBuffer:
    """Holds the slim network of one candidate at a time.

    Building the modules anew for each candidate would take longer than copying its weights. Here the modules stay, and
    only tensors and widths change. Nothing of a candidate remains when the next one is loaded.

    Args:
        dense: The dense network; never changed.
        space: Its space.
    """

    def __init__(self, dense: nn.Module, space: PruningSpace) -> None:
        self.space = space
        self.network = copy.deepcopy(dense)
        layers = {entry.name: dense.get_submodule(entry.name) for entry in space.layers if entry.dim is None}
        # Layers with a narrow function of their own may change anything, also in their children: they are copied.
        self._whole = [(layer, name) for name, layer in layers.items() if spec_of(layer).narrow]
        below = tuple(f"{name}." for _, name in self._whole)
        self._pairs = [
            (source, self.network.get_submodule(name))
            for name, source in dense.named_modules()
            if not f"{name}.".startswith(below)
        ]

    @torch.no_grad()
    def load(self, masks: Masks) -> nn.Module:
        """The slim network of the masks, equal to that of ``dp.slim``; it is valid until the next call.

        Raises:
            MaskError: If the masks don't fit the space.
        """
        kept = self.space.kept(masks)
        copies: dict[int, Tensor] = {}
        for source, target in self._pairs:
            _restore(target, source, copies)
        for source, name in self._whole:
            target = self.network.get_submodule(name)
            vars(target).clear()
            vars(target).update(vars(copy.deepcopy(source)))
        for entry in self.space.layers:
            ins, outs = np.flatnonzero(kept[entry.inputs]), np.flatnonzero(kept[entry.outputs])
            if len(ins) == len(entry.inputs) and len(outs) == len(entry.outputs):
                continue
            if entry.dim is None:
                narrow_layer(self.network.get_submodule(entry.name), ins, outs)
            else:
                path, _, leaf = entry.name.rpartition(".")
                value = tensor_named(self.network, entry.name)
                index = torch.as_tensor(outs, device=value.device)
                replace_tensor(self.network.get_submodule(path), leaf, value.detach().index_select(entry.dim, index))
        rewrite_widths(self.network, self.space, kept)
        return self.network


def _restore(target: nn.Module, source: nn.Module, copies: dict[int, Tensor]) -> None:
    """Reset a layer to its dense original, with its own copies of tensors; shared tensors stay shared."""
    mine, dense = vars(target), vars(source)
    for name in mine.keys() - dense.keys():
        del mine[name]  # the forward function of a folded batch norm
    mine.update({name: value for name, value in dense.items() if name != "_modules" and "hooks" not in name})
    for store in ("_parameters", "_buffers"):
        mine[store] = {name: _copy(value, copies) for name, value in dense[store].items()}


def _copy(tensor: Tensor | None, copies: dict[int, Tensor]) -> Tensor | None:
    if tensor is None:
        return None
    if id(tensor) not in copies:
        value = tensor.detach().clone()
        parameter = isinstance(tensor, nn.Parameter)
        copies[id(tensor)] = nn.Parameter(value, requires_grad=tensor.requires_grad) if parameter else value
    return copies[id(tensor)]
