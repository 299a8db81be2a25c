"""Targets of refinement: what each layer of the pruned network is fitted to, from one pass of the dense network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.deadline import check_deadline
from deap_prune.reconstruction.flow import Flow, Key, Recorder
from deap_prune.reconstruction.matrix import blocks_of, refittable, rows_at
from deap_prune.reconstruction.sampling import LEAST_ROWS, ROWS_PER_FEATURE, Sample
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
    """Sampled positions of a layer's output, and the dense network's values there, (rows, outputs)."""

    sample: Sample
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
        number = flow.call(entry.name) if entry.dim is None and not entry.carries else None
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


def draw_samples(
    network: nn.Module,
    aims: Mapping[str, Aim],
    positions: Mapping[str, float],
    *,
    images: int,
    rows: int,
    memory: float,
    seed: int,
) -> dict[str, Sample]:
    """Draw the images and output positions of each layer that has some output positions for every image.

    Args:
        network: The dense network.
        aims: Aims by layer name.
        positions: Output positions of an image by layer name.
        images: Number of images.
        rows: Most output positions of a layer.
        memory: Most bytes of all targets; what one layer reads takes at most a quarter of it.
        seed: Seed of the draws.
    """
    order = {name: number for number, name in enumerate(aims)}
    names = [name for name in aims if positions[name] >= 1 and positions[name].is_integer()]
    layers: dict[str, Any] = {name: network.get_submodule(name) for name in names}
    most = {name: _most_rows(layer, rows, memory) for name, layer in layers.items()}
    nbytes = sum(most[name] * len(aims[name].outputs) * layers[name].weight.element_size() for name in names)
    share = min(1.0, memory / max(nbytes, 1))
    return {
        name: Sample.draw(
            images=images,
            per_image=int(positions[name]),
            rows=max(2, int(share * most[name])),
            generator=torch.Generator().manual_seed(seed * 1_000_003 + order[name]),
        )
        for name in names
    }


def _most_rows(layer: Any, rows: int, memory: float) -> int:
    """Rows of a layer: as many as a fit needs, and as the memory takes."""
    spec = spec_of(layer)
    width = spec.in_channels * layer.weight[0, 0].numel()
    at_most = memory / 4 / (width * layer.weight.element_size())
    return int(min(rows, max(LEAST_ROWS, ROWS_PER_FEATURE * width / blocks_of(spec)), at_most))


def dense_targets(
    network: nn.Module,
    forward: Callable[[range], Any],
    aims: Mapping[str, Aim],
    samples: Mapping[str, Sample],
    chunks: Sequence[range],
) -> dict[str, Target]:
    """Targets by layer name, from one forward pass of the dense network.

    A layer whose output has another number of positions for each image than it had when it was recorded has none.

    Args:
        network: The dense network.
        forward: Runs it on a range of images.
        aims: Aims by layer name.
        samples: Samples by layer name.
        chunks: The ranges of images.
    """
    by_step: dict[Key, list[str]] = {}
    for name in samples:
        by_step.setdefault(aims[name].step, []).append(name)
    parts: dict[str, list[Tensor]] = {name: [] for name in samples}
    for images in chunks:
        check_deadline()

        def after(key: Key, result: Tensor, images: range = images) -> None:
            for name in by_step.get(key, ()):
                spec = spec_of(network.get_submodule(name))
                if result.numel() == samples[name].per_image * len(images) * spec.out_channels:
                    parts[name].append(rows_at(result, spec, samples[name].of(images)))

        Recorder(network, after=after).run(partial(forward, images))
    return {
        name: Target(samples[name], torch.cat(values)) for name, values in parts.items() if len(values) == len(chunks)
    }
