"""Statistics from gates between a filter and the next layers: closed one by one, or trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from deap_prune.criteria.passes.context import (
    Calibration,
    StatisticsTable,
    add_statistic,
    channel_maps,
    floats,
    gathers,
    positions_of,
)
from deap_prune.progress import track
from deap_prune.structure.inputs import Call, in_order
from deap_prune.structure.layers import spec_of

CLOSING_IMAGES = 256  # images on which filters are closed one by one
BATCH_SIZE = 64  # images per training step of the gates
EPOCHS = 5  # epochs of training the gates
LEARNING_RATE = 0.02  # of Adam
GATE_PENALTY = 0.1  # weight of the mean gate in the training loss

InputChange = Callable[[nn.Module, Tensor], Tensor]
"""Function of a layer and its input to a changed input."""


@gathers("loss_rise", "divergence")
@torch.no_grad()
def close_filters(calibration: Calibration, needs: frozenset[str]) -> StatisticsTable:
    """Rise of the loss and KL divergence with each filter's channel set to zero: one forward pass per filter."""
    batches = calibration.first_batches(CLOSING_IMAGES, CLOSING_IMAGES)
    runs = [(batch, *calibration.run(batch)) for batch in batches]
    dense = [(batch, floats(outputs), targets) for batch, outputs, targets in runs]
    dense_errors = [float(calibration.error(outputs, targets, floats(outputs))) for _, outputs, targets in runs]
    filters = [(group, i) for group in calibration.space.groups for i in range(group.size)]
    rows: dict[str, list[tuple[float, float]]] = {}
    for group, i in track(filters, "closing filters one by one", shown=calibration.progress):
        closed = {m.layer: partial(_close, positions=m.positions[i]) for m in group.layers("reader")}
        rise = divergence = 0.0
        with changed_inputs(calibration.network, closed):
            for (batch, before, targets), dense_error in zip(dense, dense_errors, strict=True):
                outputs, _ = calibration.run(batch)
                share = len(before[0]) / sum(len(b[0]) for _, b, _ in dense)
                rise += share * (float(calibration.error(outputs, targets, before)) - dense_error)
                divergence += share * sum(_divergence(a, b) for a, b in zip(before, floats(outputs), strict=True))
        rows.setdefault(group.name, []).append((rise, divergence))
    table: StatisticsTable = {}
    for group in calibration.space.groups:
        columns = torch.tensor(rows[group.name], dtype=torch.float64)
        for column, need in enumerate(("loss_rise", "divergence")):
            if need in needs:
                add_statistic(table, group, need, columns[:, column])
    return table


@gathers("attention")
def train_gates(calibration: Calibration, needs: frozenset[str]) -> StatisticsTable:
    """Squeeze-and-excitation blocks before the next layers, trained for a few epochs on the frozen network.

    A block averages the layer's input over positions, and computes one gate in (0, 1) per filter with two linear
    layers. A penalty on the mean gate closes gates where the loss allows it. The statistic is the mean gate over the
    images.
    """
    generator = torch.Generator().manual_seed(calibration.seed)
    like = next(p for p in calibration.network.parameters() if p.is_floating_point())
    blocks: dict[tuple[str, int], _GateBlock] = {}
    blocks_of_layer: dict[str, list[InputChange]] = {}
    for group in calibration.space.groups:
        for k, member in enumerate(group.layers("reader")):
            block = _GateBlock(positions_of(member, like), like, generator)
            blocks[group.name, k] = block
            blocks_of_layer.setdefault(member.layer, []).append(block)
    weights = [p for block in blocks.values() for p in block.parameters()]
    optimiser = torch.optim.Adam(weights, lr=LEARNING_RATE)
    batches = calibration.first_batches(calibration.samples, BATCH_SIZE)
    with torch.no_grad():
        dense = [floats(calibration.run(batch)[0]) for batch in batches]
    gated = {layer: partial(_chain, changes=changes) for layer, changes in blocks_of_layer.items()}
    with changed_inputs(calibration.network, gated):
        for epoch in track(range(EPOCHS), "training gates", shown=calibration.progress):
            for batch, before in zip(batches, dense, strict=True):
                outputs, targets = calibration.run(batch)
                active = [block for block in blocks.values() if len(block.gates)]
                mean_gate = torch.stack([block.gates.mean() for block in active]).mean()
                optimiser.zero_grad()
                loss = calibration.error(outputs, targets, before) + GATE_PENALTY * mean_gate
                loss.backward(inputs=weights)  # the network stays frozen
                optimiser.step()
                if epoch == EPOCHS - 1:
                    for block in active:
                        block.final_gates.append(block.gates.detach())
    table: StatisticsTable = {}
    for group in calibration.space.groups:
        for k, member in enumerate(group.layers("reader")):
            final_gates = blocks[group.name, k].final_gates
            if final_gates:
                add_statistic(table, group, "attention", torch.cat(final_gates).mean(dim=0), member)
    return table


