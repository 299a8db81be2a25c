"""Shortcuts without weights, which hand channels of one stage to the next: what gets lost on them, made up for.

No layer reads such a channel there, so none could be re-fitted to do without it. But what a shortcut brings is added to
what a layer makes (He et al. 2016, option A), and that layer can be fitted to make the lost part as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.reconstruction.flow import Flow
from deap_prune.reconstruction.matrix import RIDGE, pieces, positions, refittable, solve, to_features, to_matrix
from deap_prune.structure.layers import spec_of
from deap_prune.structure.space import Ids, LayerChannels

if TYPE_CHECKING:
    from deap_prune.reconstruction.moments import LayerGram

FAINT = 1e-4  # of the variance that a shortcut brings: a layer whose outputs have less can't make it


@dataclass(frozen=True, eq=False)
class Shortcut:
    """Moments of what a shortcut adds to a layer's outputs.

    Tensors are (blocks, outputs of a block) where nothing else is said.

    Attributes:
        sources: For each of the layer's outputs the id of the channel that the shortcut copies there; -1 where it
            brings nothing that can be pruned.
        level: Mean of what is brought.
        cross: Its covariance with what the layer reads, (blocks, features, outputs of a block, 1 or taps), in units of
            the layer's own outputs, as ``growth`` is.
        growth: By how much the variance of an output grows with as much of it as what the layer reads tells.
        unmade: Variance of the rest. Where the normalisation has next to no scale, or moments are by channel, that is
            all but the mean, and the two above are 0.
        slope: What the normalisation after the layer multiplies its outputs with; 1 without one.
    """

    sources: Ids
    level: Tensor
    cross: Tensor
    growth: Tensor
    unmade: Tensor
    slope: Tensor

    def lost(self, keep: NDArray[np.bool_]) -> Tensor | None:
        """The outputs that miss what the shortcut brought; None where none does.

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
        spec, norm = refittable(layer), flow.norm_after(network, name)
        biased = getattr(layer, "bias", None) is not None
        shifts = biased if norm is None else not biased and _shifts(network.get_submodule(norm))
        meeting = flow.meeting(step) if (step := flow.call(norm or name)) is not None else None
        if spec is None or spec.coupled or not shifts or meeting is None:
            continue
        other = flow.steps[meeting[1]]
        if not other.is_layer or other.name not in by_name or flow.call(other.name) is None:
            continue
        entry = by_name[other.name]
        if np.isin(entry.inputs, (-1, *entry.outputs)).all():  # what goes there goes here
            continue
        sources = _sources(network.get_submodule(other.name), entry, other.shapes[0], layer.weight.device)
        if sources is not None and (sources >= 0).any():
            found[name] = Meeting(name, norm, other.name, sources)
    return found


def _shifts(norm: nn.Module) -> bool:
    """Whether a normalisation has a shift and a scale of its own."""
    return all(getattr(norm, name, None) is not None for name in ("weight", "bias", "running_var", "eps"))


@torch.no_grad()
def _sources(layer: nn.Module, entry: LayerChannels, shape: tuple[int, ...], device: torch.device) -> Ids | None:
    """The channel that each output is a copy of; None of a layer that does anything else than copy and leave out."""
    if any(True for _ in layer.parameters()) or spec_of(layer).role != "other":
        return None
    dim = spec_of(layer).channel_dim % len(shape)
    view = [-1 if d == dim else 1 for d in range(len(shape))]
    numbers = torch.arange(1.0, shape[dim] + 1, device=device)
    found = []
    for told in (numbers, numbers.sqrt()):
        try:  # past all hooks: nothing of this is the user's
            result = layer.forward(told.view(view).expand(min(2, shape[0]), *shape[1:]).contiguous())
        except Exception:  # it takes more than one tensor, or another: what it does can't be told
            return None
        result = result.movedim(dim, 0).flatten(1)
        if len(result) != len(entry.outputs) or not bool((result == result[:, :1]).all()):
            return None
        found.append(result[:, 0])
    number = found[0].round().clamp(0, len(numbers)).long()  # of the channel that is copied; 0: none
    if not torch.equal(found[1], number.float().sqrt()):
        return None
    return np.where(number.cpu() > 0, entry.inputs[(number - 1).clamp_min(0).cpu().numpy()], -1)


class Crossing:
    """Running sums of a host's features times what meets its outputs.

    Args:
        network: The dense network.
        meeting: Of the host and the shortcut.
    """

    def __init__(self, network: nn.Module, meeting: Meeting) -> None:
        layer = network.get_submodule(meeting.host)
        self._network, self._meeting, self._layer = network, meeting, layer
        self._matrix = to_matrix(layer.get_parameter("weight").detach(), spec_of(layer), "full").squeeze(3)
        blocks, _, outputs = self._matrix.shape
        self._brought, self._squares = (self._matrix.new_zeros(blocks, outputs) for _ in range(2))
        self._products = torch.zeros_like(self._matrix)
        self._rows = 0
        self._read: tuple[Tensor, Tensor, int] | None = None
        self._there: Tensor | None = None

    def listen(self) -> Any:
        """Add what the shortcut makes next, at the positions that :meth:`read` tells before or after it."""

        def hook(layer: nn.Module, args: Any, output: Tensor) -> None:
            self._there = positions(output, spec_of(self._layer))
            self._meet()

        return self._network.get_submodule(self._meeting.shortcut).register_forward_hook(hook)

    def read(self, source: Tensor, picks: Tensor) -> None:
        """What the host reads, and the output positions that are looked at."""
        self._read = source, picks, source._version
        self._meet()

    def _meet(self) -> None:
        if self._read is None or self._there is None:
            return
        (source, picks, version), brought = self._read, self._there
        self._read = self._there = None
        if source._version != version:  # written to in between
            return
        for some, patches in pieces(self._layer, source, picks):
            rows = to_features(patches, len(self._matrix), "full")
            added = brought[some].view(len(some), *self._brought.shape).transpose(0, 1)
            self._brought += added.sum(dim=1)
            self._squares += added.square().sum(dim=1)
            self._products += rows.transpose(1, 2) @ added
            self._rows += len(some)

    def moments(self, gram: LayerGram) -> Shortcut | None:
        """What was collected; None where the host's input was written to before the shortcut ran.

        Args:
            gram: Of the host.
        """
        if not self._rows:
            return None
        level = self._brought / self._rows
        variance = (self._squares / self._rows - level.square()).clamp_min(0)
        slope = torch.ones_like(level)
        if self._meeting.norm is not None:
            norm: Any = self._network.get_submodule(self._meeting.norm)
            slope = (norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)).view_as(level)
        if gram.form == "channel":
            none = torch.zeros_like(gram.weight), torch.zeros_like(level)
            return Shortcut(self._meeting.sources, level, *none, variance, slope)
        faint = slope.square() * gram.energy <= FAINT * variance
        scale = slope.masked_fill(faint, torch.inf).unsqueeze(1)
        cross = (self._products / self._rows - gram.mean.unsqueeze(2) * level.unsqueeze(1)) / scale
        change, added = solve(gram.moments.clone(), cross, RIDGE * gram.scarcity)
        told = (change * (cross + added * change)).sum(dim=1)
        growth = 2 * (self._matrix * cross).sum(dim=1) + told
        unmade = (variance - slope.square() * told).clamp_min(0)
        return Shortcut(self._meeting.sources, level, cross.unsqueeze(3), growth, unmade, slope)
