"""Units of a network that a latency table times alone: a layer with the normalisation and activation that follow it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import lcm, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from deap_prune.data.batches import tensors_of
from deap_prune.errors import ModelError
from deap_prune.structure.inputs import Call, evaluating, first_line
from deap_prune.structure.layers import narrow_layer, spec_of
from deap_prune.structure.tracing.layer_watch import LayerWatch

ACTIVATIONS: Mapping[str, Callable[..., nn.Module]] = {
    "relu": lambda x: nn.ReLU(),
    "relu6": lambda x: nn.ReLU6(),
    "hardtanh": lambda x, low=-1.0, high=1.0: nn.Hardtanh(low, high),
    "silu": lambda x: nn.SiLU(),
    "hardswish": lambda x: nn.Hardswish(),
    "hardsigmoid": lambda x: nn.Hardsigmoid(),
    "sigmoid": lambda x: nn.Sigmoid(),
    "gelu": lambda x: nn.GELU(),
    "leaky_relu": lambda x, slope=0.01: nn.LeakyReLU(slope),
}
"""Operator to the module that computes it; these are fused with the layer before them."""


@dataclass
class Unit:
    """One use of a layer, with what runs after it on its result alone.

    Attributes:
        name: Qualified name of the layer.
        layer: The layer.
        shape: Shape of its input.
        norms: The normalisations that follow it.
        activation: The activation that follows them.
    """

    name: str
    layer: nn.Module
    shape: tuple[int, ...]
    norms: list[nn.Module] = field(default_factory=list)
    activation: nn.Module | None = None

    @property
    def widths(self) -> tuple[int, int]:
        """Input and output channels of the dense layer."""
        spec = spec_of(self.layer)
        return spec.in_channels, spec.out_channels

    @property
    def channel_bytes(self) -> int:
        """Bytes of one channel of the input, in single precision."""
        return 4 * prod(self.shape) // self.shape[spec_of(self.layer).axis(len(self.shape))]

    @property
    def is_coupled(self) -> bool:
        """The output width follows from the input width (depthwise convolutions, normalisations)."""
        return bool(spec_of(self.layer).coupled)

    @property
    def blocks(self) -> tuple[int, int]:
        """Equal parts of the input and of the output channels that keep the same number of channels."""
        blocks = spec_of(self.layer).blocks
        made = lcm(blocks, *(spec_of(norm).blocks for norm in self.norms))
        return (made if self.is_coupled else blocks), made

    @property
    def key(self) -> str:
        """Equal for units that take equal time."""
        parts = [self.layer, *self.norms, *([self.activation] if self.activation is not None else [])]
        shapes = [[*map(list, (tensor.shape for tensor in part.state_dict().values()))] for part in parts]
        described = [" ".join(repr(part).split()) for part in parts]
        return f"{' > '.join(described)} on {list(self.shape)}, tensors {shapes}"

    def narrowed(self, n_in: int, n_out: int) -> nn.Module:
        """A copy with the first channels of each block of the layer: an ``nn.Sequential`` in eval mode."""
        ins, outs = (_first(*case) for case in zip((n_in, n_out), self.widths, self.blocks, strict=True))
        parts = [copy.deepcopy(self.layer), *map(copy.deepcopy, self.norms)]
        narrow_layer(parts[0], ins, outs)
        for norm in parts[1:]:
            narrow_layer(norm, outs, outs)
        return nn.Sequential(*parts, *([self.activation] if self.activation is not None else [])).eval()

    def at(self, point: tuple[int, int]) -> nn.Module:
        """:meth:`narrowed` to a point of its entry, which has the dense output width if that follows from the input."""
        n_in, n_out = self.widths
        return self.narrowed(point[0], point[0] * (n_out // n_in)) if self.is_coupled else self.narrowed(*point)

    def call(self, n_in: int) -> Call:
        """An input with this number of channels."""
        shape = list(self.shape)
        shape[spec_of(self.layer).axis(len(shape))] = n_in
        return (torch.randn(shape),), {}


class _UnitWatch(LayerWatch):
    """Collects the units of a pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.units: list[Unit] = []
        self._tails: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> the unit whose latest result it is

    def after_layer(self, name: str, layer: nn.Module, arguments: Call, result: Any) -> None:
        """Begin a unit, or append a normalisation to the one that made its input."""
        sources = tensors_of(arguments)
        if not sources or not isinstance(result, Tensor):
            return
        before = self._tails.pop(sources[0], None)
        if before is not None and spec_of(layer).role == "norm":
            before.norms.append(layer)
            self._tails[result] = before
            return
        self.units.append(Unit(name, layer, tuple(sources[0].shape)))
        self._tails[result] = self.units[-1]

    def after_operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Append an activation to the unit that made its input; any other operator ends the unit."""
        name = func.overloadpacket.__name__.removesuffix("_")
        for tensor in tensors_of((args, kwargs)):
            unit = self._tails.pop(tensor, None)
            if unit is not None and name in ACTIVATIONS:
                unit.activation = ACTIVATIONS[name](*args, **({} if name == "gelu" else kwargs))


def units_of(network: nn.Module, call: Call) -> list[Unit]:
    """The units of a network, in the order of their use.

    Args:
        network: The dense network; it comes back in its mode.
        call: Arguments of one forward pass; the shapes of the units' inputs are its.

    Raises:
        ModelError: If the forward pass fails.
    """
    watch = _UnitWatch(network)
    args, kwargs = call
    with evaluating(network), watch.watching():
        try:
            network(*args, **kwargs)
        except Exception as error:
            raise ModelError(f"the network fails on the example inputs: {first_line(error)}") from error
    return watch.units


def _first(kept: int, n: int, blocks: int) -> NDArray[np.intp]:
    return np.flatnonzero(np.arange(n) % (n // blocks) < kept // blocks)
