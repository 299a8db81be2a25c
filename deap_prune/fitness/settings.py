"""How candidates are evaluated: the options of an Evaluator, and what evaluating has cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from deap_prune.arguments import MOST, check_fields
from deap_prune.errors import ConfigError, did_you_mean
from deap_prune.fitness.objectives import OBJECTIVES
from deap_prune.precision import computes_bf16
from deap_prune.reconstruction.moments import MEMORY
from deap_prune.reconstruction.refine import MEMORY as REFINE_MEMORY
from deap_prune.reconstruction.refine import ROWS

# The settings that an objective's value depends on; a front stores them.
STORED = (
    *("recalibrate", "compensate", "refine", "refine_images", "refine_rows", "select", "recover"),
    *("moment_memory", "refine_memory", "batch_size", "seed"),
)
PHASES = ("plan", "compensate", "recalibrate", "refine", "recover", "forward")
_LEGAL: dict[str, tuple[str | None, ...]] = {
    "recalibrate": ("auto", "data", "closed_form", None),
    "compensate": ("auto", "full", "channel", None),
    "executor": ("auto", "slim", "masked"),
    "precision": ("fp32", "bf16", "auto"),
}
NAMES = "objectives is {!r}; give a tuple of different names, such as ('accuracy', 'flops')"
_LEAST = {"batch_size": 1, "moment_memory": 1, "refine_images": 2, "refine_rows": 1, "recover": 0}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of an Evaluator.

    Attributes:
        objectives: Registry names (``dp.objectives()`` lists them), in the order of the fitness values.
        recalibrate: ``"data"``: BN statistics are re-estimated on the calibration data; ``"closed_form"``: computed
            from the moments of what layers read, without a forward pass; ``"auto"``: in closed form if candidates are
            compensated, no layer by channel and none depthwise, else on the data; None: the dense network's.
        compensate: Layers that read pruned channels are re-fitted in closed form to the channels that stay: ``"full"``
            matrices, ``"channel"``-wise ones, or ``"auto"``: as memory allows, and not at all without calibration
            data. None: never.
        refine: Refine every candidate after that (see :func:`deap_prune.refine`); several times slower.
        refine_images: Most calibration images that refinement uses.
        refine_rows: Positions of a layer's output in each of them, on average. Fewer take less time and memory, and
            lose accuracy.
        select: Refinement selects the filters (see :func:`deap_prune.reconstruction.select_masks`): a candidate's masks
            say how many filters each group keeps.
        recover: Gradient steps of label-free recovery after that (see :func:`deap_prune.recover`); 0: none. Minutes for
            each candidate.
        executor: ``"slim"``: kept weights in one resident network; ``"masked"``: full shapes, on CUDA as a captured
            graph; ``"auto"``: by device.
        precision: Of the forward pass over the validation data: ``"fp32"``, ``"bf16"``, or ``"auto"``: bf16 where the
            processor computes in it.
        augment: Evaluate on shifted and mirrored validation images.
        seed: Seed of their shifts, and of recovery.
        moment_memory: Most MB (2^20 bytes) that the moments of ``compensate="auto"`` may take.
        refine_memory: Most GB (2^30 bytes) that refinement keeps of images on their way through the network and of the
            dense network's targets.
        batch_size: Samples a batch if tensors are given.
        device: ``"auto"``: CUDA if there is a device, else the CPU. Data and network stay there.

    Raises:
        ConfigError: If a value is not legal.
        RegistryError: If an objective is unknown.
    """

    objectives: tuple[str, ...] = ("accuracy", "flops")
    recalibrate: str | None = "auto"
    compensate: str | None = "auto"
    refine: bool = False
    refine_images: int = 1000
    refine_rows: int = ROWS
    select: bool = False
    recover: int = 0
    executor: str = "auto"
    precision: str = "fp32"
    augment: bool = False
    seed: int = 0
    moment_memory: int = MEMORY // 2**20
    refine_memory: float = REFINE_MEMORY
    batch_size: int = 250
    device: str | torch.device = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.objectives, str):
            raise ConfigError(NAMES.format(self.objectives))
        check_fields(self)
        for name, legal in _LEGAL.items():
            if (value := getattr(self, name)) not in legal:
                *most, last = (repr(entry) if entry else "None" for entry in legal)
                raise ConfigError(f"{name} is {value!r}; it is {', '.join(most)} or {last}")
        for name, least in _LEAST.items():
            if not least <= (number := getattr(self, name)) <= MOST:
                default = type(self).__dataclass_fields__[name].default
                raise ConfigError(f"{name} is {number}; give {least} or more, {default} is the default")
        if not self.refine_memory > 0:
            raise ConfigError(f"refine_memory is {self.refine_memory}; give more than 0 (GB), 1 is the default")
        if self.select and not self.refine:
            raise ConfigError("select=True selects filters while a candidate is refined; set refine=True")
        names = self.objectives
        if not names or len(set(names)) < len(tuple(names)):
            raise ConfigError(NAMES.format(names))
        for name in names:
            OBJECTIVES[name]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Settings from keywords.

        Raises:
            ConfigError: If a keyword is unknown (the nearest is named).
        """
        for name in options:
            if name not in (known := cls.names()):
                raise ConfigError(f"unknown option '{name}' of the Evaluator; {did_you_mean(name, known)}")
        return cls(**options)

    def changed(self, **changes: Any) -> Settings:
        """Other settings of the same network and data.

        Raises:
            ConfigError: If a keyword is no option, or one that belongs to the data (objectives, batch_size, device).
        """
        free = {*self.names()} - {"objectives", "batch_size", "device"}
        for name in changes:
            if name not in free:
                raise ConfigError(f"'{name}' can't be changed; {did_you_mean(name, free)}")
        return replace(self, **changes)

    @classmethod
    def names(cls) -> list[str]:
        """Names of the options."""
        return [f.name for f in fields(cls)]

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration data is needed."""
        refit = self.compensate in ("full", "channel") or self.refine or bool(self.recover)
        return refit or self.recalibrate is not None

    def dtype(self, device: torch.device) -> torch.dtype | None:
        """The dtype of the forward pass on this device; None: not cast.

        Raises:
            ConfigError: If bf16 is asked for where it would be emulated.
        """
        if self.precision == "fp32":
            return None
        if computes_bf16(device):
            return torch.bfloat16
        if self.precision == "bf16":
            raise ConfigError(f"precision is 'bf16', which {device} does not compute in; use 'fp32' or 'auto'")
        return None


@dataclass
class Counters:
    """What evaluating has cost so far.

    Attributes:
        candidates: Networks built and evaluated.
        cache_hits: Candidates answered from the cache.
        samples: Samples forwarded.
        seconds: By phase: plan, compensate, recalibrate, refine, recover, forward.
    """

    candidates: int = 0
    cache_hits: int = 0
    samples: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def clock(self, phase: str, start: float, device: torch.device) -> float:
        """Add the time since ``start`` to a phase, and return the time now."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        self.seconds[phase] += now - start
        return now
