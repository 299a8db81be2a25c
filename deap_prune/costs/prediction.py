"""Latency of a pruned network: a sum over its units, read from their times by widths, and a rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deap_prune.costs.entry import PERIOD, Axis, Entry, Floats
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
    """

    constant: float = 0.0
    per_megabyte: float = 0.0
    per_million: float = 0.0
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class _Lookup:
    """What the widths of one side of all units mean, by place: the unit's start plus the number of the width.

    Attributes:
        cell: Place in the times of the lower corner's row or column.
        along: Position between the lower and the upper corner, in [0, 1].
        ratio: Time of the width by the interpolated one.
        sheet: Offset of the output ratios of the width's sheet.
    """

    cell: Places
    along: Floats
    ratio: Floats
    sheet: Places


@dataclass(frozen=True, eq=False)
class TableLatency:
    """Predicted latency of a space's networks: ``rest + factor * sum of the units``.

    A unit's time is interpolated on the grid of its sheet, times a ratio for each of its two widths. Every unit has two
    widths, affine in the kept counts; arrays over both begin with the input widths.

    Attributes:
        fixed: Number of the width if no filter is kept, shape (2 * units,).
        slopes: Widths that one kept filter of a group adds, shape (2 * units, groups).
        last: Number of the dense width, shape (2 * units,).
        starts: Start of the unit in its lookup, shape (2 * units,).
        inputs: Meaning of the input widths.
        outputs: Meaning of the output widths; ``ratio`` begins with those of the first sheet.
        columns: Distance of two rows in ``times``, shape (units,).
        times: Times of all grids, in milliseconds.
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
    inputs: _Lookup
    outputs: _Lookup
    columns: Places
    times: Floats
    rest: Rest
    activations: Activations
    params_of: CostPolynomial
    sizes: NDArray[np.int64]
    blocks: NDArray[np.int64]

    def __call__(self, kept: ArrayLike) -> Floats:
        """Milliseconds for kept counts of shape (..., groups); shape (...). Widths are rounded to admissible ones."""
        counts = np.asarray(kept, dtype=np.float64)
        rest = self.rest
        total = rest.constant + rest.factor * self.units(counts).sum(axis=-1)
        total = total + rest.per_megabyte / 1e6 * self.activations.written(counts)
        return np.asarray(total + rest.per_million / 1e6 * self.params_of(counts))

    def units(self, kept: ArrayLike) -> Floats:
        """Milliseconds of each unit alone, for kept counts of shape (..., groups); shape (..., units)."""
        numbers = (self.fixed + np.asarray(kept, dtype=np.float64) @ self._across + 0.5).astype(np.intp)
        places = np.minimum(np.maximum(numbers, 0), self.last) + self.starts
        n = len(self.columns)
        i, o = places[..., :n], places[..., n:]
        inputs, outputs = self.inputs, self.outputs
        at, y = inputs.cell[i] + outputs.cell[o], outputs.along[o]
        near = self.times[at]
        near = near + y * (self.times[at + 1] - near)
        at = at + self.columns
        far = self.times[at]
        far = far + y * (self.times[at + 1] - far)
        ratio = inputs.ratio[i] * outputs.ratio[o + inputs.sheet[i]]
        return np.asarray((near + inputs.along[i] * (far - near)) * ratio)

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """Width step of each group that the device likes: the largest to which rounding up is (nearly) free."""
        return np.array([self._step(group) for group in range(len(self.sizes))], dtype=np.int64)

    def _step(self, group: int) -> int:
        """The step of one group, with all others dense."""
        size, block = int(self.sizes[group]), int(self.blocks[group])
        widths = np.arange(block, size + 1, block)
        counts = np.tile(self.sizes, (len(widths), 1))
        counts[:, group] = widths
        times = self.units(counts).sum(axis=-1)
        slope = (times[-1] - times[0]) / max(size - block, 1)
        for step in (s for s in (PERIOD, 8, 4, 2) if s <= size // 2 and s % block == 0):
            rounded = np.minimum(-(-widths // step) * step, size)
            added = times[np.searchsorted(widths, rounded)] - times
            if slope > 0 and added.mean() < FREE * slope * (rounded - widths).mean():
                return step
        return 1

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
        inputs, outputs, starts, columns, times = _lookups(entries)
        if space.activations is None:
            raise ValueError("the space has no activations")
        return cls(
            np.array([(fixed - axis.lowest) / axis.stride for (fixed, _), axis in zip(affine, axes, strict=True)]),
            np.array([slopes / axis.stride for (_, slopes), axis in zip(affine, axes, strict=True)]),
            np.array([len(axis.widths) - 1 for axis in axes], dtype=np.intp),
            starts,
            inputs,
            outputs,
            columns,
            anchor * times,
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


def axis_of(space: PruningSpace, ids: NDArray[np.intp]) -> Axis:
    """The widths that one side of a layer can have; arguments as for :func:`affine_widths`."""
    fixed, slopes = affine_widths(space, ids)
    blocks = np.array([group.blocks for group in space.groups])
    added = [round(float(step)) for step in slopes * blocks if step]
    return Axis(round(fixed) + sum(added), len(ids), max(gcd(*added), 1))


def _cells(widths: NDArray[np.int64], grid: NDArray[np.int64]) -> tuple[Places, Floats]:
    """Cell of the grid of each width, and the position in it."""
    cell = (np.searchsorted(grid, widths, side="right") - 1).clip(0, max(len(grid) - 2, 0))
    if len(grid) == 1:
        return cell, np.zeros(len(widths))
    return cell, ((widths - grid[cell]) / (grid[cell + 1] - grid[cell])).clip(0.0, 1.0)


def _lookups(entries: Sequence[Entry]) -> tuple[_Lookup, _Lookup, Places, Places, Floats]:
    """``inputs``, ``outputs``, ``starts``, ``columns`` and ``times`` of :class:`TableLatency`."""
    times, columns, place = list[Floats](), list[int](), 0
    rows: list[tuple[Places, Floats, Floats, Places]] = []
    across: list[tuple[Places, Floats, list[Floats]]] = []
    for entry in entries:
        widths, n_out = entry.inputs.widths, len(entry.outputs.widths)
        cell, along = np.zeros(len(widths), dtype=np.intp), np.zeros(len(widths))
        ratio, sheet_of = np.ones(len(widths)), np.zeros(len(widths), dtype=np.intp)
        stride = len(entry.sheets[0].outputs) + 1
        for number, sheet in enumerate(entry.sheets):
            mine = np.flatnonzero((widths % entry.multiple != 0) == bool(number)) if len(entry.sheets) > 1 else slice(None)
            row, at = _cells(widths, sheet.inputs)
            cell[mine], along[mine] = (place + row * stride)[mine], at[mine]
            ratio[mine], sheet_of[mine] = sheet.input_ratio[mine], number * n_out
            padded = np.pad(sheet.times, ((0, 1), (0, 1)), mode="edge")  # a grid of one width has no upper corner
            times.append(padded.ravel())
            place += padded.size
        columns.append(stride)
        rows.append((cell, along, ratio, sheet_of))
        outs = _cells(entry.outputs.widths, entry.sheets[0].outputs)
        across.append((*outs, [sheet.output_ratio for sheet in entry.sheets]))
    lengths_in = [len(cell) for cell, *_ in rows]
    lengths_out = [len(ratios) * len(cell) for cell, _, ratios in across]
    starts = [*np.cumsum([0, *lengths_in])[:-1], *np.cumsum([0, *lengths_out])[:-1]]
    inputs = _Lookup(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))
    ratios = np.concatenate([ratio for *_, parts in across for ratio in parts])
    outputs = _Lookup(
        np.concatenate([np.tile(cell, len(parts)) for cell, _, parts in across]),
        np.concatenate([np.tile(along, len(parts)) for _, along, parts in across]),
        ratios,
        np.zeros(len(ratios), dtype=np.intp),
    )
    return inputs, outputs, np.array(starts, dtype=np.intp), np.array(columns, dtype=np.intp), np.concatenate(times)
