"""Latency tables that no clock has made, and a runtime whose time is a formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import nn

import deap_prune as dp
from deap_prune.costs import LatencyTable, measure, runtimes
from deap_prune.costs.entry import Entry, Point
from deap_prune.costs.prediction import Rest, axis_of
from deap_prune.structure.layers import spec_of

Times = Callable[[int, int], float]
ABOUT = {"runtime": "torch", "batch": 1, "threads": 1, "device": "cpu", "version": "0"}


def timed_by(entry: Entry, function: Times) -> Entry:
    """The entry with times by a formula."""

    def timer(points: tuple[Point, ...]) -> list[float]:
        return [function(*point) for point in points]

    entry = measure.timed(entry, entry.first_points, timer)
    return measure.timed(entry, entry.needed, timer)


def synthetic_times(space: dp.PruningSpace, *, step: int = 1, seed: int = 0) -> dict[str, Times]:
    """For each layer a random function of its widths that never falls when one grows, in stairs of ``step``."""
    rng = np.random.default_rng(seed)

    def function(n_in: int, n_out: int) -> Times:
        rises = [np.concatenate([[0.2], rng.choice([0.0, 0.1, 1.0], -(-n // step))]).cumsum() for n in (n_in, n_out)]
        return lambda i, o: float(rises[0][-(-i // step)] * rises[1][-(-o // step)])

    layers = [layer for layer in space.layers if layer.dim is None]
    return {layer.name: function(len(layer.inputs), len(layer.outputs)) for layer in layers}


def synthetic_table(space: dp.PruningSpace, *, step: int = 1, seed: int = 0) -> LatencyTable:
    """The table of :func:`synthetic_times`."""
    axes = {layer.name: (axis_of(space, layer.inputs), axis_of(space, layer.outputs)) for layer in space.layers}
    times = synthetic_times(space, step=step, seed=seed)
    entries = tuple(timed_by(Entry(name, *axes[name], 4), time) for name, time in times.items())
    units = tuple((entry.key, number) for number, entry in enumerate(entries))
    return LatencyTable(ABOUT, 2.0, entries, units, rest=Rest(0.5, 3.0, 0.25, 1.25))


def comb(n_in: int, n_out: int) -> float:
    """Microseconds of a layer as on a real device: fast kernels for inputs in fours, in stairs of eight outputs."""
    if n_in % 4 == 0 or n_in < 8:
        return 2.0 + 0.1 * n_in * (2 + -(-n_out // 8))
    return 2.0 + 0.2 * n_in * (2 + n_out / 8)


def formula_runtime(monkeypatch: pytest.MonkeyPatch, time: Times = comb) -> None:
    """Register the runtime ``formula``: a virtual clock that every layer with filters puts forward by ``time``."""
    seconds = [0.0]

    def prepare(network: nn.Module, call: Any, setting: runtimes.Setting) -> Callable[[], None]:
        specs = [spec_of(layer) for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
        total = 1e-6 * sum(time(spec.in_channels, spec.out_channels) for spec in specs)

        def run() -> None:
            seconds[0] += total

        return run

    monkeypatch.setitem(runtimes.RUNTIMES, "formula", runtimes.Runtime(prepare, ("torch",)))
    monkeypatch.setattr("deap_prune.costs.runtimes.time.thread_time", lambda: seconds[0])
