"""Latency tables that no clock has made."""

from __future__ import annotations

import numpy as np

import deap_prune as dp
from deap_prune.costs import LatencyTable
from deap_prune.costs.latency import Entry, Rest

ABOUT = {"runtime": "torch", "batch": 1, "threads": 1, "device": "cpu", "version": "0"}


def synthetic_table(space: dp.PruningSpace, *, step: int = 1, seed: int = 0) -> LatencyTable:
    """Random times that never fall when a width grows, with stairs, on an uneven grid."""
    rng = np.random.default_rng(seed)
    entries = []
    for layer in space.layers:
        if layer.dim is None:
            axes = [
                sorted({1, n, *rng.integers(1, n + 1, 2).tolist()}) for n in (len(layer.inputs), len(layer.outputs))
            ]
            rows = rng.choice([0.0, 0.1, 1.0], [len(axes[0]), len(axes[1])])
            times = 0.05 + rows.cumsum(axis=0).cumsum(axis=1)
            sample = tuple(map(tuple, times.tolist()))
            entries.append(Entry(layer.name, tuple(axes[0]), tuple(axes[1]), (sample,), step))
    units = tuple((entry.key, number) for number, entry in enumerate(entries))
    return LatencyTable(ABOUT, 2.0, tuple(entries), units, rest=Rest(0.5, 3.0, 1.25))
