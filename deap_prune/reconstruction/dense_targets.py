"""How far a pruned network is from the dense one on a batch: errors of layer outputs, and divergence of the logits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.data.batches import Forward, are_class_labels, divergence, logits_of, tensors_of
from deap_prune.data.check_batches import first_forward
from deap_prune.errors import ModelError, did_you_mean

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class DenseTargets:
    """Outputs of the dense network on a batch.

    Attributes:
        features: Outputs of the compared layers, by qualified name.
        outputs: Of the network.
    """

    features: Mapping[str, Tensor]
    outputs: Any


@dataclass(frozen=True)
class DistanceToDense:
    """The loss of label-free recovery: the distance of a pruned network from the dense one.

    The sum over the layers of ||small - dense||^2 / ||dense||^2, plus ``output_weight`` times KL(dense || small) of the
    logits. If the targets are not class labels by type and shape, the mean relative squared error of the output
    tensors takes the divergence's place.

    Attributes:
        small: The pruned network.
        dense: The dense network.
        forward: Function of (model, batch) to (outputs, targets).
        layers: Qualified names of the compared layers.
        output_weight: Weight of the outputs.
    """

    small: nn.Module
    dense: nn.Module
    forward: Forward
    layers: tuple[str, ...]
    output_weight: float

    @torch.no_grad()
    def targets(self, batch: Any) -> DenseTargets:
        """The dense network's outputs on a batch."""
        with recorded_outputs(self.dense, self.layers) as features:
            outputs, _ = self.forward(self.dense, batch)
        return DenseTargets(features, outputs)

    def __call__(self, batch: Any, dense: DenseTargets) -> Tensor:
        """The loss on a batch, a tensor without dimensions.

        Raises:
            ModelError: If the outputs of the two networks can't be compared.
        """
        with recorded_outputs(self.small, self.layers) as features:
            outputs, targets = self.forward(self.small, batch)
        terms = [relative_error(features[name], dense.features[name]) for name in self.layers]
        if self.output_weight:
            terms.append(self.output_weight * _output_distance(outputs, dense.outputs, targets))
        return torch.stack(terms).sum()


@contextmanager
def recorded_outputs(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Record the outputs of some layers by name, in the order in which they finish; None for one that runs twice."""
    outputs: dict[str, Any] = {}
    calls: Counter[str] = Counter()

    def keep(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        calls[name] += 1
        outputs[name] = output if calls[name] == 1 else None

    handles = [network.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def layers_to_compare(
    small: nn.Module, dense: nn.Module, forward: Forward, batch: Any, chosen: Sequence[str] | None
) -> tuple[str, ...]:
    """Names of the layers to compare: the chosen ones, or the last of each resolution.

    A layer can be compared if it runs once and its output is one tensor of the same shape in both networks. Since
    pruning only removes channels, such a layer has the same channels in both. The resolution of an output is its shape
    without samples and channels, (N, C, ...); outputs of a single position are not maps, and are left out.

    Args:
        small: The pruned network, in eval mode.
        dense: The dense network, in eval mode.
        forward: Function of (model, batch) to (outputs, targets).
        batch: A few samples.
        chosen: The user's choice; None to choose here.

    Raises:
        DataError: If a network fails on the batch.
        ModelError: If a chosen layer can't be compared.
    """
    shared = {name for name, _ in small.named_modules()} & {name for name, _ in dense.named_modules()} - {""}
    for name in chosen or ():
        if name not in shared:
            raise ModelError(f"no layer '{name}' in both networks; {did_you_mean(name, shared)}")
    names = sorted(shared) if chosen is None else chosen
    small_shapes, dense_shapes = (_shapes(network, forward, batch, names) for network in (small, dense))
    if chosen is not None:
        for name in chosen:
            if name not in dense_shapes or small_shapes.get(name) != dense_shapes[name]:
                raise ModelError(
                    f"the output of '{name}' can't be compared: {small_shapes.get(name)} in the pruned network, "
                    f"{dense_shapes.get(name)} in the dense one; choose layers that run once and give one tensor "
                    "of equal shape in both"
                )
        return tuple(chosen)
    maps = {n: s[2:] for n, s in dense_shapes.items() if small_shapes.get(n) == s and math.prod(s[2:]) > 1}
    return tuple({resolution: name for name, resolution in maps.items()}.values())


def _shapes(network: nn.Module, forward: Forward, batch: Any, names: Sequence[str]) -> Shapes:
    """Shapes of the layers' outputs, of those that are one tensor, in the order in which they finish."""
    with recorded_outputs(network, names) as outputs:
        first_forward(forward, network, batch, name="calibration", labels=False)
    return {name: tuple(x.shape) for name, x in outputs.items() if isinstance(x, Tensor)}


def relative_error(values: Tensor, reference: Tensor) -> Tensor:
    """||values - reference||^2 / ||reference||^2, a tensor without dimensions."""
    return (values - reference).square().sum() / reference.square().sum().clamp_min(torch.finfo(reference.dtype).tiny)


def _output_distance(outputs: Any, dense_outputs: Any, targets: Any) -> Tensor:
    """KL(dense || small) of logits, or else the mean relative squared error of the output tensors."""
    logits, dense_logits = logits_of(outputs), logits_of(dense_outputs)
    if are_class_labels(logits, targets) and logits.shape == dense_logits.shape:
        return divergence(logits, dense_logits)
    ours, theirs = ([x for x in tensors_of(tree) if x.is_floating_point()] for tree in (outputs, dense_outputs))
    if not ours or [x.shape for x in ours] != [x.shape for x in theirs]:
        raise ModelError(
            f"the pruned network's outputs {[tuple(x.shape) for x in ours]} can't be compared with the dense "
            f"network's {[tuple(x.shape) for x in theirs]}; return tensors of equal shapes from forward="
        )
    return torch.stack([relative_error(x, y) for x, y in zip(ours, theirs, strict=True)]).mean()
