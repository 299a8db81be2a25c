"""Measure a latency table: every unit of a network alone, then whole networks for the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

from deap_prune.arguments import Count, checked
from deap_prune.costs.entry import Axis, Entry, Point
from deap_prune.costs.latency import LatencyTable
from deap_prune.costs.prediction import Rest, axis_of
from deap_prune.costs.runtimes import Clock, Setting
from deap_prune.costs.units import Unit, units_of
from deap_prune.data.batches import resolve_device
from deap_prune.errors import ConfigError
from deap_prune.progress import Shown, track
from deap_prune.structure.inputs import Call, Inputs
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import check_network, slim, unwrap
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.clean_copy import pristine

PASSES = 2
"""How often the whole table is measured, so that a disturbance of some seconds does not stay in it."""
CALIBRATION = 16
"""Whole networks that the rest is fitted to."""
PRIOR = 0.3
"""Relative error that the rest accepts to give the units no part in the time: other features follow the FLOPs too."""
TOGETHER = 32
"""Narrowed copies of a unit in memory."""

Timer = Callable[[Sequence[Point]], list[float]]


@checked
def latency_table(
    model: nn.Module,
    space: PruningSpace,
    example_inputs: Inputs,
    *,
    runtime: str = "torch",
    batch: Count = 1,
    threads: Count | None = None,
    device: str = "cpu",
    repeats: Count = 9,
    out: str | Path | None = None,
    progress: Shown = True,
) -> LatencyTable:
    """Measure the latency of a network's layers by their widths, once, for budgets and objectives in milliseconds.

    Every layer, with the normalisation and the activation that follow it, is timed alone: at runs of consecutive
    widths of each side, which show fast kernels and stairs, and on a grid of both. Whole pruned networks are timed for
    the rest: operators between the layers, and what layers take longer in a network than alone. NetAdapt (Yang et al.
    2018, arXiv 1804.03230) and HALP (Shen et al. 2021, arXiv 2110.10811) prune with such tables.

    Args:
        model: The traced network, with any weights; it is not changed.
        space: Its pruning space.
        example_inputs: As for :func:`deap_prune.trace`; copies of the first sample are used.
        runtime: ``"torch"`` (eager), ``"onnxruntime"`` or ``"openvino"``.
        batch: Samples a batch.
        threads: Threads on the CPU; torch's number by default. With one thread its own time counts, so that other
            processes disturb the figures little.
        device: Torch's name of the device, for the runtime ``"torch"``.
        repeats: Timed runs of each width, in turn with the other widths; the median counts.
        out: JSON file, written after every layer; a file of the same setting and network is completed.
        progress: Show progress; "bar" or "log" choose its form.

    Raises:
        RegistryError: If the runtime is unknown.
        ConfigError: If the runtime is not installed or can't run a layer, an argument is illegal, or ``out`` holds a
            table of another setting or network.
        MaskError: If the space was traced on another network.
    """
    resolve_device(device)
    setting = Setting(runtime, batch, torch.get_num_threads() if threads is None else threads, device)
    check_network(unwrap(model), space)
    network = pristine(unwrap(model)).cpu().eval()
    work = _Work(network, space, example_inputs, Clock(setting, repeats), None if out is None else Path(out))
    units = units_of(network, replace(setting, device="cpu").call(example_inputs))
    table = work.begun(units)
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
    out: Path | None

    def begun(self, units: Sequence[Unit]) -> LatencyTable:
        """The table in the file if there is one, or an empty one."""
        about = {**self.clock.setting.about, "network": _digest(self.space, units)}
        if self.out is None or not self.out.is_file():
            return LatencyTable(about, self.clock.anchor, ())
        table = LatencyTable.load(self.out)
        if dict(table.about) != about:
            raise ConfigError(f"'{self.out}' holds a table of {dict(table.about)}, not of {about}; choose another file")
        self.clock.anchor = table.anchor
        return table

    def with_unit(self, table: LatencyTable, unit: Unit, number: int) -> LatencyTable:
        """The table with the unit's samples of a pass; the first pass looks for its kernels."""
        place = next((n for n, entry in enumerate(table.entries) if entry.key == unit.key), len(table.entries))
        timer = _timer(unit, self.clock)
        if place == len(table.entries):
            entry = begun_entry(self.space, unit)
            entry = timed(entry, entry.first_points, timer)
            entry = timed(entry, entry.needed, timer)
        else:
            entry = table.entries[place]
            if len(entry.samples) > number:
                return table
            entry = replace(entry, samples=(*entry.samples, tuple(timer(entry.points))))
        entries = (*table.entries[:place], entry, *table.entries[place + 1 :])
        return self._stored(replace(table, entries=entries, rest=None))

    def with_whole(self, table: LatencyTable, number: int) -> LatencyTable:
        """The table with the whole networks' samples of a pass."""
        if len(table.whole) > number:
            return table
        networks = [slim(self.network, self.space, masks) for masks in calibration_masks(self.space)]
        times = times_of(networks, self.clock, self.example_inputs)
        return self._stored(replace(table, whole=(*table.whole, tuple(times)), rest=None))

    def with_rest(self, table: LatencyTable, units: Sequence[Unit]) -> LatencyTable:
        """The complete table."""
        numbers = {entry.key: number for number, entry in enumerate(table.entries)}
        uses = tuple((unit.name, numbers[unit.key]) for unit in units)
        if table.rest is not None and table.units == uses:
            return table
        return self._stored(fitted(replace(table, units=uses), self.space))

    def _stored(self, table: LatencyTable) -> LatencyTable:
        table = replace(table, anchor=self.clock.anchor)
        if self.out is not None:
            table.save(self.out)
        return table


