"""The network and data that every pass works on, and helpers that the passes share."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deap_prune.data.batches import Forward, Loss, count_samples, cross_entropy, samples_of
from deap_prune.data.check_batches import first_forward
from deap_prune.data.unchanged import unchanged
from deap_prune.errors import DataError
from deap_prune.progress import Shown
from deap_prune.structure.inputs import first_line
from deap_prune.structure.layers import spec_of
from deap_prune.structure.space import FilterGroup, Member, PruningSpace

StatisticsTable = dict[str, dict[str, dict[str, Tensor]]]
"""Group name -> statistic -> layer name (or the group's name) -> tensor."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """The dense network in eval mode, and the calibration data on its device.

    Attributes:
        network: The network; gradients of all parameters can be computed.
        space: Its pruning space.
        batches: Contiguous tensors on the network's device; empty if no pass needs data.
        forward: Function of (model, batch) to (outputs, targets).
        loss: Function of (outputs, targets) to a scalar, the mean over the batch's samples.
        labels: If False, the network's own outputs are the target, and the loss is half the squared distance to them.
        seed: Seed of noise, random places and initial weights.
        progress: Show progress bars.
        gradients: Mean gradient of every parameter, by name; filled by the pass that gathers ``"gradient"``.
    """

    network: nn.Module
    space: PruningSpace
    batches: list[Any]
    forward: Forward
    loss: Loss
    labels: bool
    seed: int
    progress: Shown
    gradients: dict[str, Tensor] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples in all batches."""
        return sum(count_samples(batch) for batch in self.batches)

    def run(self, batch: Any) -> tuple[Any, Any]:
        """Outputs and targets of a batch."""
        return first_forward(self.forward, self.network, batch, name="calibration", labels=self.labels)

    def loss_of(self, batch: Any, number: int) -> Tensor:
        """The loss of a batch, for criteria that use its gradient.

        Without labels the target is the network's own output plus standard normal noise e. The gradient is then
        -J^T e, with J the Jacobian of the outputs. The mean square of its product with a change of the weights is, to
        first order, the squared change of the outputs. So the criteria measure changes of the outputs, not of a loss.

        Args:
            batch: A calibration batch.
            number: Its index, which seeds the noise.

        Returns:
            A scalar.
        """
        outputs, targets = self.run(batch)
        if self.labels:
            return self._supervised(outputs, targets)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        dense = [out.detach() for out in floats(outputs)]
        noise = [torch.randn(out.shape, generator=generator, dtype=out.dtype).to(out.device) for out in dense]
        return half_square(outputs, [out + e for out, e in zip(dense, noise, strict=True)])

    def error(self, outputs: Any, targets: Any, dense: list[Tensor]) -> Tensor:
        """The error of a changed network: its loss, or without labels the distance to the dense outputs; a scalar."""
        return self._supervised(outputs, targets) if self.labels else half_square(outputs, dense)

    def _supervised(self, outputs: Any, targets: Any) -> Tensor:
        try:
            own = self.loss is not cross_entropy
            value = unchanged(self.loss, outputs, targets, name="loss=") if own else self.loss(outputs, targets)
            return value.mean() if value.dim() else value
        except Exception as error:
            reason = str(error) if isinstance(error, DataError) else first_line(error)
            raise DataError(
                f"the loss fails on the calibration data: {reason}; class labels are whole numbers "
                "(labels.long()); for other targets give a loss of your own (loss=), or labels=False to do without"
            ) from error

    def first_batches(self, samples: int, size: int) -> list[Any]:
        """The first samples, in batches of limited size, for passes that are expensive per image.

        Args:
            samples: Number of samples.
            size: Largest size of a batch.
        """
        chosen = []
        for batch in self.batches:
            count = min(count_samples(batch), samples)
            chosen += [samples_of(batch, slice(start, min(start + size, count))) for start in range(0, count, size)]
            samples -= count
        return chosen


Gather = Callable[[Calibration, frozenset[str]], StatisticsTable]


@dataclass(frozen=True)
class Pass:
    """A pass that gathers statistics.

    Attributes:
        gather: Function of (calibration, names of the statistics to gather) to the statistics.
        statistics: Names of all statistics that it can gather.
        after: Statistics that must be gathered before.
        data: It needs calibration data.
    """

    gather: Gather
    statistics: frozenset[str]
    after: frozenset[str]
    data: bool


def gathers(*statistics: str, after: Iterable[str] = (), data: bool = True) -> Callable[[Gather], Pass]:
    """Turn a function into a :class:`Pass`; the arguments are its attributes."""

    def decorate(function: Gather) -> Pass:
        return Pass(function, frozenset(statistics), frozenset(after), data)

    return decorate


def floats(outputs: Any) -> list[Tensor]:
    """The floating-point tensors of a network's outputs."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def half_square(outputs: Any, targets: list[Tensor]) -> Tensor:
    """Half the squared distance between outputs and targets, mean over the samples; a scalar."""
    parts = [(out - t).square().sum() / (2 * len(out)) for out, t in zip(floats(outputs), targets, strict=True)]
    return torch.stack(parts).sum()


def channel_maps(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's input or output as (images, channels, positions)."""
    moved = x.movedim(spec_of(layer).channel_dim, 1)
    return moved.flatten(2) if moved.dim() > 2 else moved.unsqueeze(2)


def by_image(x: Tensor, samples: int) -> Tensor:
    """A tensor of shape (rows, ...) as (images, rows of an image, ...).

    Some networks fold time or regions into the batch dimension. If the number of rows is not a multiple of the number
    of images (regions of interest, for example), every row counts as an image.

    Args:
        x: Shape (rows, ...).
        samples: Number of images in the batch.
    """
    return x.reshape(samples if samples and len(x) % samples == 0 else len(x), -1, *x.shape[1:])


def positions_of(member: Member, tensor: Tensor) -> Tensor:
    """The channels of each filter in a member of its group, shape (filters, uses), on a tensor's device."""
    return torch.as_tensor(member.positions, device=tensor.device)


def add_statistic(
    table: StatisticsTable, group: FilterGroup, statistic: str, tensor: Tensor, member: Member | None = None
) -> None:
    """Add a layer's tensor of a statistic to the table; without a member, the group's tensor."""
    table.setdefault(group.name, {}).setdefault(statistic, {})[member.layer if member else group.name] = tensor


def channel_dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum over positions of a x b, shape (images, channels), for a and b of shape (images, channels, positions)."""
    return (a * b).sum(dim=2)


def without_hooks(layer: nn.Module) -> nn.Module:
    """A copy of a layer that shares its parameters and has no hooks."""
    clean = copy.copy(layer)
    clean._parameters = dict(layer._parameters)
    clean._forward_hooks, clean._forward_pre_hooks = OrderedDict(), OrderedDict()
    clean._backward_hooks, clean._backward_pre_hooks = OrderedDict(), OrderedDict()
    return clean
