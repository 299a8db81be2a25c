"""Statistics of the outputs of layers with filters, gathered by hooks in the forward and the backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from deap_prune.criteria.passes.context import (
    Calibration,
    StatisticsTable,
    add_statistic,
    by_image,
    channel_dot,
    channel_maps,
    positions_of,
    without_hooks,
)
from deap_prune.criteria.passes.weights import filter_rows
from deap_prune.structure.inputs import in_order

CHUNK = 2**25  # largest number of values of per-image gradients in memory at once

BackwardCall = tuple[tuple[Any, ...], dict[str, Any], Tensor]
"""Positional and keyword arguments of a layer's call, and the gradient of its output."""

OUTPUT_STATISTICS = frozenset({"gradient_square", "output_square", "output_gradient_square"})


class LayerOutputs:
    """The output of every layer with filters, its gradient, and squared weight gradients of single images.

    Args:
        calibration: Network and data.
        needs: Names of the statistics to gather.
    """

    def __init__(self, calibration: Calibration, needs: frozenset[str]) -> None:
        self.calibration, self.needs, self.samples = calibration, needs, 0
        self._sums: dict[tuple[str, str], Tensor] = {}  # (layer, statistic) -> (channels,), or the weight's shape
        self._counts: Counter[tuple[str, str]] = Counter()
        self._pending: Counter[str] = Counter()  # layer -> calls whose gradient has not arrived yet
        self._calls: dict[str, list[BackwardCall]] = {}
        self._handles: list[RemovableHandle] = []
        for name in sorted({m.layer for group in calibration.space.groups for m in group.layers("filter")}):
            layer = calibration.network.get_submodule(name)
            hook = self._hook(name, without_hooks(layer))
            self._handles.append(layer.register_forward_hook(hook, with_kwargs=True))

    def _hook(self, name: str, clean: nn.Module) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if "output_square" in self.needs:
                maps, bias = channel_maps(layer, output.detach()), getattr(layer, "bias", None)
                maps = maps if bias is None else maps - bias.detach().view(1, -1, 1)
                self._add(name, "output_square", channel_dot(maps, maps).sum(dim=0), len(maps) * maps.shape[2])
            if not output.requires_grad:
                return
            samples = self.samples
            call = tree_map(lambda a: a.detach() if isinstance(a, Tensor) else a, in_order(layer, args, kwargs))

            def add_gradient(gradient: Tensor) -> None:
                if "output_gradient_square" in self.needs:
                    maps = channel_maps(layer, gradient) * samples
                    self._add(name, "output_gradient_square", channel_dot(maps, maps).sum(dim=0), len(maps))
                if "gradient_square" in self.needs:
                    self._pending[name] -= 1
                    self._calls.setdefault(name, []).append((*call, gradient))
                    if not self._pending[name]:  # the gradient of a layer that runs twice is the sum over its calls
                        square = _gradient_square(clean, self._calls.pop(name), samples)
                        self._add(name, "gradient_square", square * samples**2, samples)

            self._pending[name] += 1
            output.register_hook(add_gradient)

        return hook

    def _add(self, name: str, statistic: str, value: Tensor, count: int) -> None:
        self._sums[name, statistic] = self._sums.get((name, statistic), 0) + value
        self._counts[name, statistic] += count

    def begin_batch(self, samples: int) -> None:
        """Prepare for a batch of ``samples`` images."""
        self.samples = samples

    def end_batch(self) -> None:
        """Drop calls that received no gradient."""
        self._pending.clear()
        self._calls.clear()

    def statistics(self) -> StatisticsTable:
        """The statistics of all batches."""
        table: StatisticsTable = {}
        network = self.calibration.network
        for group in self.calibration.space.groups:
            for member in group.layers("filter"):
                for need in sorted(OUTPUT_STATISTICS & self.needs):
                    key = (member.layer, need)
                    if key not in self._sums:
                        continue
                    mean = self._sums[key] / self._counts[key]
                    if need == "gradient_square":
                        rows = filter_rows(network, member, "weight", mean)
                    else:
                        rows = mean[positions_of(member, mean)].mean(dim=1)
                    if rows is not None:
                        add_statistic(table, group, need, rows, member)
        return table

    def remove_hooks(self) -> None:
        """Remove the hooks from the layers."""
        for handle in self._handles:
            handle.remove()


def _gradient_square(layer: nn.Module, calls: list[BackwardCall], samples: int) -> Tensor:
    """Sum over images of the squared weight gradient of each image, in the weight's shape.

    Args:
        layer: A layer without hooks.
        calls: The calls of the layer in one forward pass.
        samples: Number of images in the batch.
    """
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]

    def of_image(args: tuple[Any, ...], kwargs: dict[str, Any], gradient: Tensor) -> Tensor:
        pull = vjp(lambda w: functional_call(layer, {"weight": w}, args, kwargs), weight)[1]
        return pull(gradient)[0]

    # Arguments with one row per image are mapped over. Others, such as points that all images share, are passed on.
    folded, dims = [], []
    for call in calls:
        count = len(call[0][0])
        dim = tree_map(lambda v: 0 if isinstance(v, Tensor) and v.dim() and len(v) == count else None, call)  # noqa: B023
        folded.append(tree_map(lambda v, d: v if d is None else by_image(v, samples), call, dim))
        dims.append(dim)
    step = max(1, CHUNK // weight.numel())
    total = torch.zeros_like(weight)
    for start in range(0, len(folded[0][0][0]), step):
        gradients = []
        for call, dim in zip(folded, dims, strict=True):
            part = tree_map(lambda v, d: v if d is None else v[start : start + step], call, dim)  # noqa: B023
            gradients.append(vmap(of_image, in_dims=dim)(*part))
        total += torch.stack(gradients).sum(dim=0).square().sum(dim=0)
    return total
