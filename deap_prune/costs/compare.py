"""Predicted latencies beside measured ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from torch import nn

from deap_prune.costs.latency import ELSEWHERE, LatencyTable, as_tuples
from deap_prune.costs.measure import calibration_masks, times_of
from deap_prune.costs.runtimes import Clock, Setting
from deap_prune.errors import ConfigError
from deap_prune.files import parse_json
from deap_prune.structure.inputs import Inputs
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import slim, unwrap
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.clean_copy import pristine

REFERENCES = 3
"""One of so many of the table's whole networks is timed again; the first one is dense."""


@dataclass(frozen=True)
class LatencyCheck:
    """Latencies of networks as a table predicts them, and as they are measured.

    Attributes:
        predicted: Milliseconds.
        measured: Milliseconds, at the speed that the machine had when the table was measured.
        setting: Runtime, batch, threads and device in words.
        speedups: For each runtime the dense network's measured time by that of each network.
    """

    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    setting: str
    speedups: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def median_error(self) -> float:
        """Median of the relative errors of the predictions."""
        measured = np.array(self.measured)
        return float(np.median(np.abs(np.array(self.predicted) - measured) / measured))

    @property
    def tau(self) -> float:
        """Kendall's rank correlation of predicted and measured latencies; NaN for fewer than two networks."""
        from scipy.stats import kendalltau

        return float(kendalltau(self.predicted, self.measured).statistic) if len(self.measured) > 1 else float("nan")

    def __str__(self) -> str:
        lines = [f"latency ({self.setting}), predicted and measured:"]
        for place, (guess, ms) in enumerate(zip(self.predicted, self.measured, strict=True)):
            faster = ", ".join(f"{name} {times[place]:.2f}x" for name, times in self.speedups.items())
            lines.append(f"  {place}: {guess:.2f} ms, {ms:.2f} ms ({guess / ms - 1:+.0%}); faster than dense: {faster}")
        return "\n".join([*lines, f"median error {self.median_error:.1%}"])

    def to_json(self) -> str:
        """The comparison as text."""
        return json.dumps({**asdict(self), "median error": self.median_error}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> LatencyCheck:
        """The inverse of :meth:`to_json`.

        Raises:
            ConfigError: If the text is no such comparison.
        """
        try:
            content = parse_json(text)
            predicted, measured = (tuple(map(float, content[name])) for name in ("predicted", "measured"))
            speedups = {str(name): as_tuples(times) for name, times in content["speedups"].items()}
            if {len(predicted), len(measured), *map(len, speedups.values())} != {len(predicted)}:
                raise ValueError("its lists have different lengths")
            return cls(predicted, measured, str(content["setting"]), speedups)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"this is no comparison of latencies ({error!r})") from error


def check_latency(
    networks: Sequence[nn.Module],
    masks: Sequence[Masks],
    table: LatencyTable,
    model: nn.Module,
    space: PruningSpace,
    example_inputs: Inputs,
    *,
    runtimes: Sequence[str] = (),
    repeats: int = 15,
) -> LatencyCheck:
    """Measure networks in the setting of a table, beside the latencies that it predicts for them.

    A machine is slower when it has other work. So networks that were timed for the table are timed again, in turn with
    the others, and all times are scaled by the median of what these took then by what they take now.

    Args:
        networks: Slimmed networks; they are not changed.
        masks: Their masks.
        table: The table.
        model: The dense network.
        space: Its pruning space.
        example_inputs: As for :func:`deap_prune.latency_table`.
        runtimes: Further runtimes on which the speed-up is measured.
        repeats: Timed runs of each network, in turn with the others.

    Raises:
        ConfigError: If the table was measured on another network or another device, or a runtime is not installed.
    """
    if table.about["device"] == ELSEWHERE:
        raise ConfigError("the latency table was measured on another device; networks can't be timed for it here")
    setting = Setting(*(table.about[name] for name in ("runtime", "batch", "threads", "device")))
    dense = pristine(unwrap(model)).cpu().eval()
    references = [slim(dense, space, one) for one in calibration_masks(space)[::REFERENCES]]

    def timed(where: Setting, others: Sequence[nn.Module]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        cases = [*others, *(copy.deepcopy(network).to(where.device).eval() for network in networks)]
        return np.array(times_of(cases, Clock(where, repeats), example_inputs))

    now, ratios = np.split(timed(setting, references), [len(references)])
    then = table.anchor * np.median(np.array(table.whole), axis=0)[::REFERENCES]
    speedups = {setting.runtime: tuple((now[0] / ratios).tolist())}
    for name in runtimes:
        if name not in speedups:
            first, *times = timed(replace(setting, runtime=name, device="cpu"), [dense])
            speedups[name] = tuple(float(first / time) for time in times)
    predicted = table.prediction(space)(np.array([space.kept_counts(one) for one in masks]))
    measured = float(np.median(then / now)) * ratios
    return LatencyCheck(tuple(predicted.tolist()), tuple(measured.tolist()), table.setting, speedups)
