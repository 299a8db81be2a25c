"""Measure a latency table: every unit of a network alone on a grid of widths, then whole networks for the rest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

from deap_prune.costs.latency import Entry, LatencyTable, Rest, TableLatency, affine_widths
from deap_prune.costs.runtimes import Clock, Setting
from deap_prune.costs.units import Unit, units_of
from deap_prune.errors import ConfigError
from deap_prune.progress import track
from deap_prune.structure.inputs import Call, Inputs
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import slim, unwrap
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.clean_copy import pristine

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Widths of the first grid, besides the narrowest one."""
REFINEMENTS, MOST_POINTS = 3, 9
LADDER = (16, 8, 4, 2)
"""Steps of widths that are tried, in filters."""
PASSES = 3
"""How often the whole table is measured, so that a disturbance of some seconds does not stay in it."""
CALIBRATION = 8
"""Whole networks that the rest is fitted to."""

Point = tuple[int, int]
Timer = Callable[[Sequence[Point]], list[float]]


def latency_table(
    model: nn.Module,
    space: PruningSpace,
    example_inputs: Inputs,
    *,
    runtime: str = "torch",
    batch: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    tolerance: float = 0.1,
    repeats: int = 15,
    out: str | Path | None = None,
    progress: bool = True,
) -> LatencyTable:
    """Measure the latency of a network's layers by their widths, once, for budgets and objectives in milliseconds.

    Every layer, with the normalisation and the activation that follow it, is timed alone on a grid of widths. The grid
    is refined where neighbours differ and the time between them is not on a line. Whole pruned networks are timed for
    the rest: operators between the layers, and what layers take longer in a network than alone. NetAdapt (Yang et al.
    2018, arXiv 1804.03230) and HALP (Shen et al. 2021, arXiv 2110.10811) prune with such tables.

    Args:
        model: The traced network, with any weights; it is not changed.
        space: Its pruning space.
        example_inputs: As for :func:`deap_prune.trace`; copies of the first sample are used.
        runtime: ``"torch"`` (eager) or ``"onnxruntime"``.
        batch: Samples a batch.
        threads: Threads on the CPU; torch's number by default. With one thread its own time counts, so that other
            processes disturb the figures little.
        device: Torch's name of the device, for the runtime ``"torch"``.
        tolerance: Relative difference from which the grid is refined.
        repeats: Timed runs of each width, in turn with the other widths; the median counts.
        out: JSON file, written after every layer; a file of the same setting is completed.
        progress: Show a progress bar.

    Raises:
        RegistryError: If the runtime is unknown.
        ConfigError: If the runtime is not installed or can't run a layer, an argument is illegal, or ``out`` holds a
            table of another setting.
        MaskError: If the space was traced on another network.
    """
    setting = Setting(runtime, batch, torch.get_num_threads() if threads is None else threads, device)
    if repeats < 1 or not tolerance > 0:
        raise ConfigError(f"repeats is {repeats} and tolerance {tolerance}; give 1 or more, and more than 0")
    network = pristine(unwrap(model)).cpu().eval()
    work = _Work(network, space, example_inputs, Clock(setting, repeats), tolerance, None if out is None else Path(out))
    table, units = work.begun(), units_of(network, replace(setting, device="cpu").call(example_inputs))
    by_key = {unit.key: unit for unit in units}
    for number in range(PASSES):
        for key in track(by_key, f"timing layers, {number + 1} of {PASSES}", shown=progress):
            table = work.with_unit(table, by_key[key], number)
        table = work.with_whole(table, number)
    return work.with_rest(table, units)


