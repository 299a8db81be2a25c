"""The fitness: masks in, values out. A pruned network is built, and its objectives are measured on the data."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from deap_prune.arguments import CountOrZero, checked
from deap_prune.data.batches import Data, Forward, Loss, default_forward, resolve_device
from deap_prune.data.check_batches import check_batches, check_draws
from deap_prune.data.devices import name_of
from deap_prune.data.draws import augmented, load_batches
from deap_prune.errors import DataError
from deap_prune.fitness.candidate import CandidateBuilder
from deap_prune.fitness.execution import Executor, make_executor
from deap_prune.fitness.fold import find_pairs
from deap_prune.fitness.objective_set import ObjectiveSet, Values, forwarded
from deap_prune.fitness.objectives import OBJECTIVES, on_space, with_loss
from deap_prune.fitness.serial import one_at_a_time
from deap_prune.fitness.settings import Counters, Settings
from deap_prune.precision import full_precision
from deap_prune.randomness import same_draws
from deap_prune.structure.inputs import evaluating
from deap_prune.structure.masking import masked
from deap_prune.structure.masks import Masks, listed_masks
from deap_prune.structure.slim import check_network, unwrap
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.clean_copy import check_finite, pristine


class Evaluator:
    """The fitness of masks: a function of the masks alone. Equal ones are answered from a cache; threads take turns.

    Args:
        model: The network that was traced; it is copied, and never changed.
        space: Its space.
        calibration: Batches, or (inputs, targets) tensors, for compensation and BN statistics.
        validation: The data that the objectives are measured on; never the test images.
        guard: Held-out images that never decide anything, for :meth:`on_guard`.
        forward: Function of (model, batch) to (outputs, targets), for batches of other shapes.
        loss: The objective ``loss``, if not cross-entropy: function of (outputs, targets) to a batch's mean, or to one
            value a sample.
        **options: Fields of :class:`Settings`: objectives, recalibrate, compensate, moment_memory, refine, executor,
            precision, augment, batch_size, device.

    Raises:
        ConfigError: If an option is unknown or not legal.
        RegistryError: If an objective is unknown.
        DataError: If data is missing, empty or not finite, or labels are outside the network's classes.
        ModelError: If the weights are not finite.
        MaskError: If the space was traced on another network.
    """

    @checked
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
        self.space = space
        self.objectives = tuple(on_space(with_loss(OBJECTIVES[name], loss), space) for name in self.options.objectives)
        self.forward = forward or default_forward
        self.device = resolve_device(self.options.device)
        self.counters = Counters()
        self._user_model = model
        self.network = pristine(unwrap(model)).to(self.device)
        check_finite(self.network)
        check_network(self.network, space)
        how: dict[str, Any] = {"batch_size": self.options.batch_size, "device": self.device}
        on_data = any(o.of_masks is None for o in self.objectives)
        self._validation = load_batches(validation, "validation", needed=on_data, **how)
        self._calibration = load_batches(calibration, "calibration", needed=self.options.needs_calibration, **how)
        self._guard = load_batches(guard, "guard", needed=False, **how)
        self._objectives = ObjectiveSet(self.objectives, space, self.network, self.forward, self.options.seed)
        with torch.no_grad(), same_draws(self.options.seed):
            runs, check = (self.forward, self.network), self._objectives.check
            for name, batches in (("validation", self._validation), ("guard", self._guard)):
                check_batches(*runs, batches, name=name, check=check)
            check_batches(*runs, self._calibration, name="calibration", check=None)
            check_draws(*runs, self._validation or self._calibration)
        parts = (self.network, space, self._calibration)
        self._build = CandidateBuilder(*parts, settings=self.options, forward=self.forward, counters=self.counters)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Without the executor: a captured graph can't be copied, and it is quickly made again."""
        return {name: value for name, value in vars(self).items() if name != "_executor"}

    def _forget(self) -> None:
        self._cache: dict[Masks, Values] = {}
        self._guard_cache: dict[Masks, Values] = {}

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
        facts = {"flops": self.space.flops, "params": self.space.params, "values": values}
        if self.space.latency_of is not None:
            facts["latency"] = float(self.space.latency_of(self.space.sizes))
        return facts | ({"device": name_of(self.device)} if self.is_timed else {})

    @property
    def settings(self) -> dict[str, Any]:
        """How candidates are evaluated: stored with a front, and options of an Evaluator that evaluates alike."""
        return self._build.stored_settings

    @property
    def compensates(self) -> bool:
        """Whether layers are re-fitted, so that :meth:`surrogate` says how good a candidate is."""
        return self.options.compensate is not None

    @property
    def learns(self) -> bool:
        """Whether candidates are refined and measured on data, so that :meth:`learned` fits the surrogate to them."""
        return self.options.refine and any(o.batch is not None for o in self.objectives)

    @property
    def is_timed(self) -> bool:
        """Whether an objective is a measurement of time, which differs from one run to the next."""
        return any(o.of_network for o in self.objectives)

    @property
    def cache(self) -> Mapping[Masks, Values]:
        """Values of all candidates so far, read-only, in the order of their evaluation."""
        return MappingProxyType(self._cache)

    def __call__(self, masks: Masks) -> Values:
        """The objectives' values of a pruned network, in order; ``MaskError`` if the masks don't fit the space."""
        return self.many([masks])[0]

    def many(
        self, masks: Iterable[Masks], *, compute: Callable[[list[Masks]], Iterable[Values]] | None = None
    ) -> list[Values]:
        """Values of several candidates, in order; equal ones are evaluated once.

        Args:
            masks: The candidates.
            compute: Evaluates the candidates that the cache lacks, on workers for example; :meth:`compute` of each by
                default.
        """
        masks = listed_masks(masks)
        missing = [m for m in dict.fromkeys(masks) if m not in self._cache]
        values = map(self.compute, missing) if compute is None else compute(missing)
        for candidate, its_values in zip(missing, values, strict=True):
            self._cache[candidate] = its_values
            self.counters.candidates += 1
        self.counters.cache_hits += len(masks) - len(missing)
        return [self._cache[m] for m in masks]

    @one_at_a_time
    def compute(self, masks: Masks) -> Values:
        """The values of a candidate, computed without the cache."""
        if all(o.of_masks for o in self.objectives):
            return self._objectives.values(masks, [])
        network, kept = self._build(masks)
        timed = self._objectives.timed(network, self._validation, self.device)
        start = time.perf_counter()
        with torch.no_grad(), full_precision(), same_draws(self.options.seed):
            self._executor.load(network, kept)
            batches = [
                self._objectives.of_batch(forwarded(self._executor, batch, dense, self.counters))
                for batch, dense in self._evaluated_on
            ]
            values = self._objectives.values(masks, batches, timed)
        self.counters.clock("forward", start, self.device)
        return values

    @checked
    def restore(
        self, values: Mapping[Masks, Values], *, candidates: CountOrZero, dense: Mapping[str, float] | None = None
    ) -> None:
        """Set the evaluator to the state of an earlier process.

        Args:
            values: Cached values.
            candidates: Networks built and evaluated so far.
            dense: Values of the dense network, which are measured again if a time is among them.
        """
        self._cache.update(values)
        self.counters.candidates = candidates
        self.dense["values"].update(dense or {})

    @cached_property
    def _evaluated_on(self) -> list[tuple[Any, Any]]:
        """The validation batches, each with the dense network's outputs (None if no objective needs them)."""
        batches = augmented(self._validation, self.options.seed) if self.options.augment else self._validation
        return list(zip(batches, self._objectives.dense_outputs(batches), strict=True))

    @cached_property
    def _executor(self) -> Executor:
        return make_executor(
            self.options.executor,
            self.network,
            self.space,
            forward=self.forward,
            pairs=find_pairs(self.network, self.forward, self._validation[0]),
            dtype=self.options.dtype(self.device),
            device=self.device,
        )

    def costs(self, masks: Masks) -> list[float]:
        """The objectives that follow from the masks alone, as minimised values."""
        return self._objectives.costs(masks)

    @checked
    @one_at_a_time
    def surrogate(self, masks: Masks) -> float:
        """The error that compensation leaves, in closed form, without a forward pass; smaller is better.

        See :class:`deap_prune.reconstruction.ReconstructionError`.

        Raises:
            DataError: If there is no calibration data.
            MaskError: If the masks don't fit the space.
        """
        with full_precision():
            return self._build.surrogate(masks)

    @checked
    def output_distance(self, masks: Masks) -> float:
        """See :class:`deap_prune.reconstruction.output_distance.OutputDistance`; it raises what surrogate raises."""
        with full_precision(), same_draws(self.options.seed):
            return self._build.output_distance(masks)

    def learned(self, evaluated: Mapping[Masks, Values] | None = None) -> Callable[[Masks], float] | None:
        """The surrogate with per-layer weights fitted to the evaluated candidates, or None unless :attr:`learns`.

        By :meth:`deap_prune.reconstruction.ReconstructionError.learned`, for the first objective measured on data.

        Args:
            evaluated: Values of candidates; the cache if left out.
        """
        if not self.learns:
            return None
        place = next(k for k, o in enumerate(self.objectives) if o.batch is not None)
        known, sign = self._cache if evaluated is None else evaluated, self.weights[place]
        with full_precision():
            error = self._build.surrogate.learned((m, -sign * values[place]) for m, values in known.items())
        return full_precision()(error)

    @checked
    @one_at_a_time
    def slim(self, masks: Masks) -> nn.Module:
        """The smaller network exactly as it is evaluated: compensated, BN statistics set, in eval mode."""
        return copy.deepcopy(self._build(masks).network)

    @checked
    @one_at_a_time
    def selected(self, masks: Masks) -> Masks:
        """Masks of equal widths, with filters selected by refinement (:attr:`Settings.select`); raises as a call."""
        return self._build.selected(masks)

    @checked
    @contextmanager
    def masked(self, masks: Masks) -> Iterator[nn.Module]:
        """The user's model under the mask, with the weights of :meth:`slim`, so that it gives the same outputs.

        Undone at the end; the model stays on its device.
        """
        built = one_at_a_time(lambda: copy.deepcopy(self._build(masks)))()
        with masked(self._user_model, self.space, built.masks, state=built.network) as network, evaluating(network):
            yield network

    @checked
    def measure(self, network: nn.Module, masks: Masks, data: Data | None = None) -> Values:
        """The objectives' values of a given network, on all validation data or on other data; not cached.

        Args:
            network: A slimmed (perhaps fine-tuned) network on the evaluator's device.
            masks: Masks that the cost objectives count.
            data: Other data, for example the test images, once, at the end.
        """
        start = time.perf_counter()
        how: dict[str, Any] = {"batch_size": self.options.batch_size, "device": self.device}
        batches = self._validation if data is None else load_batches(data, "data", needed=True, **how)
        with torch.no_grad(), full_precision(), same_draws(self.options.seed):
            run = partial(self.forward, network)
            pairs = zip(batches, self._objectives.dense_outputs(batches), strict=True)
            values = [self._objectives.of_batch(forwarded(run, *pair, self.counters)) for pair in pairs]
            timed = self._objectives.timed(network, batches, self.device)
            measured = self._objectives.values(masks, values, timed)
        self.counters.clock("forward", start, self.device)
        return measured

    @one_at_a_time
    def on_guard(self, masks: Masks) -> Values:
        """The values on the guard images; without any a DataError."""
        if not self._guard:
            raise DataError("there are no guard images; give guard=(inputs, targets) to the Evaluator")
        if masks not in self._guard_cache:
            self._guard_cache[masks] = self.measure(self._build(masks).network, masks, self._guard)
        return self._guard_cache[masks]

    def with_settings(self, **changes: Any) -> Evaluator:
        """An evaluator with other settings that shares network, data, moments and counters, with an empty cache.

        Args:
            **changes: Fields of :class:`Settings`, but not ``objectives``, ``batch_size`` or ``device``.
        """
        other = copy.copy(self)
        vars(other).pop("_evaluated_on", None)
        other.options = self.options.changed(**changes)
        other._build = self._build.with_settings(other.options)
        other._forget()
        return other

    def for_workers(self) -> Evaluator:
        """A copy to be pickled, with an empty cache, and without the user's model and the guard images."""
        other = copy.copy(self)
        other._user_model, other._guard = self.network, []
        other._forget()
        return other

    def map(self, function: Callable[..., Any], *items: Sequence[Any]) -> list[Any]:
        """``map`` for ``toolbox.register("map", evaluate.map)``: whole populations are evaluated by :meth:`many`.

        Args:
            function: ``toolbox.evaluate``; other functions are mapped one by one.
            *items: The individuals.
        """
        owner: Any = getattr(getattr(function, "func", function), "__self__", None)
        whole = getattr(owner, "map", map) if getattr(owner, "evaluator", None) is self else map
        return list(whole(function, *items))
