"""From masks to the pruned network as it is evaluated: kept weights, compensation, BN statistics, refinement."""

from __future__ import annotations

import copy
import time
from dataclasses import fields
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from deap_prune.data.batches import Forward, count_samples, join, samples_of
from deap_prune.deadline import check_deadline
from deap_prune.errors import DataError
from deap_prune.fitness.recalibrate import recalibrate_bn
from deap_prune.fitness.settings import STORED, Counters, Settings
from deap_prune.fitness.slim_buffer import SlimBuffer
from deap_prune.precision import full_precision
from deap_prune.randomness import same_draws
from deap_prune.reconstruction import Grams, ReconstructionError, collect_grams, compensate, propagate_bn
from deap_prune.reconstruction.output_distance import OutputDistance
from deap_prune.reconstruction.recovery import HELD_OUT, held_out_of, recover
from deap_prune.reconstruction.refine import Refiner
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace


class Candidate(NamedTuple):
    """The network of a candidate.

    Attributes:
        network: The slim network, in eval mode; it is valid until the next candidate is built.
        masks: The filters that it keeps: the candidate's masks, unless refinement selects filters.
    """

    network: nn.Module
    masks: Masks


class CandidateBuilder:
    """Builds the networks of candidates, one after the other, in the same memory.

    Args:
        network: The dense network.
        space: Its space.
        calibration: Batches on the device.
        settings: How a candidate is built.
        forward: Function of (model, batch) to (outputs, targets).
        counters: Counts seconds and samples.
    """

    def __init__(
        self,
        network: nn.Module,
        space: PruningSpace,
        calibration: list[Any],
        *,
        settings: Settings,
        forward: Forward,
        counters: Counters,
    ) -> None:
        self._buffer = SlimBuffer(network, space)
        self._network, self._space, self._calibration = network, space, calibration
        self.settings, self._forward, self._counters = settings, forward, counters
        self._device = next(network.parameters()).device
        self._kept_refiner: Refiner | None = None

    @cached_property
    def moments(self) -> Grams:
        """Moments of what the readers of pruned channels read, collected once on the calibration data.

        Raises:
            DataError: If there is none.
        """
        if not self._calibration:
            raise DataError("calibration data is needed: give calibration=(inputs, targets) tensors or batches")
        mode, megabytes = _of_moments(self.settings)
        with full_precision(), same_draws(self.settings.seed):
            return collect_grams(
                self._network,
                self._space,
                self._calibration,
                forward=self._forward,
                mode=cast(Any, mode),
                memory=megabytes * 2**20,
            )

    @cached_property
    def surrogate(self) -> ReconstructionError:
        """The error that compensation leaves.

        Raises:
            DataError: If there is no calibration data.
        """
        return ReconstructionError(self._space, self.moments)

    @cached_property
    def output_distance(self) -> OutputDistance:
        """The distance of a compensated network's outputs from the dense one's.

        Raises:
            DataError: If there is no calibration data.
        """
        moments, statistics = self.moments, self.recalibrate == "closed_form"
        with same_draws(self.settings.seed):
            parts = (self._network, self._space, moments, self._calibration)
            return OutputDistance(*parts, forward=self._forward, statistics=statistics)

    @property
    def stored_settings(self) -> dict[str, Any]:
        """The settings that figures depend on, with ``recalibrate="auto"`` resolved."""
        return {name: getattr(self.settings, name) for name in STORED} | {"recalibrate": self.recalibrate}

    @property
    def _compensates(self) -> bool:
        return self.settings.compensate is not None and bool(self._calibration)

    @cached_property
    def recalibrate(self) -> str | None:
        """How BN statistics are set; ``"auto"`` is resolved by the moments."""
        if self.settings.recalibrate != "auto":
            return self.settings.recalibrate
        sound = self._compensates and self.moments.tell_variances(self._network, self._space)
        return "closed_form" if sound else "data"

    def __call__(self, masks: Masks) -> Candidate:
        """Build the network of a candidate.

        Raises:
            MaskError: If the masks don't fit the space.
        """
        check_deadline()
        self.collect_moments()  # before the clock starts
        with full_precision(), same_draws(self.settings.seed):
            return self._build(masks)

    def selected(self, masks: Masks) -> Masks:
        """Masks of the same widths, with the filters that refinement selects."""
        with full_precision():
            return self._refiner().select(masks)

    def prepare_refinement(self) -> None:
        """Run the dense network for the targets of refinement, if that is still to be done."""
        with full_precision():
            self._refiner()

    def collect_moments(self) -> None:
        """Collect the moments if candidates are compensated, and that is still to be done."""
        if self._compensates:
            self.moments  # noqa: B018

    def _build(self, masks: Masks) -> Candidate:
        clock, recalibrate, compensated = self._counters.clock, self.recalibrate, self._compensates
        start = time.perf_counter()
        network = self._buffer.load(masks)
        start = clock("plan", start, self._device)
        if compensated:
            compensate(network, self._space, masks, self.moments, statistics=recalibrate == "closed_form")
        elif recalibrate == "closed_form":
            propagate_bn(network, self._space, masks, self.moments)
        start = clock("compensate", start, self._device)
        if recalibrate == "data":
            recalibrate_bn(network, self._calibration, forward=self._forward)
            self._counters.samples += sum(count_samples(b) for b in self._calibration)
            start = clock("recalibrate", start, self._device)
        if self.settings.refine:
            network, masks = self._refiner().refine(masks, network, select=self.settings.select)
            start = clock("refine", start, self._device)
        if self.settings.recover:
            network = self._recovered(network)
            clock("recover", start, self._device)
        return Candidate(network, masks)

    @cached_property
    def _parts(self) -> tuple[list[Any], list[Any]]:
        """The images that networks are refined and recovered on, and those that end recovery: neither sees them."""
        if not self.settings.recover or not self._calibration:
            return self._calibration, []
        batch = join(self._calibration)
        generator = torch.Generator().manual_seed(self.settings.seed)
        used, held_out = held_out_of(count_samples(batch), HELD_OUT, generator)
        return [samples_of(batch, used.to(self._device))], [samples_of(batch, held_out.to(self._device))]

    def _refiner(self) -> Refiner:
        """The refiner; it is kept for the next candidates, with the dense network's targets."""
        if self._kept_refiner is None:
            images, memory = self.settings.refine_images, self.settings.refine_memory
            rows, parts = self.settings.refine_rows * images, (self._network, self._space, self._parts[0])
            self._kept_refiner = Refiner(*parts, images=images, rows=rows, memory=memory, forward=self._forward)
        return self._kept_refiner

    def _recovered(self, network: nn.Module) -> nn.Module:
        """The network after label-free recovery; its parameters keep their grad flags."""
        flags = [parameter.requires_grad for parameter in network.parameters()]
        trained = copy.deepcopy(network).requires_grad_(True)
        with torch.enable_grad():
            recover(
                trained,
                self._network,
                self._parts[0],
                validation=self._parts[1],
                steps=self.settings.recover,
                forward=self._forward,
                device=self._device,
                seed=self.settings.seed,
                progress=False,
            )
        for parameter, flag in zip(trained.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
        return trained

    def __getstate__(self) -> dict[str, Any]:
        """Without the refiner and the output distance, which are quickly made again."""
        state = vars(self) | {"_kept_refiner": None}
        return {name: value for name, value in state.items() if name != "output_distance"}

    def with_settings(self, settings: Settings) -> CandidateBuilder:
        """A builder with other settings; it shares moments and refiner if the settings make the same ones."""
        other = copy.copy(self)
        other.settings = settings
        names = [option.name for option in fields(Settings) if option.name.startswith("refine_")]
        if any(getattr(settings, name) != getattr(self.settings, name) for name in (*names, "recover")):
            other._kept_refiner = None
        same = _of_moments(settings) == _of_moments(self.settings)
        for name in ("recalibrate", "output_distance", "_parts", *(() if same else ("moments", "surrogate"))):
            vars(other).pop(name, None)
        return other


def _of_moments(settings: Settings) -> tuple[str, int]:
    """The settings that moments depend on."""
    return settings.compensate or "auto", settings.moment_memory
