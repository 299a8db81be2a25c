"""One pass over the calibration data gathers what the chosen criteria need, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.batches import Data, Forward, default_forward, first_forward, to_batches
from deap_prune.structure.layers import describe_layer
from deap_prune.structure.slim import unwrap
from deap_prune.structure.space import FilterGroup, Member, PruningSpace

Loss = Callable[[Any, Any], Tensor]
_GRADIENTS = frozenset({"weight_taylor", "gate_taylor"})
_ACTIVATIONS = frozenset({"activation_mean", "activation_rate"})


@dataclass(frozen=True, eq=False)
class Statistics:
    """For each group and statistic: one tensor per layer of the group that has it (see ``STATISTICS``)."""

    values: dict[str, dict[str, list[Tensor]]]

    def of(self, group: FilterGroup, need: str) -> list[Tensor]:
        """The tensors of a statistic, in the order of the group's layers; empty where it does not apply."""
        return self.values[group.name].get(need, [])


def collect(
    model: nn.Module,
    space: PruningSpace,
    calibration: Data | None,
    *,
    needs: Collection[str],
    forward: Forward | None = None,
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    progress: bool = False,
) -> Statistics:
    """Gather statistics of the dense network, in eval mode, on the device where it is.

    Args:
        model: The network that was traced; it comes back unchanged.
        space: Its space.
        calibration: Batches; may be None if the needs are about weights alone.
        needs: Keys of ``STATISTICS``.
        forward: Function of (model, batch) to (outputs, targets).
        loss: Function of (outputs, targets) to a scalar, for gradients.
        seed: Of the noise.
        progress: Show a bar.

    Raises:
        DataError: If the calibration data is missing where it is needed, empty, or its labels outside the classes.
    """
    network = unwrap(model)
    values: dict[str, dict[str, list[Tensor]]] = {group.name: {} for group in space.groups}
    _collect_weights(network, space, needs, seed, values)
    if set(needs) & (_GRADIENTS | _ACTIVATIONS):
        device = next(network.parameters()).device
        batches = to_batches(() if calibration is None else calibration, name="calibration", device=device)
        with preserved(network):
            _pass(network, space, batches, set(needs), forward or default_forward, loss, values, progress)
    return Statistics(values)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients possible; modes, gradients, grad flags and memory formats come back as they were."""
    modes = {module: module.training for module in model.modules()}
    flags = [(p, p.requires_grad, p.grad, p.data) for p in model.parameters()]
    try:
        model.eval()
        for p, _, _, data in flags:
            p.grad = None
            p.requires_grad_(p.is_floating_point())
            p.data = data.contiguous()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for p, flag, grad, data in flags:
            p.requires_grad_(flag)
            p.data = data
            p.grad = grad


def filter_rows(network: nn.Module, member: Member, name: str, tensor: Tensor | None = None) -> Tensor | None:
    """A layer's tensor as (filters of the group, everything else), or None where the layer does not have it."""
    layer = network.get_submodule(member.layer)
    spec = describe_layer(layer)
    value = getattr(layer, name, None) if tensor is None else tensor
    if spec is None or value is None or "out" not in spec.tensors.get(name, ()):
        return None
    rows = value.detach().movedim(spec.tensors[name].index("out"), 0)
    index = torch.as_tensor(member.positions, device=value.device)
    return rows[index].flatten(1)


def _collect_weights(
    network: nn.Module,
    space: PruningSpace,
    needs: Collection[str],
    seed: int,
    values: dict[str, dict[str, list[Tensor]]],
) -> None:
    sources = {"weight": ("filter", "weight"), "scale": ("norm", "weight"), "shift": ("norm", "bias")}
    for number, group in enumerate(space.groups):
        for need in sources.keys() & set(needs):
            role, name = sources[need]
            found = [filter_rows(network, member, name) for member in group.layers(role)]
            values[group.name][need] = [f if need == "weight" else f.mean(dim=1) for f in found if f is not None]
        if "noise" in needs:
            noise = np.random.default_rng([seed, number]).random(group.size)
            values[group.name]["noise"] = [torch.from_numpy(noise)]


