"""Passes that close or learn gates between a filter and the layers that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from deap_prune.criteria.passes.context import Calibration, Found, add, channel_maps, floats, gathers, index_of
from deap_prune.progress import track
from deap_prune.structure.inputs import Call, in_order
from deap_prune.structure.layers import spec_of

IMAGES = 256  # on which filters are closed one by one
SIZE = 64  # images a step of training the gates
EPOCHS = 5
RATE = 0.02  # of Adam
PRICE = 0.1  # of an open gate, beside the loss

Change = Callable[[nn.Module, Tensor], Tensor]


@gathers("loss_rise", "divergence")
@torch.no_grad()
def one_by_one(calibration: Calibration, needs: frozenset[str]) -> Found:
    """Every filter of every group closed in turn: the next layers read zero. One forward pass a filter."""
    batches = calibration.first(IMAGES, IMAGES)
    runs = [(batch, *calibration.run(batch)) for batch in batches]
    dense = [(batch, floats(outputs), targets) for batch, outputs, targets in runs]
    base = [float(calibration.error(outputs, targets, floats(outputs))) for _, outputs, targets in runs]
    every = [(group, i) for group in calibration.space.groups for i in range(group.size)]
    rows: dict[str, list[tuple[float, float]]] = {}
    for group, i in track(every, "closing filters one by one", shown=calibration.progress):
        closed = {m.layer: partial(_close, positions=m.positions[i]) for m in group.layers("reader")}
        rise = divergence = 0.0
        with reading(calibration.network, closed):
            for (batch, before, targets), loss in zip(dense, base, strict=True):
                outputs, _ = calibration.run(batch)
                share = len(before[0]) / sum(len(b[0]) for _, b, _ in dense)
                rise += share * (float(calibration.error(outputs, targets, before)) - loss)
                divergence += share * sum(_divergence(a, b) for a, b in zip(before, floats(outputs), strict=True))
        rows.setdefault(group.name, []).append((rise, divergence))
    found: Found = {}
    for group in calibration.space.groups:
        table = torch.tensor(rows[group.name], dtype=torch.float64)
        for column, need in enumerate(("loss_rise", "divergence")):
            if need in needs:
                add(found, group, need, table[:, column])
    return found


@gathers("attention")
def attention(calibration: Calibration, needs: frozenset[str]) -> Found:
    """Squeeze-and-excitation blocks before the next layers, trained a few epochs on the frozen network.

    A block pools what the layer reads over positions, and gives one gate in (0, 1) a filter through two linear layers;
    an open gate has a price, so that gates close where the loss allows it. The score is the mean gate over the images.
    """
    generator = torch.Generator().manual_seed(calibration.seed)
    like = next(p for p in calibration.network.parameters() if p.is_floating_point())
    blocks: dict[tuple[str, int], _Block] = {}
    changes: dict[str, list[Change]] = {}
    for group in calibration.space.groups:
        for k, member in enumerate(group.layers("reader")):
            block = _Block(index_of(member, like), like, generator)
            blocks[group.name, k] = block
            changes.setdefault(member.layer, []).append(block)
    weights = [p for block in blocks.values() for p in block.parameters()]
    optimiser = torch.optim.Adam(weights, lr=RATE)
    batches = calibration.first(calibration.samples, SIZE)
    with torch.no_grad():
        dense = [floats(calibration.run(batch)[0]) for batch in batches]
    chained = {layer: partial(_chain, changes=found) for layer, found in changes.items()}
    with reading(calibration.network, chained):
        for epoch in track(range(EPOCHS), "training gates", shown=calibration.progress):
            for batch, before in zip(batches, dense, strict=True):
                outputs, targets = calibration.run(batch)
                ran = [block for block in blocks.values() if len(block.gates)]
                open_gates = torch.stack([block.gates.mean() for block in ran]).mean()
                optimiser.zero_grad()
                loss = calibration.error(outputs, targets, before) + PRICE * open_gates
                loss.backward(inputs=weights)  # the network stays frozen
                optimiser.step()
                if epoch == EPOCHS - 1:
                    for block in ran:
                        block.seen.append(block.gates.detach())
    found: Found = {}
    for group in calibration.space.groups:
        for k, member in enumerate(group.layers("reader")):
            if blocks[group.name, k].seen:
                add(found, group, "attention", torch.cat(blocks[group.name, k].seen).mean(dim=0), member)
    return found


class _Block(nn.Module):
    """Gates of the filters that a layer reads at ``positions``, shape (filters, uses)."""

    def __init__(self, positions: Tensor, like: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        filters = len(positions)
        hidden = max(2, filters // 4)
        self.positions = positions
        self.squeeze = skip_init(nn.Linear, filters, hidden)  # torch's own generator stays as it is
        self.excite = skip_init(nn.Linear, hidden, filters)
        for p in self.parameters():
            drawn = torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5
            p.data = drawn.to(like) if p.dim() > 1 else torch.zeros_like(p.data).to(like)
        self.excite.bias.data += 2  # almost open at first
        self.gates = torch.empty(0)
        self.seen: list[Tensor] = []

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        maps = channel_maps(layer, x)
        pooled = maps.mean(dim=2)[:, self.positions].mean(dim=2)
        self.gates = torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))))
        every = torch.ones_like(maps[:, :, 0])
        uses = self.gates.repeat_interleave(self.positions.shape[1], dim=1)
        return x * _channels_of(layer, x, every.index_copy(1, self.positions.flatten(), uses))


@contextmanager
def reading(network: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Layers read something else, as long as the context lasts: name of the layer to a function of (layer, input)."""

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, change: Change) -> Call:
        (x, *others), named = in_order(layer, args, kwargs)
        return (change(layer, x), *others), named

    handles = [
        network.get_submodule(name).register_forward_pre_hook(partial(hook, change=change), with_kwargs=True)
        for name, change in changes.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _chain(layer: nn.Module, x: Tensor, *, changes: list[Change]) -> Tensor:
    for change in changes:
        x = change(layer, x)
    return x


def _close(layer: nn.Module, x: Tensor, *, positions: Any) -> Tensor:
    gate = torch.ones_like(channel_maps(layer, x)[:1, :, 0])
    gate[:, positions] = 0
    return x * _channels_of(layer, x, gate)


def _channels_of(layer: nn.Module, x: Tensor, values: Tensor) -> Tensor:
    """(images, channels) in the shape that multiplies what the layer reads."""
    shape = [len(values)] + [1] * (x.dim() - 1)
    shape[spec_of(layer).channel_dim] = values.shape[1]
    return values.view(shape)


def _divergence(before: Tensor, after: Tensor) -> float:
    """KL(p before || p after), softmax over dimension 1, mean over the images (and positions)."""
    if before.dim() < 2:
        return 0.0
    p, q = before.double().log_softmax(dim=1), after.double().log_softmax(dim=1)
    return float((p.exp() * (p - q)).sum(dim=1).mean())
