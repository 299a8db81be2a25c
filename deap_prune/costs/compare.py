"""Predicted latencies beside measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from deap_prune.costs.latency import LatencyTable
from deap_prune.costs.measure import measured_latencies
from deap_prune.structure.inputs import Inputs
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace


@dataclass(frozen=True)
class LatencyCheck:
    """Latencies of networks as a table predicts them, and as they are measured.

    Attributes:
        predicted: Milliseconds.
        measured: Milliseconds.
        setting: Runtime, batch, threads and device in words.
    """

    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    setting: str

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
        pairs = zip(self.predicted, self.measured, strict=True)
        lines += [
            f"  {place}: {guess:.2f} ms, {ms:.2f} ms ({guess / ms - 1:+.0%})" for place, (guess, ms) in enumerate(pairs)
        ]
        return "\n".join([*lines, f"median error {self.median_error:.1%}"])


def check_latency(
    networks: Sequence[nn.Module],
    masks: Sequence[Masks],
    table: LatencyTable,
    model: nn.Module,
    space: PruningSpace,
    example_inputs: Inputs,
    *,
    repeats: int = 15,
) -> LatencyCheck:
    """Measure networks in the setting of a table, beside the latencies that it predicts for them.

    Args:
        networks: Slimmed networks.
        masks: Their masks.
        table: The table.
        model: The dense network.
        space: Its pruning space.
        example_inputs: As for :func:`deap_prune.latency_table`.
        repeats: Timed runs of each network, in turn with the others.

    Raises:
        ConfigError: If the table was measured on another network or another device.
    """
    predicted = table.prediction(space)(np.array([space.kept_counts(one) for one in masks]))
    measured = measured_latencies(networks, table, model, space, example_inputs, repeats=repeats)
    return LatencyCheck(tuple(predicted.tolist()), tuple(measured), table.setting)
