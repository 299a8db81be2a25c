"""How far pruning moves a network's outputs: a compensated network beside the dense one, on a few images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import nan
from typing import Any

import torch
from torch import nn

from deap_prune.data.batches import Forward, count_samples, samples_of
from deap_prune.deadline import check_deadline
from deap_prune.errors import ModelError
from deap_prune.reconstruction.compensate import compensate
from deap_prune.reconstruction.dense_targets import DenseTargets, DistanceToDense
from deap_prune.reconstruction.grams import Grams
from deap_prune.structure.inputs import evaluating
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import narrowed_copy
from deap_prune.structure.space import PruningSpace

IMAGES = 100


class OutputDistance:
    """Distance of the outputs of a compensated network from the dense one's, on the first 100 images.

    Divergence KL(dense || pruned) of class logits, in nats; else the mean relative squared error of the output tensors.
    Errors of layer outputs are not comparable from layer to layer; this distance is.

    Args:
        network: The dense network.
        space: Its space.
        grams: Its moments.
        batches: Calibration batches on its device; targets only tell whether the outputs are logits.
        forward: Function of (model, batch) to (outputs, targets).
        statistics: Whether the statistics of normalisations follow from the moments; see :func:`compensate`.
    """

    def __init__(
        self,
        network: nn.Module,
        space: PruningSpace,
        grams: Grams,
        batches: Sequence[Any],
        *,
        forward: Forward,
        statistics: bool,
    ) -> None:
        self._network, self._space, self._grams = network, space, grams
        self._forward, self._statistics = forward, statistics
        self._batches: list[Any] = []
        for batch in batches:
            if (missing := IMAGES - sum(map(count_samples, self._batches))) > 0:
                self._batches.append(samples_of(batch, slice(missing)))

    @cached_property
    def _dense(self) -> list[DenseTargets]:
        distance = self._distance(self._network)
        with evaluating(self._network):
            return [distance.targets(batch) for batch in self._batches]

    def _distance(self, small: nn.Module) -> DistanceToDense:
        return DistanceToDense(small, self._network, self._forward, (), 1.0)

    @torch.no_grad()
    def __call__(self, masks: Masks) -> float:
        """The distance, from 0 up; NaN if the outputs of the two networks cannot be compared.

        Raises:
            MaskError: If the masks don't fit the space.
        """
        check_deadline()
        small = narrowed_copy(self._network, self._space, masks).eval()
        compensate(small, self._space, masks, self._grams, statistics=self._statistics)
        distance, total = self._distance(small), 0.0
        try:
            for batch, dense in zip(self._batches, self._dense, strict=True):
                total += count_samples(batch) * float(distance(batch, dense))
        except ModelError:
            return nan
        return total / sum(map(count_samples, self._batches))