@dataclass(frozen=True, eq=False)
class _Work:
    """The measurement of a table, which is written after every step."""

    network: nn.Module
    space: PruningSpace
    example_inputs: Inputs
    clock: Clock
    tolerance: float
    out: Path | None

    def begun(self) -> LatencyTable:
        """The table in the file if there is one, or an empty one."""
        if self.out is None or not self.out.is_file():
            return LatencyTable(self.clock.setting.about, self.clock.anchor, ())
        table, about = LatencyTable.load(self.out), self.clock.setting.about
        if dict(table.about) != about:
            raise ConfigError(f"'{self.out}' holds a table of {dict(table.about)}, not of {about}; choose another file")
        self.clock.anchor = table.anchor
        return table

    def with_unit(self, table: LatencyTable, unit: Unit, number: int) -> LatencyTable:
        """The table with the unit's samples of a pass; the first pass chooses the grid."""
        place = next((n for n, entry in enumerate(table.entries) if entry.key == unit.key), None)
        if place is None:
            axes = _axes(self.space, unit)
            entry = _measured_entry(unit, axes, self.clock, self.tolerance)
            return self._stored(replace(table, entries=(*table.entries, entry), rest=None))
        entry = table.entries[place]
        if len(entry.samples) > number:
            return table
        timer, points = _timer(unit, self.clock), list(product(entry.inputs, entry.outputs))
        sample = np.array(timer(points)).reshape(len(entry.inputs), -1).tolist()
        longer = replace(entry, samples=(*entry.samples, tuple(map(tuple, sample))))
        entries = (*table.entries[:place], longer, *table.entries[place + 1 :])
        return self._stored(replace(table, entries=entries, rest=None))

    def with_whole(self, table: LatencyTable, number: int) -> LatencyTable:
        """The table with the whole networks' samples of a pass."""
        if len(table.whole) > number:
            return table
        networks = [slim(self.network, self.space, masks) for masks in calibration_masks(self.space)]
        times = _times_of(networks, self.clock, self.example_inputs)
        return self._stored(replace(table, whole=(*table.whole, tuple(times)), rest=None))

    def with_rest(self, table: LatencyTable, units: Sequence[Unit]) -> LatencyTable:
        """The complete table: the rest fitted by least squares of relative errors, no part negative."""
        numbers = {entry.key: number for number, entry in enumerate(table.entries)}
        uses = tuple((unit.name, numbers[unit.key]) for unit in units)
        if table.rest is not None and table.units == uses:
            return table
        table = replace(table, units=uses, rest=Rest())
        predicted = TableLatency.of(table, self.space)
        counts = np.array([self.space.kept_counts(masks) for masks in calibration_masks(self.space)])
        written = predicted.activations.written(counts) / 1e6
        columns = np.column_stack([np.ones(len(counts)), written, predicted.units(counts).sum(axis=-1)])
        times = table.anchor * np.median(np.array(table.whole), axis=0)
        parts, _ = nnls(columns / times[:, None], np.ones(len(counts)))
        return self._stored(replace(table, rest=Rest(*map(float, parts))))

    def _stored(self, table: LatencyTable) -> LatencyTable:
        table = replace(table, anchor=self.clock.anchor)
        if self.out is not None:
            table.save(self.out)
        return table


@dataclass
class _Grid:
    """The times of a unit so far."""

    inputs: list[int]
    outputs: list[int]
    times: dict[Point, float]

    def complete(self, timer: Timer) -> None:
        """Time the points of the grid that are missing."""
        missing = [point for point in product(self.inputs, self.outputs) if point not in self.times]
        self.times.update(zip(missing, timer(missing), strict=True))


def _measured_entry(unit: Unit, axes: tuple[list[int], list[int]], clock: Clock, tolerance: float) -> Entry:
    """Time a unit on a grid of widths, refine the grid, and try the steps of its output width."""
    timer = _timer(unit, clock)
    grid = _Grid(*axes, {})
    grid.complete(timer)
    for _ in range(REFINEMENTS):
        probes = [probe for axis in (0, 1) for probe in _probes(grid, axis, unit.blocks[axis], tolerance)]
        if not probes:
            break
        bent = [
            (axis, point)
            for (axis, point, expected), time in zip(probes, timer([p for _, p, _ in probes]), strict=True)
            if abs(time - expected) > tolerance / 2 * max(time, expected)
        ]
        for axis, point in bent:
            (grid.inputs, grid.outputs)[axis].append(point[axis])
        grid.inputs.sort()
        grid.outputs.sort()
        grid.complete(timer)
    times = tuple(tuple(grid.times[i, o] for o in grid.outputs) for i in grid.inputs)
    step = _step(unit, grid, timer)
    return Entry(unit.key, tuple(grid.inputs), tuple(grid.outputs), (times,), step)


def _timer(unit: Unit, clock: Clock) -> Timer:
    """A function of (input width, output width) pairs to times."""
    setting = clock.setting

    def timer(points: Sequence[Point]) -> list[float]:
        return clock(
            [setting.prepare(unit.narrowed(*_outputs_of(unit, p)), _moved(unit.call(p[0]), setting)) for p in points]
        )

    return timer


def _axes(space: PruningSpace, unit: Unit) -> tuple[list[int], list[int]]:
    """Input and output widths of the first grid."""
    layer = next(layer for layer in space.layers if layer.name == unit.name)
    blocks = [group.blocks for group in space.groups]
    axes = []
    for ids, dense, parts in zip((layer.inputs, layer.outputs), unit.widths, unit.blocks, strict=True):
        fixed, slopes = affine_widths(space, ids)
        narrowest = round(fixed + float(slopes @ blocks))
        widths = {narrowest, *(_multiple(share * dense, parts) for share in SHARES)}
        axes.append(sorted(width for width in widths if narrowest <= width <= dense))
    return axes[0], [unit.widths[1]] if unit.is_coupled else axes[1]


