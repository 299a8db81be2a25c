"""Shortcuts without weights, which hand channels of one stage to the next: what gets lost on them, made up for.

No layer reads such a channel there, so none could be re-fitted to do without it. But what a shortcut brings is added to
what a layer makes (He et al. 2016, option A), and that layer can be fitted to make the lost part as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.data.batches import tensors_of
from deap_prune.reconstruction.flow import Flow
from deap_prune.reconstruction.matrix import Form, pick, pieces, positions, to_features, to_matrix
from deap_prune.structure.inputs import in_order
from deap_prune.structure.layers import spec_of
from deap_prune.structure.space import Ids, LayerChannels

FAINT = 1e-4  # of the variance that a shortcut brings: a layer of less can't make it


@dataclass(frozen=True, eq=False)
class Shortcut:
    """Moments of what a shortcut adds to a layer's outputs, in units of the layer's own (before its normalisation).

    Attributes:
        sources: For each of the layer's outputs the id of the channel that the shortcut copies there; -1 where it
            brings nothing that can be pruned.
        level: Mean of what is brought, as it is added: (blocks, outputs of a block).
        cross: Covariance with what the layer reads, (blocks, features, outputs of a block, 1 or taps).
        growth: By how much the variance of an output grows when it is to have the lost part too, (blocks, outputs).
        slope: What the normalisation after the layer multiplies outputs with, (blocks, outputs); 1 without one, and
            where it is next to nothing: there only the mean is made up for.
    """

    sources: Ids
    level: Tensor
    cross: Tensor
    growth: Tensor
    slope: Tensor

    def lost(self, keep: NDArray[np.bool_]) -> Tensor | None:
        """The outputs that miss what the shortcut brought, (blocks, outputs of a block); None where none does.

        Args:
            keep: Channels that stay, by id; see ``PruningSpace.kept``.
        """
        gone = ~keep[self.sources]
        return torch.as_tensor(gone, device=self.level.device).view_as(self.level) if gone.any() else None


@dataclass(frozen=True)
class Meeting:
    """Where a layer and a shortcut meet.

    Attributes:
        host: The layer that makes the other summand.
        norm: The normalisation between it and the addition, or None.
        shortcut: The layer without weights.
        sources: As :attr:`Shortcut.sources`.
    """

    host: str
    norm: str | None
    shortcut: str
    sources: Ids


def find_meetings(network: nn.Module, flow: Flow, entries: Iterable[LayerChannels]) -> dict[str, Meeting]:
    """By the host's name: additions of what a layer makes and of channels of other groups, copied by a shortcut.

    Args:
        network: The dense network.
        flow: Of it.
        entries: Its layers.
    """
    by_name = {entry.name: entry for entry in entries if entry.dim is None}
    found = {}
    for name in by_name:
        layer: Any = network.get_submodule(name)
        if getattr(layer, "weight", None) is None or spec_of(layer).role != "filter":
            continue
        norm = flow.norm_after(network, name)
        constant: Any = network.get_submodule(norm) if norm else layer
        step = flow.call(norm or name)
        if getattr(constant, "bias", None) is None or (norm and layer.bias is not None) or step is None:
            continue
        meeting = flow.meeting(step)
        other = flow.steps[meeting[1]] if meeting else None
        if other is None or not other.is_layer or other.name not in by_name:
            continue
        entry = by_name[other.name]
        if np.isin(entry.inputs, (-1, *entry.outputs)).all():  # what goes there goes here
            continue
        sources = _sources(network.get_submodule(other.name), entry, other.shapes[0])
        if sources is not None and (sources >= 0).any():
            found[name] = Meeting(name, norm, other.name, sources)
    return found


@torch.no_grad()
def _sources(layer: nn.Module, entry: LayerChannels, shape: tuple[int, ...]) -> Ids | None:
    """The channel that each output is a copy of; None of a layer that does anything else than copy and leave out."""
    if any(True for _ in layer.parameters()) or spec_of(layer).role != "other" or len(shape) < 2:
        return None
    dim = spec_of(layer).channel_dim % len(shape)
    numbers = torch.arange(1.0, shape[dim] + 1)
    found = []
    for told in (numbers, numbers.flip(0), torch.zeros_like(numbers)):
        view = [-1 if d == dim else 1 for d in range(len(shape))]
        device = next((b.device for b in layer.buffers()), None)
        result = layer(told.view(view).expand(2, *shape[1:]).contiguous().to(device)).movedim(dim, 0).flatten(1).cpu()
        if len(result) != len(entry.outputs) or not bool((result == result[:, :1]).all()):
            return None
        found.append(result[:, 0])
    first, last, zero = found
    there = first > 0
    copies = bool((zero == 0).all()) and bool(((first + last)[there] == len(numbers) + 1).all())
    if not copies or bool((last[~there] != 0).any()) or bool((first != first.round()).any()):
        return None
    ids = entry.inputs[(first.long() - 1).clamp_min(0).numpy()]
    return np.where(there.numpy(), ids, -1)


class Crossing:
    """Running sums of a host's features, what meets its outputs, and their products.

    By channel (form) nothing is known of single taps: there only the mean of what gets lost is made up for.

    Args:
        network: The dense network.
        meeting: Of the host and the shortcut.
        form: Of the host's features.
    """

    def __init__(self, network: nn.Module, meeting: Meeting, form: Form) -> None:
        layer = network.get_submodule(meeting.host)
        self._network, self._meeting, self._form, self._layer = network, meeting, form, layer
        self._matrix = to_matrix(layer.get_parameter("weight").detach(), spec_of(layer), "full").squeeze(3)
        blocks, n, outputs = self._matrix.shape
        self._read, self._brought = self._matrix.new_zeros(blocks, n), self._matrix.new_zeros(blocks, outputs)
        self._squares, self._products = torch.zeros_like(self._brought), torch.zeros_like(self._matrix)
        self._rows = 0

    def listen(self, rows: float, generator: torch.Generator) -> list[Any]:
        """Add the next call of both layers, whichever comes first: ``rows`` positions for each feature."""
        there: dict[str, Tensor] = {}

        def meet() -> None:
            if len(there) == 2:
                brought = positions(there["brought"], spec_of(self._layer))
                picks = pick(len(brought), int(rows * self._matrix.shape[1]) + 1, generator)
                self._add(there["read"], brought, picks.to(brought.device))

        def host(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            there["read"] = tensors_of(in_order(layer, args, kwargs))[0]
            meet()

        def shortcut(layer: nn.Module, args: Any, output: Tensor) -> None:
            there["brought"] = output
            meet()

        other = self._network.get_submodule(self._meeting.shortcut)
        return [
            self._layer.register_forward_hook(host, with_kwargs=True),
            other.register_forward_hook(shortcut),
        ]

    def _add(self, read: Tensor, brought: Tensor, picks: Tensor) -> None:
        for some, patches in pieces(self._layer, read, picks):
            rows = to_features(patches, len(self._matrix), "full")
            added = brought[some].view(len(some), *self._brought.shape).transpose(0, 1)
            self._read += rows.sum(dim=1)
            self._brought += added.sum(dim=1)
            self._squares += added.square().sum(dim=1)
            self._products += rows.transpose(1, 2) @ added
            self._rows += len(some)

    def moments(self) -> Shortcut:
        """What was collected."""
        level, sources = self._brought / self._rows, self._meeting.sources
        variance = (self._squares / self._rows - level.square()).clamp_min(0)
        cross = self._products / self._rows - (self._read / self._rows).unsqueeze(2) * level.unsqueeze(1)
        slope = torch.ones_like(level)
        if self._meeting.norm is not None:
            norm: Any = self._network.get_submodule(self._meeting.norm)
            var = norm.running_var.view_as(level)
            slope = norm.weight.detach().view_as(level) * torch.rsqrt(var + norm.eps)
            faint = slope.square() * var <= FAINT * variance
            cross, variance = cross.masked_fill(faint.unsqueeze(1), 0), variance.masked_fill(faint, 0)
            slope = slope.masked_fill(faint, 1)
        cross = cross / slope.unsqueeze(1)
        growth = 2 * (self._matrix * cross).sum(dim=1) + variance / slope.square()
        if self._form == "channel":
            shape = to_matrix(self._layer.get_parameter("weight"), spec_of(self._layer), "channel").shape
            return Shortcut(sources, level, level.new_zeros(shape), torch.zeros_like(growth), slope)
        return Shortcut(sources, level, cross.unsqueeze(3), growth, slope)
