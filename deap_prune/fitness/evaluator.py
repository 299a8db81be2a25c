"""Masks in, objectives out: the pruned network is built, its BN statistics re-estimated, and judged on the data."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.batches import (
    Data,
    Forward,
    check_labels,
    count_samples,
    default_forward,
    first_forward,
    resolve_device,
    to_batches,
)
from deap_prune.errors import ConfigError, DataError
from deap_prune.fitness.objectives import OBJECTIVES, judge
from deap_prune.fitness.recalibrate import recalibrate_bn
from deap_prune.structure.masking import masked
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import slim, unwrap
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.trace import check_finite, pristine

Values = tuple[float, ...]
RECALIBRATIONS = ("data", None)


@dataclass
class Counters:
    """What judging has cost so far.

    Attributes:
        candidates: Networks built and judged.
        cache_hits: Candidates answered without.
        samples: Samples forwarded.
        seconds: By phase: slim, recalibrate, forward.
    """

    candidates: int = 0
    cache_hits: int = 0
    samples: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"slim": 0.0, "recalibrate": 0.0, "forward": 0.0})


class Evaluator:
    """The fitness of masks. Call it with masks; equal masks are answered from a cache.

    Args:
        model: The network that was traced; it is copied, and never changed.
        space: Its space.
        calibration: For the BN statistics: batches, or (inputs, targets) tensors. May be None if ``recalibrate`` is.
        validation: What the objectives are measured on; never the test images.
        objectives: Registry names (``dp.objectives()`` lists them), in the order of the fitness values.
        recalibrate: ``"data"``: BN statistics re-estimated on the calibration data; None: the dense network's.
        forward: Function of (model, batch) to (outputs, targets), for batches of other shapes.
        batch_size: Samples a batch where tensors are given.
        device: ``"auto"``: CUDA where there is a device, else the CPU. Data and network stay there.

    Raises:
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
        objectives: Sequence[str] = ("accuracy", "flops"),
        recalibrate: str | None = "data",
        forward: Forward | None = None,
        batch_size: int = 250,
        device: str | torch.device = "auto",
    ) -> None:
        if recalibrate not in RECALIBRATIONS:
            raise ConfigError(f"recalibrate is {recalibrate!r}; it is 'data' or None")
        if isinstance(objectives, str) or not objectives or len(set(objectives)) < len(tuple(objectives)):
            raise ConfigError(
                f"objectives is {objectives!r}; give a tuple of different names, such as ('accuracy', 'flops')"
            )
        self.space = space
        self.objectives = tuple(OBJECTIVES[name] for name in objectives)
        self.recalibrate = recalibrate
        self.forward = forward or default_forward
        self.device = resolve_device(device)
        self.counters = Counters()
        self._user_model = model
        self.network = pristine(unwrap(model)).to(self.device)
        check_finite(self.network)
        on_data = any(o.batch for o in self.objectives)
        self._validation = _load(validation, "validation", on_data, batch_size, self.device)
        self._calibration = _load(calibration, "calibration", recalibrate is not None, batch_size, self.device)
        self.cache: dict[Masks, Values] = {}
        self._dense = self._dense_outputs()

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
        """The dense network: ``flops`` and ``params`` in whole numbers, and its ``values`` (own BN statistics)."""
        everything = Masks({})
        values = self.measure(self.network, everything)
        return {
            "flops": self.space.flops,
            "params": self.space.params,
            "values": dict(zip(self.names, values, strict=True)),
        }

    @property
    def settings(self) -> dict[str, Any]:
        """How candidates are judged; stored with a front."""
        return {"recalibrate": self.recalibrate}

    def __call__(self, masks: Masks) -> Values:
        """The objectives' values of a pruned network, in order.

        Raises:
            MaskError: If the masks don't fit the space.
        """
        if masks in self.cache:
            self.counters.cache_hits += 1
            return self.cache[masks]
        needs_network = any(o.batch for o in self.objectives)
        values = self.measure(self.slim(masks), masks) if needs_network else self._costs(masks)
        self.cache[masks] = values
        self.counters.candidates += 1
        return values

    def many(self, masks: Iterable[Masks]) -> list[Values]:
        """Values of several candidates, in order; equal ones are judged once."""
        return [self(m) for m in masks]

    def slim(self, masks: Masks) -> nn.Module:
        """The smaller network exactly as it is judged: BN statistics re-estimated, in eval mode, on the device."""
        start = time.perf_counter()
        network = slim(self.network, self.space, masks)
        start = self._clock("slim", start)
        if self.recalibrate == "data":
            with _full_precision():
                recalibrate_bn(network, self._calibration, forward=self.forward)
            self.counters.samples += sum(count_samples(b) for b in self._calibration)
            self._clock("recalibrate", start)
        return network

    @contextmanager
    def masked(self, masks: Masks) -> Iterator[nn.Module]:
        """The user's model under the mask, with the statistics of the network as judged: same outputs as ``slim``.

        Undone at the end; the model stays on the device where it is.
        """
        with masked(self._user_model, self.space, masks, state=self.slim(masks)) as network:
            modes = {module: module.training for module in network.modules()}
            network.eval()
            try:
                yield network
            finally:
                for module, mode in modes.items():
                    module.training = mode

    def map(self, function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
        """``map`` for DEAP's toolbox, ``toolbox.register("map", evaluate.map)``: whole populations reach :meth:`many`.

        Args:
            function: ``toolbox.evaluate``; other functions are mapped one by one.
            *items: The individuals.
        """
        owner: Any = getattr(getattr(function, "func", function), "__self__", None)
        if len(items) == 1 and getattr(owner, "evaluator", None) is self and hasattr(owner, "evaluate_many"):
            return list(owner.evaluate_many(list(items[0])))
        return list(map(function, *items))

    def measure(self, network: nn.Module, masks: Masks, data: Data | None = None) -> Values:
        """The objectives' values of a network that is at hand, on the validation data or on other data; not cached.

        Args:
            network: A slimmed (perhaps fine-tuned) network on the evaluator's device.
            masks: What the cost objectives count.
            data: Other data, for instance the test images, once, at the end.
        """
        start = time.perf_counter()
        batches = self._validation if data is None else _load(data, "data", True, 250, self.device)
        dense = self._dense if data is None else self._dense_outputs(batches)
        with torch.no_grad(), _full_precision():
            outputs = [self.forward(network, batch) for batch in batches]
            again = [partial(self._rerun, network, batch) for batch in batches]
            parts = [(out, target, d, r) for (out, target), d, r in zip(outputs, dense, again, strict=True)]
            found = [o.of_masks(self.space, masks) if o.of_masks else judge(o, parts) for o in self.objectives]
        self.counters.samples += sum(count_samples(b) for b in batches)
        self._clock("forward", start)
        return tuple(self._guard(v, k) for k, v in enumerate(found))

    def _rerun(self, network: nn.Module, batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """Outputs on a changed batch."""
        self.counters.samples += count_samples(batch)
        batch = tree_map(lambda x: _channels_last(change(x)) if isinstance(x, Tensor) else x, batch)
        return self.forward(network, batch)[0]

    def _costs(self, masks: Masks) -> Values:
        costs = [o.of_masks(self.space, masks) for o in self.objectives if o.of_masks]
        return tuple(self._guard(cost, k) for k, cost in enumerate(costs))

    def _guard(self, value: float, k: int) -> float:
        """NaN and infinity become the objective's worst value."""
        objective = self.objectives[k]
        if value == value and abs(value) != float("inf"):
            return value
        warnings.warn(f"{objective.name} was {value}; counted as the worst value, {objective.worst:g}", stacklevel=4)
        return objective.worst

    def _clock(self, phase: str, start: float) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.counters.seconds[phase] += now - start
        return now

    @torch.no_grad()
    def _dense_outputs(self, batches: list[Any] | None = None) -> list[Any]:
        """The dense network's outputs where an objective needs them; one batch is always run, to check the labels."""
        batches = self._validation if batches is None else batches
        needed = any(o.needs_dense for o in self.objectives)
        found: list[Any] = []
        with _full_precision():
            for number, batch in enumerate(batches):
                if needed or number == 0:
                    outputs, _ = first_forward(self.forward, self.network, batch, name="validation")
                found.append(outputs if needed else None)
        for batch in batches[1:] if self.forward is default_forward else ():
            check_labels(outputs, batch[1], name="validation")
        return found


def _load(data: Data | None, name: str, needed: bool, batch_size: int, device: torch.device) -> list[Any]:
    if data is None and needed:
        raise DataError(f"{name} data is needed: give {name}=(inputs, targets) tensors or an iterable of such batches")
    if data is None:
        return []
    batches = to_batches(data, name=name, batch_size=batch_size, device=device)
    return tree_map(lambda x: _channels_last(x) if isinstance(x, Tensor) else x, batches)


def _channels_last(x: Tensor) -> Tensor:
    """Channels innermost: convolutions run faster so, forward. The weights stay as they are, for whoever trains."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@contextmanager
def _full_precision() -> Iterator[None]:
    """fp32 means fp32: TF32 off, and deterministic cuDNN choices, so that a resumed run judges alike."""
    cudnn = torch.backends.cudnn
    before = (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic)
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = False, False, True
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