def _multiple(width: float, blocks: int) -> int:
    return max(blocks, round(width / blocks) * blocks)


def _outputs_of(unit: Unit, point: Point) -> Point:
    """The point with the output width of a unit whose output follows from its input."""
    return (point[0], point[0] * _factor(unit)) if unit.is_coupled else point


def _factor(unit: Unit) -> int:
    """Output channels for each input channel of a coupled unit."""
    n_in, n_out = unit.widths
    return n_out // n_in


def _moved(call: Call, setting: Setting) -> Call:
    return (call[0][0].to(setting.device),), {}


def _probes(grid: _Grid, axis: int, blocks: int, tolerance: float) -> list[tuple[int, Point, float]]:
    """Axis, middle and interpolated time of the cells whose ends differ, along the dense width of the other axis."""
    own, opposite = ((grid.inputs, grid.outputs), (grid.outputs, grid.inputs))[axis]
    probes: list[tuple[int, Point, float]] = []
    for low, high in pairwise(own):
        middle = _multiple((low + high) / 2, blocks)
        ends = [(w, opposite[-1]) if axis == 0 else (opposite[-1], w) for w in (low, high)]
        first, last = (grid.times[end] for end in ends)
        differ = abs(last - first) > tolerance * max(first, last)
        if low < middle < high and differ and len(own) + len(probes) < MOST_POINTS:
            point = (middle, opposite[-1]) if axis == 0 else (opposite[-1], middle)
            probes.append((axis, point, first + (last - first) * (middle - low) / (high - low)))
    return probes


def _step(unit: Unit, grid: _Grid, timer: Timer) -> int:
    """The largest step of the output width of which half saves less than a quarter of what the whole step saves."""
    n_in, n_out = unit.widths
    steps = [step for step in LADDER if step <= n_out // 2 and step % (2 * unit.blocks[1]) == 0]
    if unit.is_coupled or len(grid.outputs) == 1 or not steps:
        return 1
    widths = sorted({n_out, *(n_out - step for step in steps), *(n_out - step // 2 for step in steps)})
    times = dict(zip(widths, timer([(n_in, width) for width in widths]), strict=True))
    dense = times[n_out]
    for step in steps:
        saved, by_half = dense - times[n_out - step], dense - times[n_out - step // 2]
        if saved > 0.02 * dense and by_half < saved / 4:
            return step
    return 1


def calibration_masks(space: PruningSpace) -> list[Masks]:
    """Networks that the rest is fitted to: uniform widths, and random ones."""
    uniform = [Masks.random(space, keep=share, seed=0) for share in np.linspace(1.0, 0.2, CALIBRATION // 2)]
    rng = np.random.default_rng(0)
    return [*uniform, *(random_widths(space, rng) for _ in range(CALIBRATION - len(uniform)))]


def random_widths(space: PruningSpace, rng: np.random.Generator) -> Masks:
    """Masks with a random kept share in every group, around a common one."""
    common = rng.uniform(0.25, 0.9)
    masks = {}
    for group in space.groups:
        width = group.size // group.blocks
        keep = np.zeros((group.blocks, width), dtype=np.bool_)
        keep[:, : max(1, round(width * float(np.clip(common + rng.uniform(-0.3, 0.3), 0.1, 1.0))))] = True
        masks[group.name] = keep.reshape(-1)
    return Masks(masks)


def measured_latencies(
    networks: Sequence[nn.Module],
    table: LatencyTable,
    example_inputs: Inputs,
    *,
    dense: nn.Module | None = None,
    repeats: int = 15,
) -> list[float]:
    """Measured milliseconds of networks in the setting of a table, at the machine's speed that the table holds for.

    Args:
        networks: Pruned networks; they are not changed.
        table: The table.
        example_inputs: As for :func:`latency_table`.
        dense: The dense network: times are taken relative to it, and to its time in the table. By default they are
            relative to the table's anchor, which other processes on the machine slow down less than a network.
        repeats: Timed runs of each network, in turn with the others.
    """
    about = table.about
    clock = Clock(Setting(*(about[name] for name in ("runtime", "batch", "threads", "device"))), repeats)
    cases = [*networks] if dense is None else [dense, *networks]
    ratios = _times_of([copy.deepcopy(network).to(clock.setting.device) for network in cases], clock, example_inputs)
    if dense is None:
        return [table.anchor * ratio for ratio in ratios]
    scale = table.anchor * float(np.median(np.array(table.whole), axis=0)[0]) / ratios[0]  # the first one is dense
    return [scale * ratio for ratio in ratios[1:]]


def _times_of(networks: Sequence[nn.Module], clock: Clock, example_inputs: Inputs) -> list[float]:
    call = clock.setting.call(example_inputs)
    return clock([clock.setting.prepare(network, call) for network in networks])
