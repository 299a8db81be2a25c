"""How candidates are judged: the options of an Evaluator, and what judging has cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from deap_prune.data.draws import EVERYTHING, Sampling
from deap_prune.errors import ConfigError, did_you_mean
from deap_prune.fitness.objectives import OBJECTIVES, Objective
from deap_prune.reconstruction.moments import MEMORY

# What figures depend on: stored with a front.
JUDGED = ("recalibrate", "compensate", "refine", "refine_images", "gram_memory", "batch_size")
PHASES = ("plan", "compensate", "recalibrate", "refine", "forward")
_LEGAL: dict[str, tuple[str | None, ...]] = {
    "recalibrate": ("auto", "data", "closed_form", None),
    "compensate": ("auto", "full", "channel", None),
    "executor": ("auto", "slim", "masked"),
    "precision": ("fp32", "bf16", "auto"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of an Evaluator.

    Attributes:
        objectives: Registry names (``dp.objectives()`` lists them), in the order of the fitness values.
        recalibrate: ``"data"``: BN statistics re-estimated on the calibration data; ``"closed_form"``: propagated from
            the moments of what layers read, without a forward pass; ``"auto"``: in closed form where candidates are
            compensated, no layer by channel and none depthwise, else on the data (and stored as that); None: the
            dense network's.
        compensate: Layers that read pruned channels are re-fitted to those that stay, in closed form: ``"full"``
            matrices, ``"channel"``-wise ones, or ``"auto"``: as memory allows, and not at all without calibration
            data. None: never.
        refine: Every candidate is refined after that (see :func:`deap_prune.refine`); takes several times as long.
        refine_images: Calibration images that refinement uses at most, each with 16 positions of a layer's output.
        draft_images: The same, in place of ``refine_images``, while a search compares candidates; None: as many.
        refine_from: Refined from this generation of a search on, parents included (they are judged again), 0 being the
            first population; None: never.
        executor: ``"slim"``: kept weights in one resident network; ``"masked"``: full shapes, on CUDA as a captured
            graph; ``"auto"``: by device.
        precision: ``"fp32"``; ``"bf16"``, for the forward pass over the validation data; ``"auto"``: bf16 where the
            processor computes in it.
        sampling: Which validation images a generation is judged on.
        gram_memory: Most MB (2^20 bytes) that the matrices of ``compensate="auto"`` may take.
        racing: Confidence, such as 0.99, at which a candidate is dropped before it has seen all images; None: never.
        batch_size: Samples a batch where tensors are given.
        device: ``"auto"``: CUDA where there is a device, else the CPU. Data and network stay there.

    Raises:
        ConfigError: If a value is not legal.
        RegistryError: If an objective is unknown.
    """

    objectives: tuple[str, ...] = ("accuracy", "flops")
    recalibrate: str | None = "auto"
    compensate: str | None = "auto"
    refine: bool = False
    refine_images: int = 1000
    draft_images: int | None = None
    refine_from: int | None = None
    executor: str = "auto"
    precision: str = "fp32"
    sampling: Sampling = EVERYTHING
    gram_memory: int = MEMORY // 2**20
    racing: float | None = None
    batch_size: int = 250
    device: str | torch.device = "auto"

    def __post_init__(self) -> None:
        for name, legal in _LEGAL.items():
            if (value := getattr(self, name)) not in legal:
                *most, last = (repr(entry) if entry else "None" for entry in legal)
                raise ConfigError(f"{name} is {value!r}; it is {', '.join(most)} or {last}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; give 1 or more samples, 250 is the default")
        if self.gram_memory < 1:
            raise ConfigError(f"gram_memory is {self.gram_memory}; give 1 or more MB, 2048 is the default")
        if self.refine_images < 2:
            raise ConfigError(f"refine_images is {self.refine_images}; give 2 or more, 1000 is the default")
        if self.draft_images is not None and self.draft_images < 2:
            raise ConfigError(f"draft_images is {self.draft_images}; give 2 or more, such as 250, or None")
        if self.draft_images is not None and not (self.refine or self.refine_from is not None):
            raise ConfigError("draft_images are of candidates that are refined; set refine_from, 0 for all generations")
        if self.draft_images is not None and self.draft_images > self.refine_images:
            raise ConfigError(f"draft_images is {self.draft_images}, above refine_images, {self.refine_images}")
        if self.refine_from is not None and self.refine_from < 0:
            raise ConfigError(f"refine_from is {self.refine_from}; give a generation, 0 being the first population")
        names = self.objectives
        if isinstance(names, str) or not names or len(set(names)) < len(tuple(names)):
            raise ConfigError(
                f"objectives is {names!r}; give a tuple of different names, such as ('accuracy', 'flops')"
            )
        found = [OBJECTIVES[name] for name in names]
        if self.racing is not None:
            if not 0.5 < self.racing < 1:
                raise ConfigError(f"racing is {self.racing}; give a confidence between 0.5 and 1, such as 0.99")
            if any(o.of_network for o in found):
                raise ConfigError(f"racing knows nothing of what is measured on a network; objectives is {names!r}")
            on_data = [o for o in found if o.batch is not None]
            if len(on_data) != 1 or on_data[0].finish is not Objective.finish:
                raise ConfigError(
                    f"racing needs exactly one objective that is a mean over data; objectives is {names!r}"
                )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Settings from keywords.

        Raises:
            ConfigError: If a keyword is unknown (the nearest is named).
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(f"unknown option '{name}' of the Evaluator; {did_you_mean(name, known)}")
        return cls(**options)

    def at(self, generation: int) -> Settings:
        """As candidates of a generation are judged: ``refine`` says whether they are refined."""
        return replace(self, refine=self.refine or (self.refine_from is not None and generation >= self.refine_from))

    @property
    def images_to_refine(self) -> int:
        """How many calibration images a candidate's refinement uses."""
        return self.refine_images if self.draft_images is None else self.draft_images

    @property
    def calibrates(self) -> bool:
        """Whether calibration data is needed."""
        asked = self.compensate in ("full", "channel") or self.refine or self.refine_from is not None
        return asked or self.recalibrate is not None

    @property
    def by_generation(self) -> bool:
        """Whether a candidate's values depend on the generation it is judged in."""
        return self.sampling.redraw or self.racing is not None or self.refine_from not in (None, 0)

    def dtype(self, device: torch.device) -> torch.dtype | None:
        """What the forward pass is cast to on this device; None: not at all.

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


def computes_bf16(device: torch.device) -> bool:
    """The device has bf16 instructions (a CPU: AVX512_BF16, AMX or Arm's BF16)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    path = Path("/proc/cpuinfo")
    if device.type != "cpu" or not path.is_file():
        return False
    lines = (line for line in path.read_text().splitlines() if line.lower().startswith(("flags", "features")))
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(next(lines, "").split()))


@dataclass
class Counters:
    """What judging has cost so far.

    Attributes:
        candidates: Networks built and judged.
        dropped: Those of them that racing dropped early.
        cache_hits: Candidates answered without.
        samples: Samples forwarded.
        seconds: By phase: plan, compensate, recalibrate, refine, forward.
    """

    candidates: int = 0
    dropped: int = 0
    cache_hits: int = 0
    samples: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def clock(self, phase: str, start: float, device: torch.device) -> float:
        """Book the time since ``start``; gives the time now."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        self.seconds[phase] += now - start
        return now
