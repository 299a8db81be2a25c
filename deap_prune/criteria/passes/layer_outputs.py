"""What the layers with filters make, gathered by hooks while the network runs forward and backward."""

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
    Found,
    add,
    by_image,
    channel_dot,
    channel_maps,
    index_of,
    unhooked,
)
from deap_prune.criteria.passes.weights import filter_rows
from deap_prune.structure.inputs import in_order

CHUNK = 2**25  # numbers that per-image gradients may take at once

Made = tuple[tuple[Any, ...], dict[str, Any], Tensor]
"""Arguments of a layer's call, by place and by name, and the gradient of its output."""

MADE = frozenset({"gradient_square", "output_square", "output_gradient_square"})


class Makes:
    """What every layer with filters makes: outputs, their gradients, and one image's weight gradients squared."""

    def __init__(self, calibration: Calibration, needs: frozenset[str]) -> None:
        self.calibration, self.needs, self.samples = calibration, needs, 0
        self.sums: dict[tuple[str, str], Tensor] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self._open: Counter[str] = Counter()  # calls whose gradient is still to come
        self._calls: dict[str, list[Made]] = {}
        self.handles: list[RemovableHandle] = []
        for name in sorted({m.layer for group in calibration.space.groups for m in group.layers("filter")}):
            layer = calibration.network.get_submodule(name)
            self.handles.append(layer.register_forward_hook(self._hook(name, unhooked(layer)), with_kwargs=True))

    def _hook(self, name: str, clean: nn.Module) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if "output_square" in self.needs:
                maps, bias = channel_maps(layer, output.detach()), getattr(layer, "bias", None)
                maps = maps if bias is None else maps - bias.detach().view(1, -1, 1)
                self._add(name, "output_square", channel_dot(maps, maps).sum(dim=0), len(maps) * maps.shape[2])
            if not output.requires_grad:
                return
            call, samples = in_order(layer, args, kwargs), self.samples
            read = tree_map(lambda a: a.detach() if isinstance(a, Tensor) else a, call)

            def note(gradient: Tensor) -> None:
                if "output_gradient_square" in self.needs:
                    maps = channel_maps(layer, gradient) * samples
                    self._add(name, "output_gradient_square", channel_dot(maps, maps).sum(dim=0), len(maps))
                if "gradient_square" in self.needs:
                    self._open[name] -= 1
                    self._calls.setdefault(name, []).append((*read, gradient))
                    if not self._open[name]:  # a layer that runs twice has one gradient, the sum
                        square = _gradient_square(clean, self._calls.pop(name), samples)
                        self._add(name, "gradient_square", square * samples**2, samples)

            self._open[name] += 1
            output.register_hook(note)

        return hook

    def _add(self, name: str, need: str, value: Tensor, count: int) -> None:
        self.sums[name, need] = self.sums.get((name, need), 0) + value
        self.counts[name, need] += count

    def begin(self, samples: int) -> None:
        """A batch of so many images begins."""
        self.samples = samples

    def end(self) -> None:
        """The batch is through, backward too."""
        self._open.clear()
        self._calls.clear()

    def found(self) -> Found:
        """The statistics, group by group."""
        found: Found = {}
        network = self.calibration.network
        for group in self.calibration.space.groups:
            for member in group.layers("filter"):
                for need in sorted(MADE & self.needs):
                    key = (member.layer, need)
                    if key not in self.sums:
                        continue
                    mean = self.sums[key] / self.counts[key]
                    if need == "gradient_square":
                        rows = filter_rows(network, member, "weight", mean)
                    else:
                        rows = mean[index_of(member, mean)].mean(dim=1)
                    if rows is not None:
                        add(found, group, need, rows, member)
        return found

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


def _gradient_square(layer: nn.Module, calls: list[Made], samples: int) -> Tensor:
    """Sum over the images of the square of each image's weight gradient, a few images at once.

    Args:
        layer: Without hooks.
        calls: Call by call.
        samples: Images in the batch.
    """
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]

    def of_image(args: tuple[Any, ...], kwargs: dict[str, Any], gradient: Tensor) -> Tensor:
        pull = vjp(lambda w: functional_call(layer, {"weight": w}, args, kwargs), weight)[1]
        return pull(gradient)[0]

    # What has a row an image is mapped over; another argument (points that all images share, say) is passed on.
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
            few = tree_map(lambda v, d: v if d is None else v[start : start + step], call, dim)  # noqa: B023
            gradients.append(vmap(of_image, in_dims=dim)(*few))
        total += torch.stack(gradients).sum(dim=0).square().sum(dim=0)
    return total
