"""Masks in, objectives out: the pruned network is built, its BN statistics re-estimated, and judged on the data."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from deap_prune.data.batches import Data, Forward, Loss, check_batches, default_forward, name_of, resolve_device
from deap_prune.data.draws import EVERYTHING, full_precision, load
from deap_prune.errors import DataError
from deap_prune.fitness.candidate import Builder
from deap_prune.fitness.execution import Executor, make_executor
from deap_prune.fitness.fold import find_pairs
from deap_prune.fitness.measurement import Estimate, Found, Values, Verdict, part_of
from deap_prune.fitness.objectives import OBJECTIVES, with_loss
from deap_prune.fitness.racing import Floats, Rivals, least_dominated
from deap_prune.fitness.settings import Counters, Settings
from deap_prune.structure.inputs import evaluating
from deap_prune.structure.masking import masked
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import unwrap
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.clean_copy import check_finite, pristine


class Evaluator:
    """The fitness of masks. Call it with masks; equal masks are answered from a cache.

    Args:
        model: The network that was traced; it is copied, and never changed.
        space: Its space.
        calibration: For compensation and BN statistics: batches, or (inputs, targets) tensors.
        validation: What the objectives are measured on; never the test images.
        guard: Images that never drive anything, for :meth:`on_guard`.
        forward: Function of (model, batch) to (outputs, targets), for batches of other shapes.
        loss: The objective ``loss``, if not cross-entropy: of (outputs, targets), a batch's mean or one value a sample.
        **options: Fields of :class:`Settings`: objectives, recalibrate, compensate, gram_memory, refine, executor,
            precision, sampling, racing, batch_size, device.

    Raises:
        ConfigError: If an option is unknown or not legal.
        RegistryError: If an objective is unknown.
        DataError: If data is missing, empty or not finite, or labels are outside the network's classes.
        ModelError: If the weights are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        space: PruningSpace,
        *,
        calibration: Data | None = None,
        validation: Data | None = None,
        guard: Data | None = None,
        forward: Forward | None = None,
        loss: Loss | None = None,
        **options: Any,
    ) -> None:
        self.options = Settings.of(options)
        self.space, racing = space, self.options.racing is not None
        self.objectives = tuple(with_loss(OBJECTIVES[name], loss, by_sample=racing) for name in self.options.objectives)
        self.forward = forward or default_forward
        self.device = resolve_device(self.options.device)
        self.counters = Counters()
        self._user_model = model
        self.network = pristine(unwrap(model)).to(self.device)
        check_finite(self.network)
        size, on_data = self.options.batch_size, any(o.of_masks is None for o in self.objectives)
        self._all = load(validation, "validation", on_data, size, self.device)
        self._calibration = load(calibration, "calibration", self.options.calibrates, size, self.device)
        self._guard = load(guard, "guard", False, size, self.device)
        self._verdict = Verdict(self.objectives, space, self.network, self.forward)
        with torch.no_grad():
            for name, batches in (("validation", self._all), ("guard", self._guard)):
                check_batches(self.forward, self.network, batches, name=name, judge=self._verdict.check)
        parts = (self.network, space, self._calibration)
        self._build = Builder(*parts, settings=self.options.at(0), forward=self.forward, counters=self.counters)
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        """Without the executor: a captured graph can't be copied, and it is soon made anew."""
        return {name: value for name, value in vars(self).items() if name != "_executor"}

    def _begin(self) -> None:
        """Nothing has been judged."""
        self._forget()
        self.generation = 0
        self._sample = self._draw()

    def _forget(self) -> None:
        self.cache: dict[Masks, Values] = {}
        self._rivals: Rivals | None = None
        self._dropped: dict[Masks, Values] = {}
        self._losses: dict[Masks, Floats] = {}
        self._guarded: dict[Masks, Values] = {}

    @cached_property
    def _executor(self) -> Executor:
        return make_executor(
            self.options.executor,
            self.network,
            self.space,
            forward=self.forward,
            pairs=find_pairs(self.network, self.forward, self._all[0]),
            dtype=self.options.dtype(self.device),
            device=self.device,
        )

    @property
    def weights(self) -> Values:
        """DEAP's fitness weights, +1 to maximise, -1 to minimise."""
        return tuple(o.weight for o in self.objectives)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the objectives, in order."""
        return tuple(o.name for o in self.objectives)

    @cached_property
    def dense(self) -> dict[str, Any]:
        """The dense network: ``flops``, ``params``, its ``values`` (own BN statistics); the ``device`` of latencies."""
        values = dict(zip(self.names, self.measure(self.network, Masks({})), strict=True))
        found = {"flops": self.space.flops, "params": self.space.params, "values": values}
        return found | ({"device": name_of(self.device)} if any(o.of_network for o in self.objectives) else {})

    @property
    def settings(self) -> dict[str, Any]:
        """How candidates are judged; stored with a front, and options of an Evaluator that judges so."""
        return self._build.judged

    def __call__(self, masks: Masks) -> Values:
        """The objectives' values of a pruned network, in order.

        Raises:
            MaskError: If the masks don't fit the space.
        """
        for known in (self.cache, self._dropped):
            if masks in known:
                self.counters.cache_hits += 1
                return known[masks]
        values, whole = self._judge(masks, self._rivals)
        (self.cache if whole else self._dropped)[masks] = values
        self.counters.candidates += 1
        self.counters.dropped += not whole
        return values

    def many(self, masks: Iterable[Masks]) -> list[Values]:
        """Values of several candidates, in order; equal ones are judged once."""
        return [self(m) for m in masks]

    def next_generation(self, number: int, survivors: Iterable[Masks], archive: Iterable[Masks] = ()) -> list[Values]:
        """Begin a generation: judge on its images, and as it does, who lives on, and race its children against those.

        The values and everything after depend on the arguments alone, not on what was judged before.

        Args:
            number: Of the generation whose children come next, from 1.
            survivors: The parents; all that children are compared with.
            archive: Others that are judged in full as well, and answered from the cache from then on.

        Returns:
            The survivors' values in this generation.
        """
        survivors = list(survivors)
        self.at_generation(number)
        self._dropped.clear()
        self._rivals = None
        values = self.many(survivors)
        self.many(archive)
        if self.options.racing is not None and survivors:
            for masks in survivors:
                if masks not in self._losses:  # judged by another process, or before a stop
                    self._judge(masks, None)
            self._losses = {masks: self._losses[masks] for masks in survivors}
            rows = list(self._losses)
            costs = np.array([self._verdict.costs(masks) for masks in rows]).reshape(len(rows), -1)
            self._rivals = Rivals.of(self.options.racing, np.stack([self._losses[m] for m in rows]), costs)
        return values

    def at_generation(self, number: int) -> None:
        """Judge as in a generation: on its images, refined or not. What was judged otherwise is forgotten."""
        redrawn, settings = self.options.sampling.redraw and number != self.generation, self.options.at(number)
        self.generation = number
        if settings.refine != self._build.settings.refine:
            self._build = self._build.with_settings(settings)
            self._guarded.clear()
        elif not redrawn:
            return
        self.cache.clear()
        self._losses.clear()
        self._sample = self._draw()

    def surrogate(self, masks: Masks) -> float:
        """What compensation can't bring back, in closed form, without a forward pass; smaller is better.

        See :class:`deap_prune.reconstruction.ReconstructionError`.

        Raises:
            DataError: If there is no calibration data.
            MaskError: If the masks don't fit the space.
        """
        with full_precision():
            return self._build.surrogate(masks)

    def learned(self, judged: Mapping[Masks, Values] | None = None) -> Estimate | None:
        """The surrogate, its layers weighed as candidates tell; None unless they are refined, on data, without races.

        By :meth:`deap_prune.reconstruction.ReconstructionError.learned`, of the first objective measured on data.

        Args:
            judged: Values of candidates; of all in the cache if left out.
        """
        place = next((k for k, o in enumerate(self.objectives) if o.batch is not None), None)
        if not self._build.settings.refine or self.options.racing is not None or place is None:
            return None  # the cache would not hold who was dropped: all that went wrong
        known, sign = self.cache if judged is None else judged, self.weights[place]
        with full_precision():
            error = self._build.surrogate.learned((m, -sign * values[place]) for m, values in known.items())
        return full_precision()(error)

    def prescreen(self, candidates: Sequence[Masks], slots: int, error: Estimate | None = None) -> list[int]:
        """Positions of the candidates that are worth judging, one for each slot.

        Candidates are dealt to the slots in order. A slot's is the one that the fewest of all candidates dominate by
        error and cost objectives; of equals, that with the smaller error.

        Args:
            candidates: As many as slots, or more.
            slots: How many are wanted.
            error: Such as :meth:`learned`; :meth:`surrogate` if left out.
        """
        error = error or self.surrogate
        costs = [[error(masks), *self._verdict.costs(masks)] for masks in candidates]
        return least_dominated(np.array(costs), slots)

    def in_full(self, *, refine: bool) -> Evaluator:
        """The same fitness on all validation images as they are, without races and in fp32.

        Network, data and counters are shared; the cache is not.

        Args:
            refine: Candidates are refined.
        """
        other = copy.copy(self)
        how: dict[str, Any] = {"refine": refine, "refine_from": None, "draft_images": None, "racing": None}
        other.options = replace(self.options, sampling=EVERYTHING, precision="fp32", **how)
        other._build = self._build.with_settings(other.options)
        other._begin()
        return other

    def for_workers(self) -> Evaluator:
        """A copy to be pickled, that has judged nothing: without the user's model and the guard's images."""
        other = copy.copy(self)
        other._user_model, other._guard = self.network, []
        other._forget()
        return other

    def slim(self, masks: Masks) -> nn.Module:
        """The smaller network exactly as it is judged: compensated, BN statistics re-estimated, in eval mode."""
        return copy.deepcopy(self._build(masks))

    @contextmanager
    def masked(self, masks: Masks) -> Iterator[nn.Module]:
        """The user's model under the mask, with the statistics of the network as judged: same outputs as ``slim``.

        Undone at the end; the model stays on the device where it is.
        """
        with masked(self._user_model, self.space, masks, state=self.slim(masks)) as network, evaluating(network):
            yield network

    def map(self, function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
        """``map`` for DEAP's toolbox, ``toolbox.register("map", evaluate.map)``: whole populations reach :meth:`many`.

        Args:
            function: ``toolbox.evaluate``; other functions are mapped one by one.
            *items: The individuals.
        """
        owner: Any = getattr(getattr(function, "func", function), "__self__", None)
        whole = getattr(owner, "map", map) if getattr(owner, "evaluator", None) is self else map
        return list(whole(function, *items))

    def measure(self, network: nn.Module, masks: Masks, data: Data | None = None) -> Values:
        """The objectives' values of a network that is at hand, on all validation data or on other data; not cached.

        Args:
            network: A slimmed (perhaps fine-tuned) network on the evaluator's device.
            masks: What the cost objectives count.
            data: Other data, for instance the test images, once, at the end.
        """
        start = time.perf_counter()
        batches = self._all if data is None else load(data, "data", True, self.options.batch_size, self.device)
        with torch.no_grad(), full_precision():
            run = partial(self.forward, network)
            pairs = zip(batches, self._verdict.dense_outputs(batches), strict=True)
            found = [self._verdict.of_batch(part_of(run, *pair, self.counters)) for pair in pairs]
            measured = self._verdict.measured(network, batches, self.device)
            values = self._verdict.values(masks, found, None, measured)
        self.counters.clock("forward", start, self.device)
        return values

    def on_guard(self, masks: Masks) -> Values:
        """The values on the guard images, which never decide who survives.

        Raises:
            DataError: If there are none.
        """
        if not self._guard:
            raise DataError("there are no guard images; give guard=(inputs, targets) to the Evaluator")
        if masks not in self._guarded:
            self._guarded[masks] = self.measure(self._build(masks), masks, self._guard)
        return self._guarded[masks]

    def _judge(self, masks: Masks, rivals: Rivals | None) -> tuple[Values, bool]:
        """The values, and whether all images were seen."""
        if all(o.of_masks for o in self.objectives):
            return self._verdict.values(masks, []), True
        network = self._build(masks)
        measured = self._verdict.measured(network, self._all, self.device)
        start = time.perf_counter()
        found: list[Found] = []
        losses, estimate = np.zeros(0), None
        with torch.no_grad(), full_precision():
            self._executor.load(network, masks)
            for batch, dense in self._sample:
                found.append(self._verdict.of_batch(part_of(self._executor, batch, dense, self.counters)))
                if self.options.racing is not None:
                    losses = np.append(losses, self._verdict.losses(found[-1]))
                    estimate = rivals.beat(self._verdict.costs(masks), losses) if rivals else None
                    if estimate is not None:
                        break
            values = self._verdict.values(masks, found, estimate, measured)
        if self.options.racing is not None and estimate is None:
            self._losses[masks] = losses
        self.counters.clock("forward", start, self.device)
        return values, estimate is None

    def _draw(self) -> list[tuple[Any, Any]]:
        """The batches of the generation, each with the dense network's outputs for it (None if nobody needs them)."""
        batches = self.options.sampling.draw(self._all, self.generation, self.options.batch_size)
        return list(zip(batches, self._verdict.dense_outputs(batches), strict=True))
