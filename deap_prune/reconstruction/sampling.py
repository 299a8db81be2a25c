"""On which images and output positions each layer of a refinement is fitted: few for large maps and few features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.reconstruction.flow import Flow, Key, Recorder
from deap_prune.reconstruction.matrix import pick
from deap_prune.structure.layers import describe_layer

ROWS_PER_FEATURE = 100  # a fit follows the noise of its rows by about features / rows of the error
LEAST_ROWS = 1000
LEAST_IMAGES = 1 / 2  # share of the images that every layer sees, however large its maps
ROWS_PER_IMAGE = 32
SHARE_OF_POSITIONS = 1 / 4  # of one map: neighbours say the same


@dataclass(frozen=True, eq=False)
class Survey:
    """What one recorded forward pass of the dense network tells about its layers.

    Attributes:
        flow: Its steps.
        positions: Output positions of an image, by layer name.
        alive: Bytes of the tensors between layers that are alive when a layer is about to run, for each image, by name.
    """

    flow: Flow
    positions: Mapping[str, float]
    alive: Mapping[str, float]


@torch.no_grad()
def survey(network: nn.Module, forward: Callable[[], Any], samples: int) -> Survey:
    """Record one forward pass.

    Args:
        network: The dense network, in eval mode.
        forward: Runs it on a few samples.
        samples: Their number.
    """
    positions: dict[str, float] = {}
    alive: dict[str, float] = {}

    def before(name: str, layer: nn.Module, source: Tensor) -> None:
        alive[name] = max(alive.get(name, 0.0), recorder.alive_bytes() / samples)

    def after(key: Key, result: Tensor) -> None:
        spec = describe_layer(recorder.layers[key[0]]) if key[0] in recorder.layers else None
        if spec is not None:
            positions[key[0]] = positions.get(key[0], 0.0) + result.numel() / spec.out_channels / samples

    recorder = Recorder(network, before=before, after=after)
    recorder.run(forward)
    return Survey(Flow(tuple(recorder.steps)), positions, alive)


@dataclass(frozen=True, eq=False)
class Sample:
    """The images and positions that a layer is fitted on.

    Attributes:
        images: So many, the first ones.
        per_image: Output positions of an image.
        picks: Sorted output positions, counted over all these images, (rows,).
    """

    images: int
    per_image: int
    picks: Tensor

    @classmethod
    def draw(cls, *, images: int, per_image: int, rows: int, generator: torch.Generator) -> Sample:
        """Draw the positions.

        Args:
            images: Number of images that there are.
            per_image: Output positions of an image.
            rows: Most positions.
            generator: Source of the draws.
        """
        used = images_for(rows, images=images, per_image=per_image)
        return cls(used, per_image, pick(used * per_image, rows, generator))

    def rows(self, images: range) -> slice:
        """The rows of these images."""
        ends = torch.tensor([images.start, images.stop]) * self.per_image
        return slice(*torch.searchsorted(self.picks, ends).tolist())

    def of(self, images: range) -> Tensor:
        """The positions in these images, counted from the first of them."""
        return self.picks[self.rows(images)] - images.start * self.per_image


def images_for(rows: int, *, images: int, per_image: int) -> int:
    """The number of images that so many rows are drawn from.

    Args:
        rows: Number of rows.
        images: Number of images that there are.
        per_image: Output positions of an image.
    """
    at_most = max(1.0, min(ROWS_PER_IMAGE, SHARE_OF_POSITIONS * per_image))
    return min(images, max(math.ceil(LEAST_IMAGES * images), math.ceil(rows / at_most), 2))


def split(images: int, size: float) -> list[range]:
    """Ranges of nearly equal length, of at most ``size`` images, but of at least 2: some networks squeeze one."""
    parts = max(1, min(images // 2, math.ceil(images / max(size, 1))))
    ends = [images * k // parts for k in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(ends)]
