"""Sequential selection: which filters of a group stay is decided when the layer that reads them is re-fitted.

At that moment of a refinement all filters of the group are still there, and all layers before the reader are pruned and
re-fitted. A backward elimination on what the reader then reads, and on its target, gives the cost of each filter under
the condition of all other choices made so far. The masks give the number of filters of each group, and a preference.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.reconstruction.elimination import run_elimination, uses_of
from deap_prune.reconstruction.fit import current_map
from deap_prune.reconstruction.flow import Flow
from deap_prune.reconstruction.live_problem import LiveProblem
from deap_prune.reconstruction.matrix import (
    blocks_of,
    features,
    to_features,
)
from deap_prune.reconstruction.targets import Aim
from deap_prune.structure.inputs import in_order
from deap_prune.structure.layers import describe_layer, narrow_layer, selection, spec_of
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import rewrite_widths, slim
from deap_prune.structure.space import FilterGroup, Ids, PruningSpace

log = logging.getLogger("deap_prune")
PRIOR = 0.3  # against 0 (and mostly 1) the best in 4 of 5 comparisons on ResNet-20, CIFAR-100; but only two seeds
ROWS_PER_FEATURE = 10  # feature rows that an elimination looks at, for each feature


@dataclass(frozen=True, eq=False)
class Choice:
    """A group whose filters can be selected when its reader's turn comes.

    Attributes:
        group: The group.
        reader: Name of the only layer that reads it.
    """

    group: FilterGroup
    reader: str


def find_choices(network: nn.Module, space: PruningSpace, flow: Flow, aims: Mapping[str, Aim]) -> tuple[Choice, ...]:
    """The groups that can be selected; the others are named in the log, with the reason.

    Args:
        network: The dense network.
        space: Its space.
        flow: Its flow.
        aims: Aims by name of the layers that are re-fitted.
    """
    choices, kept = [], {}
    for group in space.groups:
        reason = _obstacle(network, space, flow, aims, group)
        if reason is None:
            choices.append(Choice(group, group.layers("reader")[0].layer))
        else:
            kept[group.name] = reason
    if kept:
        log.info("not selected, the masks decide: %s", "; ".join(f"{name} ({why})" for name, why in kept.items()))
    return tuple(choices)


def _obstacle(
    network: nn.Module, space: PruningSpace, flow: Flow, aims: Mapping[str, Aim], group: FilterGroup
) -> str | None:
    """Why a group cannot be selected, or None."""
    readers = group.layers("reader")
    if len(readers) != 1:
        return f"{len(readers)} readers"
    reader = readers[0].layer
    turn = flow.call(reader)
    if reader not in aims or turn is None:
        return f"'{reader}' is not re-fitted"
    ids = np.arange(group.start, group.start + group.size)
    for entry in space.layers:
        if not (np.isin(entry.inputs, ids).any() or np.isin(entry.outputs, ids).any()) or entry.name == reader:
            continue
        if entry.dim is not None:
            return f"parameter '{entry.name}'"
        number = flow.call(entry.name)
        if number is None or number > turn:
            return f"'{entry.name}' runs after '{reader}'"
        spec = describe_layer(network.get_submodule(entry.name))
        if spec is None or spec.whole or spec.narrow is not None:
            return f"'{entry.name}' looks at all channels at once"
        if spec.blocks > 1 and not spec.coupled:  # with one input a block it would become depthwise half-way
            return f"'{entry.name}' is grouped"
    return None


class Selector:
    """Selects the filters of one candidate during its refinement.

    Args:
        network: The dense network.
        space: Its space.
        choices: The groups that can be selected.
        masks: The candidate's masks: how many filters of each group stay, and which are preferred.
        prior: Factor on a filter's cost where the masks keep it, less 1: 0 for the live cost alone.
    """

    def __init__(
        self, network: nn.Module, space: PruningSpace, choices: Sequence[Choice], masks: Masks, *, prior: float
    ) -> None:
        self._network, self._space, self._masks, self._prior = network, space, masks, prior
        self._choices: dict[str, list[FilterGroup]] = {}
        for choice in choices:
            if choice.group.name in masks and not masks[choice.group.name].all():
                self._choices.setdefault(choice.reader, []).append(choice.group)
        open_groups = {group.name for groups in self._choices.values() for group in groups}
        self.wide = space.kept(Masks({n: keep for n, keep in masks.items() if n not in open_groups}))
        self._keep = space.kept(masks)
        self._entries = {entry.name: entry for entry in space.layers if entry.dim is None}
        self._selected = dict(masks)
        self.present = self.wide.copy()
        self._done: set[str] = set()
        self._stay: dict[str, Ids] = {}
        self._touched: dict[str, list[str]] = {}
        for reader, groups in self._choices.items():
            ids = np.concatenate([np.arange(group.start, group.start + group.size) for group in groups])
            for name, entry in self._entries.items():
                if np.isin(entry.outputs, ids).any():
                    self._touched.setdefault(name, []).append(reader)

    @property
    def masks(self) -> Masks:
        """The masks with what was selected so far."""
        return Masks(self._selected)

    def begin(self, start: nn.Module, aims: Mapping[str, Aim]) -> nn.Module:
        """A network with all filters of the open groups, and with the weights of the slimmed network elsewhere.

        Layers that read an open group begin with their dense weights.

        Args:
            start: The network slimmed by the masks.
            aims: Aims by layer name.
        """
        names = [group.name for groups in self._choices.values() for group in groups]
        network = slim(self._network, self._space, Masks({n: k for n, k in self._masks.items() if n not in names}))
        fresh = {*self._choices, *(aims[reader].norm for reader in self._choices)}
        for name, entry in self._entries.items():
            if name in fresh:
                continue
            layer, source = network.get_submodule(name), start.get_submodule(name)
            ins, outs = _places(entry.inputs, self._keep, self.wide), _places(entry.outputs, self._keep, self.wide)
            for key in spec_of(layer).tensors:
                tensor, value = getattr(layer, key), getattr(source, key)
                if isinstance(tensor, Tensor) and tensor.shape == value.shape:
                    tensor.data.copy_(value)
                elif isinstance(tensor, Tensor):
                    index = selection(tensor, spec_of(layer), key, ins, outs)
                    tensor.data[index] = value.data.reshape(tensor.data[index].shape)
        return network.eval()

    def opens(self, reader: str) -> bool:
        """Whether a layer reads filters that are to be selected."""
        return reader in self._choices

    def makers(self, name: str) -> list[str]:
        """The readers of the groups, not selected yet, whose channels a layer makes or passes on."""
        touched = self._touched.get(name, ())
        return [reader for reader in touched if reader != name and reader not in self._done]

    def rows(self, reader: str) -> int:
        """Number of rows that a selection looks at."""
        layer = self._network.get_submodule(reader)
        features = int(self.present[self._entries[reader].inputs].sum()) * layer.get_parameter("weight")[0, 0].numel()
        return math.ceil(ROWS_PER_FEATURE * features / blocks_of(spec_of(layer)))

    def select(self, reader: str, network: nn.Module, norm: Any, patches: Tensor, target: Tensor) -> Ids:
        """Select what a layer reads, and narrow the layers that make it and the layer itself.

        Args:
            reader: Name of the layer.
            network: The pruned network; the layer has all channels of the open groups.
            norm: The normalisation after the layer, or None.
            patches: What the layer reads, (rows, channels, taps).
            target: Target there, (rows, outputs).

        Returns:
            Positions of the channels that stay, among those of the patches.
        """
        layer: Any = network.get_submodule(reader)
        inputs, spec, taps = self._entries[reader].inputs, spec_of(layer), layer.weight[0, 0].numel()
        blocks = blocks_of(spec)
        x = to_features(patches, blocks, "full")
        live = LiveProblem.of(x, target, current_map(layer, norm).weight, norm is not None or layer.bias is not None)
        present = self.present.copy()
        for group in self._choices[reader]:
            places = _places(inputs, present, self.present).reshape(blocks, -1) % (spec.in_channels // blocks)
            member = group.layers("reader")[0]
            positions = (np.cumsum(present[inputs]) - 1)[member.positions]
            keep = self._keep_of(group, live.part(features(places, taps, "full")), positions, taps)
            self._selected[group.name] = keep
            for kept in (present, self._keep):
                kept[group.start : group.start + group.size] = keep
        self._done.add(reader)
        self._stay[reader] = stays = _places(inputs, present, self.present)
        live.compensate(layer, norm, features((stays % (spec.in_channels // blocks)).reshape(blocks, -1), taps, "full"))
        self._narrow(network, present)
        return stays

    def narrowing(self, network: nn.Module) -> list[Any]:
        """Hooks for a pass that has run the makers of a group before its selection: readers ignore the other channels.

        Args:
            network: The network of the pass.
        """

        def hook_of(reader: str) -> Any:
            def hook(layer: nn.Module, args: Any, kwargs: Any) -> Any:
                (x, *rest), named = in_order(layer, args, kwargs)
                places, dim = self._stay.get(reader), spec_of(layer).channel_dim
                if places is None or x.shape[dim] == len(places):
                    return None
                return (x.index_select(dim, torch.as_tensor(places, device=x.device)), *rest), named

            return hook

        layers = {reader: network.get_submodule(reader) for reader in self._choices}
        return [layer.register_forward_pre_hook(hook_of(r), with_kwargs=True) for r, layer in layers.items()]

    def _keep_of(self, group: FilterGroup, live: LiveProblem, positions: Ids, taps: int) -> NDArray[np.bool_]:
        """Mask of the filters that stay; the candidate's own where the data give no order."""
        own = self._masks[group.name]
        blocks, n, _ = live.weight.shape
        reader = live.reader(uses_of(positions, blocks, blocks * n // taps, taps))
        factor = torch.as_tensor(
            np.where(own, 1 + self._prior, 1.0), device=live.weight.device, dtype=live.weight.dtype
        )
        width = int(own.sum()) // group.blocks
        result = run_elimination([reader], group.size, blocks=group.blocks, width=width, factor=factor, curve=False)
        if not np.isfinite(result.costs).all():
            return own
        keep = np.ones(group.size, dtype=np.bool_)
        keep[result.order.flatten()] = False
        return keep

    def rewrite(self, network: nn.Module) -> None:
        """Set the attributes of a network that hold widths to the widths of now."""
        rewrite_widths(network, self._space, self.present)

    def finish(self, network: nn.Module) -> None:
        """Narrow the layers of groups whose reader's turn has not come, in place."""
        self._narrow(network, self._keep)

    def _narrow(self, network: nn.Module, keep: NDArray[np.bool_]) -> None:
        """Remove the channels that are not kept from all layers, in place."""
        for name, entry in self._entries.items():
            gone = self.present & ~keep
            if gone[entry.inputs].any() or gone[entry.outputs].any():
                places = (_places(ids, keep, self.present) for ids in (entry.inputs, entry.outputs))
                narrow_layer(network.get_submodule(name), *places)
        self.present = keep.copy()
        self.rewrite(network)


def _places(ids: Ids, keep: NDArray[np.bool_], present: NDArray[np.bool_]) -> Ids:
    """Positions of the kept channels among those that are present."""
    return np.flatnonzero(keep[ids][present[ids]])
