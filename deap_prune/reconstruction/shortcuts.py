"""Compensation for channels lost on parameter-free shortcuts (option A of He et al. 2016).

No layer reads such a channel at the shortcut, so none can be re-fitted to do without it. But the shortcut is added to
the outputs of a layer, the host, and the host can be fitted to make the lost part as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deap_prune.reconstruction.flow import Flow
from deap_prune.reconstruction.grams import LayerGram, Shortcut
from deap_prune.reconstruction.matrix import RIDGE, pieces, positions, refittable, solve, to_features, to_matrix
from deap_prune.structure.layers import spec_of
from deap_prune.structure.space import Ids, LayerChannels

FAINT = 1e-4  # share of the shortcut's variance below which a host's outputs are too faint to make it


@dataclass(frozen=True)
class Meeting:
    """An addition of a layer's output and a parameter-free shortcut.

    Attributes:
        host: Name of the layer that makes the first summand.
        norm: Name of the normalisation between the host and the addition, or None.
        shortcut: Name of the shortcut's layer.
        sources: See :attr:`Shortcut.sources`.
    """

    host: str
    norm: str | None
    shortcut: str
    sources: Ids


def find_meetings(network: nn.Module, flow: Flow, entries: Iterable[LayerChannels]) -> dict[str, Meeting]:
    """Meetings by host name: additions in which a shortcut copies channels of a group that the host does not make.

    Args:
        network: The dense network.
        flow: Its flow.
        entries: Its layers.
    """
    by_name = {entry.name: entry for entry in entries if entry.dim is None}
    meetings: dict[str, Meeting] = {}
    for name in by_name:
        layer: Any = network.get_submodule(name)
        spec, norm = refittable(layer), flow.norm_after(network, name)
        biased = getattr(layer, "bias", None) is not None
        shifts = biased if norm is None else not biased and _shifts(network.get_submodule(norm))
        meeting = flow.meeting(step) if (step := flow.call(norm or name)) is not None else None
        if spec is None or spec.coupled or not shifts or meeting is None:
            continue
        summand = flow.steps[meeting[1]]
        if not summand.is_layer or summand.name not in by_name or flow.call(summand.name) is None:
            continue
        entry = by_name[summand.name]
        if np.isin(entry.inputs, (-1, *entry.outputs)).all():  # both ends lose the same channels
            continue
        sources = _sources(network.get_submodule(summand.name), entry, summand.shapes[0], layer.weight.device)
        if sources is not None and (sources >= 0).any():
            meetings[name] = Meeting(name, norm, summand.name, sources)
    return meetings


def _shifts(norm: nn.Module) -> bool:
    """Whether a normalisation has a scale and a shift."""
    return all(getattr(norm, name, None) is not None for name in ("weight", "bias", "running_var", "eps"))


@torch.no_grad()
def _sources(layer: nn.Module, entry: LayerChannels, shape: tuple[int, ...], device: torch.device) -> Ids | None:
    """Id of the channel that each output copies; None if the layer does more than copy and drop channels."""
    if any(True for _ in layer.parameters()) or spec_of(layer).role != "other":
        return None
    dim = spec_of(layer).channel_dim % len(shape)
    view = [-1 if d == dim else 1 for d in range(len(shape))]
    numbers = torch.arange(1.0, shape[dim] + 1, device=device)
    copies = []
    for values in (numbers, numbers.sqrt()):
        try:  # layer.forward, so that no hook of the user runs
            result = layer.forward(values.view(view).expand(min(2, shape[0]), *shape[1:]).contiguous())
        except Exception:  # it takes other arguments: its copies are unknown
            return None
        result = result.movedim(dim, 0).flatten(1)
        if len(result) != len(entry.outputs) or not bool((result == result[:, :1]).all()):
            return None
        copies.append(result[:, 0])
    number = copies[0].round().clamp(0, len(numbers)).long()  # of the copied channel, from 1; 0: none
    if not torch.equal(copies[1], number.float().sqrt()):
        return None
    return np.where(number.cpu() > 0, entry.inputs[(number - 1).clamp_min(0).cpu().numpy()], -1)


class Crossing:
    """Running sums of a host's features times what the shortcut adds to its outputs.

    Args:
        network: The dense network.
        meeting: Host and shortcut.
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
        """Hook that adds the shortcut's next result, at the positions that :meth:`read` sets before or after it."""

        def hook(layer: nn.Module, args: Any, output: Tensor) -> None:
            self._there = positions(output, spec_of(self._layer))
            self._meet()

        return self._network.get_submodule(self._meeting.shortcut).register_forward_hook(hook)

    def read(self, source: Tensor, picks: Tensor) -> None:
        """Set what the host reads, and the output positions to sample."""
        self._read = source, picks, source._version
        self._meet()

    def _meet(self) -> None:
        if self._read is None or self._there is None:
            return
        (source, picks, version), brought = self._read, self._there
        self._read = self._there = None
        if source._version != version:  # written to since
            return
        for some, patches in pieces(self._layer, source, picks):
            rows = to_features(patches, len(self._matrix), "full")
            added = brought[some].view(len(some), *self._brought.shape).transpose(0, 1)
            self._brought += added.sum(dim=1)
            self._squares += added.square().sum(dim=1)
            self._products += rows.transpose(1, 2) @ added
            self._rows += len(some)

    def moments(self, gram: LayerGram) -> Shortcut | None:
        """The collected moments; None if the host's input was written to before the shortcut ran.

        Args:
            gram: Moments of the host.
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
        explained = (change * (cross + added * change)).sum(dim=1)
        growth = 2 * (self._matrix * cross).sum(dim=1) + explained
        unmade = (variance - slope.square() * explained).clamp_min(0)
        return Shortcut(self._meeting.sources, level, cross.unsqueeze(3), growth, unmade, slope)