def _digest(space: PruningSpace, units: Sequence[Unit]) -> str:
    """What the times of a table depend on besides its setting: the layers, and the groups that narrow them."""
    groups = [(group.name, group.size, group.blocks) for group in space.groups]
    return hashlib.sha256(repr(([(unit.name, unit.key) for unit in units], groups)).encode()).hexdigest()[:16]


def begun_entry(space: PruningSpace, unit: Unit) -> Entry:
    """The entry of a unit, without times."""
    layer = next(layer for layer in space.layers if layer.name == unit.name)
    outputs = Axis(unit.widths[1], unit.widths[1]) if unit.is_coupled else axis_of(space, layer.outputs)
    return Entry(unit.key, axis_of(space, layer.inputs), outputs, unit.channel_bytes)


def timed(entry: Entry, points: Sequence[Point], timer: Timer) -> Entry:
    """The entry of one pass with further points."""
    (before,) = entry.samples or ((),)
    return replace(entry, points=(*entry.points, *points), samples=((*before, *timer(points)),))


def fitted(table: LatencyTable, space: PruningSpace) -> LatencyTable:
    """The table with its rest: least squares of relative errors of whole networks, no part negative."""
    predicted = replace(table, rest=Rest()).prediction(space)
    counts = np.array([space.kept_counts(masks) for masks in calibration_masks(space)])
    columns = predicted.features(counts)
    times = table.anchor * np.median(np.array(table.whole), axis=0)
    share = float(np.median(columns[:, 3] / times))
    prior = PRIOR * np.array([[0.0, 0.0, 0.0, share, 0.0]])  # the units explain the whole, unless the times object
    weights, _ = nnls(np.vstack([columns / times[:, None], prior]), np.append(np.ones(len(counts)), PRIOR))
    return replace(table, rest=Rest(*map(float, weights)))


def _timer(unit: Unit, clock: Clock) -> Timer:
    """A function of (input width, output width) pairs to times; some networks at a time, in random order."""
    setting = clock.setting

    def timer(points: Sequence[Point]) -> list[float]:
        times = np.empty(len(points))
        order = np.random.default_rng(0).permutation(len(points))
        for start in range(0, len(points), TOGETHER):
            places = order[start : start + TOGETHER].tolist()
            runs = [setting.prepare(unit.at(points[p]), _moved(unit.call(points[p][0]), setting)) for p in places]
            times[places] = clock(runs)
        return times.tolist()

    return timer


def _moved(call: Call, setting: Setting) -> Call:
    return (call[0][0].to(setting.device),), {}


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


def times_of(networks: Sequence[nn.Module], clock: Clock, example_inputs: Inputs) -> list[float]:
    """Times of whole networks, in units of the anchor's."""
    call = clock.setting.call(example_inputs)
    return clock([clock.setting.prepare(network, call) for network in networks])
