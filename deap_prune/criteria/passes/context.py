"""What every pass over the calibration data works on, and the table of passes."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deap_prune.data.batches import Forward, Loss, count_samples, first_forward, samples_of
from deap_prune.errors import DataError
from deap_prune.structure.inputs import first_line
from deap_prune.structure.layers import spec_of
from deap_prune.structure.space import FilterGroup, Member, PruningSpace

Found = dict[str, dict[str, dict[str, Tensor]]]  # group -> statistic -> layer, or the group itself -> tensor


@dataclass(frozen=True, eq=False)
class Calibration:
    """The dense network in eval mode, and the data on its device.

    Attributes:
        network: Gradients can be taken of every parameter.
        batches: Contiguous, on the network's device; empty if only weights are looked at.
        forward: Function of (model, batch) to (outputs, targets).
        loss: Function of (outputs, targets) to a scalar, the mean over the batch's samples.
        labels: False: the network's own outputs are the target, and the loss is half the squared distance to them.
        seed: Of noise, samples and initial weights.
        gradients: Mean gradient of every parameter, by name, for passes that come after ``"gradient"``.
    """

    network: nn.Module
    space: PruningSpace
    batches: list[Any]
    forward: Forward
    loss: Loss
    labels: bool
    seed: int
    progress: bool
    gradients: dict[str, Tensor] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Samples in all batches."""
        return sum(count_samples(batch) for batch in self.batches)

    def run(self, batch: Any) -> tuple[Any, Any]:
        """Outputs and targets of a batch."""
        return first_forward(self.forward, self.network, batch, name="calibration", labels=self.labels)

    def loss_of(self, batch: Any, number: int) -> Tensor:
        """The loss whose gradients the criteria look at, of the batch of that number.

        Without labels the target is the network's own output plus standard normal noise e. The gradient is then
        -J^T e, with J the Jacobian of the outputs, and the mean square of its product with a change of the weights is
        the squared change of the outputs, to first order: what a label would say is replaced by "stay as you are".
        """
        outputs, targets = self.run(batch)
        if self.labels:
            return self._supervised(outputs, targets)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        own = [out.detach() for out in floats(outputs)]
        noise = [torch.randn(out.shape, generator=generator, dtype=out.dtype).to(out.device) for out in own]
        return half_square(outputs, [out + e for out, e in zip(own, noise, strict=True)])

    def error(self, outputs: Any, targets: Any, dense: list[Tensor]) -> Tensor:
        """How wrong a changed network is: its loss, or without labels the distance to the dense outputs."""
        return self._supervised(outputs, targets) if self.labels else half_square(outputs, dense)

    def _supervised(self, outputs: Any, targets: Any) -> Tensor:
        try:
            found = self.loss(outputs, targets)
            return found.mean() if found.dim() else found
        except Exception as error:
            reason = str(error) if isinstance(error, DataError) else first_line(error)
            raise DataError(
                f"the loss fails on the calibration data: {reason}; class labels are whole numbers "
                "(labels.long()); for other targets give a loss of your own (loss=), or labels=False to do without"
            ) from error

    def first(self, samples: int, size: int) -> list[Any]:
        """The first samples, in batches of at most a size: enough for the passes that cost much an image."""
        chosen = []
        for batch in self.batches:
            count = min(count_samples(batch), samples)
            chosen += [samples_of(batch, slice(start, min(start + size, count))) for start in range(0, count, size)]
            samples -= count
        return chosen


Gather = Callable[[Calibration, frozenset[str]], Found]


@dataclass(frozen=True)
class Pass:
    """A function of (calibration, what is wanted) that gathers statistics.

    Attributes:
        statistics: What it can gather.
        after: Statistics that must have been gathered before.
        data: It looks at the calibration data.
    """

    gather: Gather
    statistics: frozenset[str]
    after: frozenset[str]
    data: bool


PASSES: list[Pass] = []


def gathers(*statistics: str, after: Iterable[str] = (), data: bool = True) -> Callable[[Gather], Gather]:
    """Enter a pass: decorate its function; the arguments are those of :class:`Pass`."""

    def decorate(function: Gather) -> Gather:
        PASSES.append(Pass(function, frozenset(statistics), frozenset(after), data))
        return function

    return decorate


def passes_for(needs: frozenset[str]) -> list[tuple[Pass, frozenset[str]]]:
    """The passes that gather what is needed, with what of it, each behind those it has to come after."""
    wanted = needs.union(*(each.after for each in PASSES if each.statistics & needs))
    chosen = [(each, each.statistics & wanted) for each in PASSES if each.statistics & wanted]
    return sorted(chosen, key=lambda each: len(each[0].after))


def floats(outputs: Any) -> list[Tensor]:
    """The floating-point tensors of a network's outputs."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def half_square(outputs: Any, targets: list[Tensor]) -> Tensor:
    """Half the squared distance of all outputs to their targets, mean over the samples."""
    parts = [(out - t).square().sum() / (2 * len(out)) for out, t in zip(floats(outputs), targets, strict=True)]
    return torch.stack(parts).sum()


def channel_maps(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer reads or makes, as (images, channels, positions)."""
    moved = x.movedim(spec_of(layer).channel_dim, 1)
    return moved.flatten(2) if moved.dim() > 2 else moved.unsqueeze(2)


def by_image(x: Tensor, samples: int) -> Tensor:
    """(images, rows of an image, ...): some networks fold time or regions into the batch dimension.

    Where the rows don't divide by the images (regions of interest, say), every row counts as an image.
    """
    return x.reshape(samples if samples and len(x) % samples == 0 else len(x), -1, *x.shape[1:])


def index_of(member: Member, tensor: Tensor) -> Tensor:
    """A member's positions, shape (filters, uses), on a tensor's device."""
    return torch.as_tensor(member.positions, device=tensor.device)


def add(found: Found, group: FilterGroup, need: str, tensor: Tensor, member: Member | None = None) -> None:
    """One more layer's tensor of a statistic, or the group's."""
    found.setdefault(group.name, {}).setdefault(need, {})[member.layer if member else group.name] = tensor


def channel_dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum over positions of a x b, (images, channels)."""
    return (a * b).sum(dim=2)


def unhooked(layer: nn.Module) -> nn.Module:
    """The same layer, its parameters shared, without hooks."""
    clean = copy.copy(layer)
    clean._parameters = dict(layer._parameters)
    clean._forward_hooks, clean._forward_pre_hooks = OrderedDict(), OrderedDict()
    clean._backward_hooks, clean._backward_pre_hooks = OrderedDict(), OrderedDict()
    return clean