def _pass(
    network: nn.Module,
    space: PruningSpace,
    batches: list[Any],
    needs: set[str],
    forward: Forward,
    loss: Loss,
    values: dict[str, dict[str, list[Tensor]]],
    progress: bool,
) -> None:
    """The pass itself: activations through hooks, gradients batch by batch."""
    from deap_prune.progress import track

    readers = _Readers(network, space) if needs & _ACTIVATIONS else None
    taylor: dict[tuple[str, str, int], list[Tensor]] = {}
    try:
        for batch in track(batches, "collecting statistics", shown=progress):
            # torch 2.15's oneDNN corrupts memory in some channels-last weight gradients (strided 1x1, odd widths).
            batch = tree_map(lambda x: x.contiguous() if isinstance(x, Tensor) else x, batch)
            with torch.set_grad_enabled(bool(needs & _GRADIENTS)):
                outputs, targets = first_forward(forward, network, batch, name="calibration")
                if needs & _GRADIENTS:
                    loss(outputs, targets).backward()
            for group in space.groups:
                for need, role, names in (
                    ("weight_taylor", "filter", ("weight",)),
                    ("gate_taylor", "norm", ("weight", "bias")),
                ):
                    if need in needs:
                        for k, member in enumerate(group.layers(role)):
                            change = _first_order(network, member, names)
                            if change is not None:
                                taylor.setdefault((group.name, need, k), []).append(change)
            network.zero_grad(set_to_none=True)
    finally:
        if readers is not None:
            readers.remove()
    for (name, need, _), changes in taylor.items():
        values[name].setdefault(need, []).append(torch.stack(changes))
    if readers is not None:
        for group in space.groups:
            values[group.name].update(readers.of(group))


def _first_order(network: nn.Module, member: Member, names: tuple[str, ...]) -> Tensor | None:
    """Sum over each filter of value x gradient, shape (filters,); None where the layer has no such parameters."""
    layer = network.get_submodule(member.layer)
    total: Tensor | None = None
    for name in names:
        value = getattr(layer, name, None)
        if isinstance(value, nn.Parameter) and value.grad is not None:
            rows = filter_rows(network, member, name, value.detach() * value.grad)
            if rows is not None:
                total = rows.sum(dim=1) if total is None else total + rows.sum(dim=1)
    return total


class _Readers:
    """Moments of what each reading layer reads, channel by channel, summed on the device."""

    def __init__(self, network: nn.Module, space: PruningSpace) -> None:
        names = {m.layer for group in space.groups for m in group.layers("reader")}
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.handles = [network.get_submodule(n).register_forward_pre_hook(self._hook(n)) for n in sorted(names)]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            spec = describe_layer(layer)
            x = args[0].detach()
            dims = [d for d in range(x.dim()) if spec is not None and d != spec.channel_dim % x.dim()]
            counts = [(x > 0).sum(dims), (x < 0).sum(dims), (x == 0).sum(dims)]
            moments = torch.stack([x.abs().sum(dims).double(), *(count.double() for count in counts)])
            self.sums[name] = self.sums.get(name, 0) + moments
            self.counts[name] = self.counts.get(name, 0) + x.numel() // x.shape[spec.channel_dim if spec else 1]

        return hook

    def of(self, group: FilterGroup) -> dict[str, list[Tensor]]:
        """The two activation statistics of a group, one tensor a reading layer."""
        found: dict[str, list[Tensor]] = {"activation_mean": [], "activation_rate": []}
        for member in group.layers("reader"):
            if member.layer not in self.sums:
                continue
            index = torch.as_tensor(member.positions, device=self.sums[member.layer].device)
            moments = self.sums[member.layer][:, index].mean(dim=2) / self.counts[member.layer]
            found["activation_mean"].append(moments[0])
            if not float(moments[2].sum()) and float(moments[3].sum()):  # zeros, nothing negative: a ReLU was there
                found["activation_rate"].append(moments[1])
        return found

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()
