"""What the next layers read of a filter, gathered by hooks while the network runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.criteria.passes.context import Calibration, Found, add, by_image, channel_dot, channel_maps, index_of
from deap_prune.structure.inputs import Call, in_order

ROWS = 4096  # images that tables with a row an image keep

MEANS = frozenset({"activation_mean", "activation_rate"})
CHANGES = frozenset({"activation_taylor", "group_taylor"})
READ = MEANS | CHANGES | {"activation_pooled"}


class Reads:
    """What every next layer reads, channel by channel."""

    def __init__(self, calibration: Calibration, needs: frozenset[str]) -> None:
        self.space, self.needs, self.samples = calibration.space, needs, 0
        self.sums: dict[str, Tensor] = {}  # (4, channels): |x|, not zero, below zero, positions seen
        self.pooled: dict[str, list[Tensor]] = {}
        self.changes: dict[str, list[Tensor]] = {}
        self._change: dict[str, Tensor] = {}
        names = sorted({m.layer for group in self.space.groups for m in group.layers("reader")})
        layers = {name: calibration.network.get_submodule(name) for name in names}
        self.handles = [layer.register_forward_pre_hook(self._hook(n), with_kwargs=True) for n, layer in layers.items()]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Call | None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
            (x, *others), named = in_order(layer, args, kwargs)
            maps = channel_maps(layer, x.detach())
            if self.needs & MEANS:
                self.sums[name] = self.sums.get(name, 0) + _moments(maps)
            if "activation_pooled" in self.needs and _rows(self.pooled.get(name)) < ROWS:
                self.pooled.setdefault(name, []).append(by_image(maps.mean(dim=2), self.samples).mean(dim=1))
            if not (self.needs & CHANGES and x.requires_grad):
                return None
            own = x.view_as(x)  # the gradient of this reading alone, whoever else reads the tensor

            def note(gradient: Tensor) -> None:
                # The loss is a mean over the batch: times its size, the gradient is each image's own.
                change = by_image(channel_dot(maps, channel_maps(layer, gradient)), self.samples).sum(dim=1)
                self._change[name] = self._change.get(name, 0) + change * self.samples

            own.register_hook(note)
            return (own, *others), named

        return hook

    def begin(self, samples: int) -> None:
        """A batch of so many images begins."""
        self.samples = samples

    def end(self) -> None:
        """The batch is through, backward too."""
        for name, change in self._change.items():
            if _rows(self.changes.get(name)) < ROWS:
                self.changes.setdefault(name, []).append(change)
        self._change.clear()

    def found(self) -> Found:
        """The statistics, group by group."""
        found: Found = {}
        for group in self.space.groups:
            changes = []
            for member in group.layers("reader"):
                if member.layer in self.sums:
                    sums = self.sums[member.layer]
                    means = (sums[:, index_of(member, sums)] / sums[3].max()).mean(dim=2)
                    add(found, group, "activation_mean", means[0], member)
                    if not float(means[2].sum()) and float(means[1].min()) < 1:  # zeros, none below: a ReLU was there
                        add(found, group, "activation_rate", means[1], member)
                if member.layer in self.pooled:
                    pooled = torch.cat(self.pooled[member.layer])[:ROWS]
                    add(found, group, "activation_pooled", pooled[:, index_of(member, pooled)].mean(dim=2), member)
                if member.layer in self.changes:
                    change = torch.cat(self.changes[member.layer])[:ROWS]
                    changes.append(change[:, index_of(member, change)].sum(dim=2))
                    add(found, group, "activation_taylor", changes[-1], member)
            if len({len(change) for change in changes}) == 1:
                add(found, group, "group_taylor", torch.stack(changes).sum(dim=0))
        return found

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


def _moments(maps: Tensor) -> Tensor:
    """Over images and positions, for each channel: sum of |x|, number above and below zero, number of all."""
    count = torch.full_like(maps[0, :, 0], maps.shape[0] * maps.shape[2], dtype=torch.float64)
    below = (maps.amin(dim=2) < 0).sum(dim=0)
    sums = (torch.linalg.vector_norm(maps, order, dim=2).sum(dim=0, dtype=torch.float64) for order in (1, 0))
    return torch.stack([*sums, below.double(), count])


def _rows(tables: list[Tensor] | None) -> int:
    return sum(map(len, tables or ()))
