"""Statistics of the next layers' inputs, gathered by hooks while the network runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.criteria.passes.context import (
    Calibration,
    StatisticsTable,
    add_statistic,
    by_image,
    channel_dot,
    channel_maps,
    positions_of,
)
from deap_prune.structure.inputs import Call, in_order

ROWS = 4096  # images after which tables with one row per image stop growing

MEAN_STATISTICS = frozenset({"activation_mean", "activation_rate"})
TAYLOR_STATISTICS = frozenset({"activation_taylor", "group_taylor"})
INPUT_STATISTICS = MEAN_STATISTICS | TAYLOR_STATISTICS | {"activation_pooled"}


class LayerInputs:
    """The input of every next layer, channel by channel.

    Args:
        calibration: Network and data.
        needs: Names of the statistics to gather.
    """

    def __init__(self, calibration: Calibration, needs: frozenset[str]) -> None:
        self.space, self.needs, self.samples = calibration.space, needs, 0
        self._sums: dict[str, Tensor] = {}  # layer -> (4, channels), see _channel_sums
        self._pooled: dict[str, list[Tensor]] = {}  # layer -> (images, channels) per batch
        self._taylor: dict[str, list[Tensor]] = {}  # layer -> (images, channels) per batch
        self._batch_taylor: dict[str, Tensor] = {}  # layer -> (images, channels) of the current batch
        names = sorted({m.layer for group in self.space.groups for m in group.layers("reader")})
        layers = {name: calibration.network.get_submodule(name) for name in names}
        self._handles = [
            layer.register_forward_pre_hook(self._hook(n), with_kwargs=True) for n, layer in layers.items()
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Call | None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
            (x, *more_inputs), keywords = in_order(layer, args, kwargs)
            maps = channel_maps(layer, x.detach())
            if self.needs & MEAN_STATISTICS:
                self._sums[name] = self._sums.get(name, 0) + _channel_sums(maps)
            if "activation_pooled" in self.needs and _rows(self._pooled.get(name)) < ROWS:
                self._pooled.setdefault(name, []).append(by_image(maps.mean(dim=2), self.samples).mean(dim=1))
            if not (self.needs & TAYLOR_STATISTICS and x.requires_grad):
                return None
            view = x.view_as(x)  # its gradient comes from this layer alone, even if other layers read x

            def add_taylor(gradient: Tensor) -> None:
                # The loss is a mean over the batch. Times the batch size, the gradient is that of each image's loss.
                change = by_image(channel_dot(maps, channel_maps(layer, gradient)), self.samples).sum(dim=1)
                self._batch_taylor[name] = self._batch_taylor.get(name, 0) + change * self.samples

            view.register_hook(add_taylor)
            return (view, *more_inputs), keywords

        return hook

    def begin_batch(self, samples: int) -> None:
        """Prepare for a batch of ``samples`` images."""
        self.samples = samples

    def end_batch(self) -> None:
        """Store the batch's products of activations and gradients, after the backward pass."""
        for name, change in self._batch_taylor.items():
            if _rows(self._taylor.get(name)) < ROWS:
                self._taylor.setdefault(name, []).append(change)
        self._batch_taylor.clear()

    def statistics(self) -> StatisticsTable:
        """The statistics of all batches."""
        table: StatisticsTable = {}
        for group in self.space.groups:
            changes = []
            for member in group.layers("reader"):
                if member.layer in self._sums:
                    sums = self._sums[member.layer]
                    means = (sums[:, positions_of(member, sums)] / sums[3].max()).mean(dim=2)
                    add_statistic(table, group, "activation_mean", means[0], member)
                    if not float(means[2].sum()) and float(means[1].min()) < 1:  # zeros, but none below: after a ReLU
                        add_statistic(table, group, "activation_rate", means[1], member)
                if member.layer in self._pooled:
                    pooled = torch.cat(self._pooled[member.layer])[:ROWS]
                    pooled = pooled[:, positions_of(member, pooled)].mean(dim=2)
                    add_statistic(table, group, "activation_pooled", pooled, member)
                if member.layer in self._taylor:
                    change = torch.cat(self._taylor[member.layer])[:ROWS]
                    changes.append(change[:, positions_of(member, change)].sum(dim=2))
                    add_statistic(table, group, "activation_taylor", changes[-1], member)
            if len({len(change) for change in changes}) == 1:
                add_statistic(table, group, "group_taylor", torch.stack(changes).sum(dim=0))
        return table

    def remove_hooks(self) -> None:
        """Remove the hooks from the layers."""
        for handle in self._handles:
            handle.remove()


def _channel_sums(maps: Tensor) -> Tensor:
    """Sums of each channel, shape (4, channels).

    The rows are the sum of |x|, the number of values other than zero, the number of images with a value below zero, and
    the number of values.

    Args:
        maps: Shape (images, channels, positions).
    """
    count = torch.full_like(maps[0, :, 0], maps.shape[0] * maps.shape[2], dtype=torch.float64)
    below = (maps.amin(dim=2) < 0).sum(dim=0)
    sums = (torch.linalg.vector_norm(maps, order, dim=2).sum(dim=0, dtype=torch.float64) for order in (1, 0))
    return torch.stack([*sums, below.double(), count])


def _rows(tables: list[Tensor] | None) -> int:
    """Number of rows of several tables."""
    return sum(map(len, tables or ()))
