"""Latency of a pruned network: a sum over its units, read from their times by widths, and a rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deap_prune.costs.entry import PERIOD, Axis, Entry, Floats, Side
from deap_prune.structure.cost_polynomial import Activations, CostPolynomial

if TYPE_CHECKING:
    from deap_prune.structure.space import LayerChannels, PruningSpace

Places = NDArray[np.intp]
FREE = 0.25
"""A step of widths is one that the device likes if rounding up to it costs less than this share of an even slope."""


@dataclass(frozen=True)
class Rest:
    """The part of a network's time that its units, timed alone, do not take.

    Attributes:
        constant: Milliseconds.
        per_megabyte: Milliseconds for 10^6 bytes that operators between the units write, one sample.
        per_million: Milliseconds for 10^6 parameters, which a unit timed alone finds in the processor's cache.
        factor: Time of a unit in the network by its time alone.
        saved: Milliseconds for 10^6 bytes that need no conversion of their layout between two units, which each unit
            timed alone converts.
    """

    constant: float = 0.0
    per_megabyte: float = 0.0
    per_million: float = 0.0
    factor: float = 1.0
    saved: float = 0.0


@dataclass(frozen=True, eq=False)
class TableLatency:
    """Predicted latency of a space's networks: the sum of the units times a factor, and the rest.

    A unit's time is interpolated on the grid of its sheet, times a ratio for each of its two widths. Every unit has two
    widths, affine in the kept counts; arrays over both begin with the input widths. The widths of all units stand in
    one row: the place of a width is the start of its unit plus its number. ``cell`` of a side counts places in
    ``times``.

    Attributes:
        fixed: Number of the width if no filter is kept, shape (2 * units,).
        slopes: Widths that one kept filter of a group adds, shape (2 * units, groups).
        last: Number of the dense width, shape (2 * units,).
        starts: Start of the unit in its lookup, shape (2 * units,).
        inputs: The input widths.
        sheet: Distance of the output widths of the sheet that belongs to an input width, shape of ``inputs``.
        outputs: The output widths, for each sheet.
        columns: Distance of two rows in ``times``, shape (units,).
        times: Times of all grids, in milliseconds.
        lowest: Narrowest input width of each unit, shape (units,).
        stride: Distance of its input widths, shape (units,).
        channel_bytes: Bytes of one channel of its input, shape (units,).
        layout: Input widths that are multiples of this stay in one layout of the activations; 1: there is one layout.
        rest: Of the table.
        activations: Bytes that the operators between the units write.
        params_of: Parameters from kept counts.
        sizes: Filters of each group.
        blocks: Blocks of each group.
    """

    fixed: Floats
    slopes: Floats
    last: Places
    starts: Places
    inputs: Side
    sheet: Places
    outputs: Side
    columns: Places
    times: Floats
    lowest: NDArray[np.int64]
    stride: NDArray[np.int64]
    channel_bytes: Floats
    layout: int
    rest: Rest
    activations: Activations
    params_of: CostPolynomial
    sizes: NDArray[np.int64]
    blocks: NDArray[np.int64]

    def __call__(self, kept: ArrayLike) -> Floats:
        """Milliseconds for kept counts of shape (..., groups); shape (...). Widths are rounded to admissible ones."""
        rest = self.rest
        weights = (rest.constant, rest.per_megabyte, rest.per_million, rest.factor, rest.saved)
        return np.asarray(self.features(kept) @ np.array(weights))

    def features(self, kept: ArrayLike) -> Floats:
        """What the parts of the rest are multiplied with, in their order, shape (..., 5)."""
        counts = np.asarray(kept, dtype=np.float64)
        numbers = self._numbers(counts)
        written, parameters = self.activations.written(counts) / 1e6, self.params_of(counts) / 1e6
        times, saved = self._times(numbers).sum(axis=-1), -self._unconverted(numbers) / 1e6
        return np.stack([np.ones(counts.shape[:-1]), written, parameters, times, saved], axis=-1)

    def units(self, kept: ArrayLike) -> Floats:
        """Milliseconds of each unit alone, for kept counts of shape (..., groups); shape (..., units)."""
        return self._times(self._numbers(np.asarray(kept, dtype=np.float64)))

    def _numbers(self, counts: Floats) -> Places:
        """Numbers of the widths, shape (..., 2 * units)."""
        numbers = (self.fixed + counts @ self._across + 0.5).astype(np.intp)
        return np.minimum(np.maximum(numbers, 0), self.last)

    def _unconverted(self, numbers: Places) -> Floats:
        """Bytes between units that follow each other, both in the layout of the fast kernels; shape (...)."""
        if self.layout == 1:
            return np.zeros(numbers.shape[:-1])
        widths = self.lowest + self.stride * numbers[..., : len(self.columns)]
        fast = (widths % self.layout == 0) | (widths < PERIOD)
        return np.asarray((widths * fast)[..., 1:] * fast[..., :-1] @ self.channel_bytes[1:])

    def _times(self, numbers: Places) -> Floats:
        places, n = numbers + self.starts, len(self.columns)
        inputs, outputs = self.inputs, self.outputs
        i = places[..., :n]
        o = places[..., n:] + self.sheet[i]
        at, y = inputs.cell[i] + outputs.cell[o], outputs.along[o]
        near = self.times[at]
        near = near + y * (self.times[at + 1] - near)
        at = at + self.columns
        far = self.times[at]
        far = far + y * (self.times[at + 1] - far)
        return np.asarray((near + inputs.along[i] * (far - near)) * inputs.ratio[i] * outputs.ratio[o])

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """Width step of each group that the device likes: rounding up to its multiples is (nearly) free."""
        return np.array([self._step(group) for group in range(len(self.sizes))], dtype=np.int64)

    def _step(self, group: int) -> int:
        """The step of one group, with all others dense."""
        size, block = int(self.sizes[group]), int(self.blocks[group])
        widths = np.arange(block, size + 1, block)
        counts = np.tile(self.sizes, (len(widths), 1))
        counts[:, group] = widths
        times = self.units(counts).sum(axis=-1)
        slope, liked = (times[-1] - times[0]) / max(size - block, 1), block
        for step in (2, 4, 8, PERIOD):
            if slope <= 0 or step > size // 2 or step % block:
                continue
            of = widths % liked == 0
            rounded = np.minimum(-(-widths[of] // step) * step, size)
            added = times[np.searchsorted(widths, rounded)] - times[of]
            if added.mean() < FREE * slope * (rounded - widths[of]).mean():
                liked = step
        return liked

    @cached_property
    def _across(self) -> Floats:
        return np.ascontiguousarray(self.slopes.T)

    @classmethod
    def of(
        cls,
        layers: Sequence[LayerChannels],
        entries: Sequence[Entry],
        anchor: float,
        rest: Rest,
        space: PruningSpace,
    ) -> TableLatency:
        """The prediction for a space.

        Args:
            layers: The layer of each unit.
            entries: The entry of each unit.
            anchor: Milliseconds of a unit of the entries' times.
            rest: The rest.
            space: The space, with activations.
        """
        sides = [(entry.inputs, layer.inputs) for entry, layer in zip(entries, layers, strict=True)]
        sides += [(entry.outputs, layer.outputs) for entry, layer in zip(entries, layers, strict=True)]
        affine = [affine_widths(space, ids) for _, ids in sides]
        axes = [axis for axis, _ in sides]
        inputs, sheet, outputs, starts, columns, times = _lookups(entries)
        if space.activations is None:
            raise ValueError("the space has no activations")
        return cls(
            np.array([(fixed - axis.lowest) / axis.stride for (fixed, _), axis in zip(affine, axes, strict=True)]),
            np.array([slopes / axis.stride for (_, slopes), axis in zip(affine, axes, strict=True)]),
            np.array([len(axis.widths) - 1 for axis in axes], dtype=np.intp),
            starts,
            inputs,
            sheet,
            outputs,
            columns,
            anchor * times,
            np.array([entry.inputs.lowest for entry in entries]),
            np.array([entry.inputs.stride for entry in entries]),
            np.array([entry.channel_bytes for entry in entries], dtype=np.float64),
            layout_of(entries),
            rest,
            space.activations,
            space.params_of,
            space.sizes,
            np.array([group.blocks for group in space.groups], dtype=np.int64),
        )


def affine_widths(space: PruningSpace, ids: NDArray[np.intp]) -> tuple[float, Floats]:
    """The number of kept channels as a function of the kept counts: dense channels, and a slope for each group.

    Args:
        space: The pruning space.
        ids: Channel ids of one side of a layer, -1 for dense ones.
    """
    group_of = np.concatenate([np.full(group.size, i) for i, group in enumerate(space.groups)] + [[-1]])
    counts = np.bincount(group_of[ids].astype(np.int64) + 1, minlength=len(space.groups) + 1)
    return float(counts[0]), counts[1:] / space.sizes


def layout_of(entries: Sequence[Entry]) -> int:
    """The multiple of the fast kernels that most units share; 1 if fewer than a fifth have one."""
    multiples = [entry.multiple for entry in entries if entry.multiple > 1]
    most = max(set(multiples), key=multiples.count, default=1)
    return most if 5 * multiples.count(most) >= len(entries) else 1


def axis_of(space: PruningSpace, ids: NDArray[np.intp]) -> Axis:
    """The widths that one side of a layer can have; arguments as for :func:`affine_widths`."""
    fixed, slopes = affine_widths(space, ids)
    blocks = np.array([group.blocks for group in space.groups])
    added = [round(float(step)) for step in slopes * blocks if step]
    return Axis(round(fixed) + sum(added), len(ids), max(gcd(*added), 1))


def _lookups(entries: Sequence[Entry]) -> tuple[Side, Places, Side, Places, Places, Floats]:
    """``inputs``, ``sheet``, ``outputs``, ``starts``, ``columns`` and ``times`` of :class:`TableLatency`."""
    inputs, outputs, sheets = list[Side](), list[Side](), list[Places]()
    times, columns, place = list[Floats](), list[int](), 0
    for entry in entries:
        widths, n_out = len(entry.inputs.widths), len(entry.outputs.widths)
        side = Side(np.zeros(widths, dtype=np.intp), np.zeros(widths), np.ones(widths))
        sheet_of = np.zeros(widths, dtype=np.intp)
        for number, sheet in enumerate(entry.sheets):
            padded = np.pad(sheet.times, ((0, 1), (0, 1)), mode="edge")  # a grid of one width has no upper corner
            mine = sheet.members
            side.cell[mine] = place + sheet.inputs.cell[mine] * padded.shape[1]
            side.along[mine], side.ratio[mine] = sheet.inputs.along[mine], sheet.inputs.ratio[mine]
            sheet_of[mine] = number * n_out
            outputs.append(sheet.outputs)
            times.append(padded.ravel())
            place += padded.size
        inputs.append(side)
        sheets.append(sheet_of)
        columns.append(entry.sheets[0].times.shape[1] + 1)
    lengths = [[len(e.inputs.widths) for e in entries], [len(e.sheets) * len(e.outputs.widths) for e in entries]]
    starts = np.concatenate([np.cumsum([0, *side])[:-1] for side in lengths]).astype(np.intp)
    places = np.array(columns, dtype=np.intp)
    return _joined(inputs), np.concatenate(sheets), _joined(outputs), starts, places, np.concatenate(times)


def _joined(sides: Sequence[Side]) -> Side:
    return Side(*(np.concatenate([getattr(side, name) for side in sides]) for name in ("cell", "along", "ratio")))