class _GateBlock(nn.Module):
    """A squeeze-and-excitation block that gates the filters in a layer's input.

    Args:
        positions: Channels of each filter, shape (filters, uses).
        like: A tensor of the network, for dtype and device.
        generator: Draws the initial weights.
    """

    def __init__(self, positions: Tensor, like: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        filters = len(positions)
        hidden = max(2, filters // 4)
        self.positions = positions
        self.squeeze = skip_init(nn.Linear, filters, hidden)  # does not draw from torch's global generator
        self.excite = skip_init(nn.Linear, hidden, filters)
        for p in self.parameters():
            drawn = torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5
            p.data = drawn.to(like) if p.dim() > 1 else torch.zeros_like(p.data).to(like)
        self.excite.bias.data += 2  # gates are almost open at first
        self.gates = torch.empty(0)  # of the last batch, shape (images, filters)
        self.final_gates: list[Tensor] = []  # of each batch of the last epoch, shape (images, filters)

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        maps = channel_maps(layer, x)
        pooled = maps.mean(dim=2)[:, self.positions].mean(dim=2)
        self.gates = torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))))
        factors = torch.ones_like(maps[:, :, 0])
        uses = self.gates.repeat_interleave(self.positions.shape[1], dim=1)
        return x * _broadcast_channels(layer, x, factors.index_copy(1, self.positions.flatten(), uses))


@contextmanager
def changed_inputs(network: nn.Module, changes: Mapping[str, InputChange]) -> Iterator[None]:
    """Change the inputs of layers inside the context.

    Args:
        network: The network that contains the layers.
        changes: Layer name to a function of (layer, input) to the changed input.
    """

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, change: InputChange) -> Call:
        (x, *more_inputs), keywords = in_order(layer, args, kwargs)
        return (change(layer, x), *more_inputs), keywords

    handles = [
        network.get_submodule(name).register_forward_pre_hook(partial(hook, change=change), with_kwargs=True)
        for name, change in changes.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _chain(layer: nn.Module, x: Tensor, *, changes: list[InputChange]) -> Tensor:
    """Apply several changes to an input, one after the other."""
    for change in changes:
        x = change(layer, x)
    return x


def _close(layer: nn.Module, x: Tensor, *, positions: Any) -> Tensor:
    """The input with the channels at ``positions`` set to zero."""
    gate = torch.ones_like(channel_maps(layer, x)[:1, :, 0])
    gate[:, positions] = 0
    return x * _broadcast_channels(layer, x, gate)


def _broadcast_channels(layer: nn.Module, x: Tensor, values: Tensor) -> Tensor:
    """Values of shape (images, channels) in a shape that broadcasts to a layer's input."""
    shape = [len(values)] + [1] * (x.dim() - 1)
    shape[spec_of(layer).channel_dim] = values.shape[1]
    return values.view(shape)


def _divergence(before: Tensor, after: Tensor) -> float:
    """KL(p before || p after) in nats, softmax over dimension 1, mean over the images (and positions)."""
    if before.dim() < 2:
        return 0.0
    p, q = before.double().log_softmax(dim=1), after.double().log_softmax(dim=1)
    return float((p.exp() * (p - q)).sum(dim=1).mean())
