"""Targets of refinement: what each layer of the pruned network is fitted to, from one pass of the dense network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.reconstruction.flow import Flow, Key, Recorder
from deap_prune.reconstruction.matrix import pick, positions, refittable
from deap_prune.structure.layers import spec_of
from deap_prune.structure.space import PruningSpace


@dataclass(frozen=True, eq=False)
class Aim:
    """Where in the dense network a layer's target is read.

    Attributes:
        norm: The batch normalisation that is the layer's only reader, or None.
        step: The step whose result is the target: the layer, its normalisation, or the addition that alone reads it.
        summand: If the step is an addition, the step that makes its other summand before the layer runs; else None.
        outputs: Ids of the layer's output channels.
        rectified: Whether a rectifier is the only reader of the target.
    """

    norm: str | None
    step: Key
    summand: Key | None
    outputs: NDArray[np.intp]
    rectified: bool


@dataclass(frozen=True, eq=False)
class Target:
    """Sampled positions of a layer's output, (picks,), and the dense network's values there, (picks, outputs)."""

    picks: Tensor
    values: Tensor


def find_aims(network: nn.Module, space: PruningSpace, flow: Flow) -> dict[str, Aim]:
    """Aims by name of every layer that can be re-fitted: it runs once and shares its weight with no other layer.

    Args:
        network: The dense network.
        space: Its space.
        flow: Its flow.
    """
    shares = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
    aims: dict[str, Aim] = {}
    for entry in space.layers:
        number = flow.call(entry.name) if entry.dim is None else None
        if number is None:
            continue
        layer: Any = network.get_submodule(entry.name)
        if refittable(layer) is None or shares[id(layer.weight)] > 1:
            continue
        norm = flow.norm_after(network, entry.name)
        step = flow.call(norm) if norm else number
        if step is None:
            continue
        meeting = flow.meeting(step)
        summand: Key | None = None
        if meeting is not None and meeting[1] < number:  # the other summand is made before the layer runs
            step, summand = meeting[0], flow.steps[meeting[1]].key
        aims[entry.name] = Aim(norm, flow.steps[step].key, summand, entry.outputs, flow.rectified(step))
    return aims


def dense_targets(
    network: nn.Module, forward: Callable[[], Any], aims: Mapping[str, Aim], *, rows: int, seed: int
) -> dict[str, Target]:
    """Targets by layer name, from one forward pass of the dense network.

    Args:
        network: The dense network.
        forward: Runs it on the calibration images.
        aims: Aims by layer name.
        rows: Most output positions of a layer.
        seed: Seed of the sampling of positions.
    """
    by_step: dict[Key, list[str]] = {}
    for name, aim in aims.items():
        by_step.setdefault(aim.step, []).append(name)
    order = {name: number for number, name in enumerate(aims)}
    targets: dict[str, Target] = {}

    def after(key: Key, result: Tensor) -> None:
        for name in by_step.get(key, ()):
            values = positions(result, spec_of(network.get_submodule(name)))
            generator = torch.Generator().manual_seed(seed * 1_000_003 + order[name])
            picks = pick(len(values), rows, generator).to(values.device)
            targets[name] = Target(picks, values[picks])

    Recorder(network, after=after).run(forward)
    return targets
