"""Times of one unit by its widths: which points are timed, and the time of every width between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Point = tuple[int, int]
PERIOD = 16
"""Kernels work on channels in multiples; multiples up to this one are looked for."""
WINDOWS = 4
"""Runs of ``PERIOD`` consecutive widths that are scanned; shorter axes are scanned as a whole."""
GRID = 5
"""Widths of each axis whose combinations are timed."""
SLOWER = 1.1
"""Ratio of times from which a width takes another kernel than the multiples next to it."""


@dataclass(frozen=True)
class Axis:
    """The admissible widths of one side of a unit: ``lowest``, ``lowest + stride``, ..., ``dense``.

    Attributes:
        lowest: Narrowest width.
        dense: Widest width.
        stride: Distance of two widths.
    """

    lowest: int
    dense: int
    stride: int = 1

    @property
    def widths(self) -> NDArray[np.int64]:
        """All admissible widths, ascending."""
        return np.arange(self.lowest, self.dense + 1, self.stride, dtype=np.int64)

    @property
    def scanned(self) -> NDArray[np.int64]:
        """Widths of the scan: windows over the axis, in which every residue modulo ``PERIOD`` occurs."""
        widths = self.widths
        starts = np.linspace(0, max(len(widths) - PERIOD, 0), WINDOWS).round().astype(np.int64)
        places = (starts[:, None] + np.arange(PERIOD)).ravel()
        return widths[np.unique(places[places < len(widths)])]

    def spread(self, *, even: bool) -> NDArray[np.int64]:
        """At most ``GRID`` widths over the axis.

        Args:
            even: The dense width, and such that are multiples of a large power of two; otherwise such that are not.
        """
        widths = self.widths
        powers = np.gcd(widths, PERIOD)
        reach = min(PERIOD // 2, (len(widths) - 1) // (2 * (GRID - 1)))
        chosen = {len(widths) - 1} if even else set()
        for place in np.linspace(0, len(widths) - 1, GRID).round().astype(np.int64).tolist()[: -1 if even else None]:
            near = range(max(place - reach, 0), min(place + reach + 1, len(widths)))
            chosen.add(min(near, key=lambda p: (-powers[p] if even else powers[p], abs(p - place))))
        return widths[sorted(chosen)]

    def curve(self, times: Mapping[int, float]) -> Floats:
        """Times of all admissible widths from those of some: interpolated between widths of the same residue."""
        known = np.array(sorted(times))
        values = np.array([times[width] for width in known.tolist()])
        widths = self.widths
        curve = np.interp(widths, known, values)
        places = (self.dense - known) // self.stride % PERIOD
        residues = (self.dense - widths) // self.stride % PERIOD
        for residue in range(PERIOD):
            of_known = places == residue
            if of_known.any():
                between = (residues == residue) & (widths >= known[of_known][0]) & (widths <= known[of_known][-1])
                curve[between] = np.interp(widths[between], known[of_known], values[of_known])
        return curve


@dataclass(frozen=True, eq=False)
class Side:
    """Where widths lie on one side of a grid.

    Attributes:
        cell: Number of the grid's cell.
        along: Position between the cell's lower and upper end, as the times of the scan lie between those of the ends.
        ratio: Time of the scan by that at the position: 1 if it lies between those of the ends.
    """

    cell: NDArray[np.intp]
    along: Floats
    ratio: Floats

    @classmethod
    def of(cls, widths: NDArray[np.int64], curve: Floats, grid: NDArray[np.int64], ends: Floats) -> Side:
        """The side of a scan.

        A time that is bilinear in some function of each width is exact in this way, whatever the functions are.

        Args:
            widths: All widths.
            curve: Time of each.
            grid: Widths of the grid.
            ends: Times of the grid.
        """
        if len(grid) == 1:
            return cls(np.zeros(len(widths), dtype=np.intp), np.zeros(len(widths)), curve / ends[0])
        cell = (np.searchsorted(grid, widths, side="right") - 1).clip(0, len(grid) - 2)
        low, gap = ends[cell], ends[cell + 1] - ends[cell]
        even = (widths - grid[cell]) / (grid[cell + 1] - grid[cell])
        steep = np.abs(gap) > 1e-3 * low
        along = np.where(steep, (curve - low) / np.where(steep, gap, 1.0), even)
        along = along.clip(np.where(widths < grid[0], -0.5, 0.0), np.where(widths > grid[-1], 1.5, 1.0))
        return cls(cell, along, curve / (low + along * gap))


@dataclass(frozen=True, eq=False)
class Sheet:
    """Times of the input widths that run on one kernel.

    Attributes:
        members: Which of the admissible input widths these are.
        times: Times of the grid, shape (inputs, outputs).
        inputs: All admissible input widths on it.
        outputs: All admissible output widths on it.
    """

    members: NDArray[np.bool_]
    times: Floats
    inputs: Side
    outputs: Side


@dataclass(frozen=True)
class Entry:
    """Times of a unit.

    Attributes:
        key: Description of the unit; equal units share an entry.
        inputs: Admissible input widths.
        outputs: Admissible output widths; the dense one alone if the output follows from the input.
        channel_bytes: Bytes of one channel of its input, of the whole batch.
        points: Pairs of input and output width that are timed.
        samples: Times of the points in units of the anchor's, in several passes: a row for each pass.
    """

    key: str
    inputs: Axis
    outputs: Axis
    channel_bytes: int = 0
    points: tuple[Point, ...] = ()
    samples: tuple[tuple[float, ...], ...] = ()

    @cached_property
    def times(self) -> dict[Point, float]:
        """Medians of the samples."""
        return dict(zip(self.points, np.median(np.array(self.samples), axis=0).tolist(), strict=True))

    @property
    def first_points(self) -> tuple[Point, ...]:
        """The scan of the input widths."""
        return tuple((width, self.outputs.dense) for width in self.inputs.scanned.tolist())

    def next_points(self, *, slow: bool) -> tuple[Point, ...]:
        """The other points: for the fast kernel the scan of the output widths, and the grid.

        Args:
            slow: The same for the input widths that a faster kernel leaves out.
        """
        points = dict.fromkeys(self._kernel_points(even=True))
        if slow:
            points |= dict.fromkeys(self._kernel_points(even=False))
        return tuple(point for point in points if point not in self.first_points)

    def _kernel_points(self, *, even: bool) -> Iterator[Point]:
        inputs, outputs = self.inputs.spread(even=even).tolist(), self.outputs.spread(even=True).tolist()
        yield from ((inputs[-1], width) for width in self.outputs.scanned.tolist())
        yield from product(inputs, outputs)

    @property
    def needed(self) -> tuple[Point, ...]:
        """The points without which there is no prediction, once the first ones are timed."""
        return self.next_points(slow=self.multiple > 1)

    @cached_property
    def multiple(self) -> int:
        """The input widths that are multiples of this run on a faster kernel; 1: all widths run on one kernel."""
        step = fast_multiple({i: self.times[i, self.outputs.dense] for i, _ in self.first_points})
        fast, slow = (int(self.inputs.spread(even=even)[-1]) for even in (True, False))
        are_timed = {*self.next_points(slow=step > 1)} <= {*self.points} or len(self.points) == len(self.first_points)
        return step if fast % step == 0 and slow % step and are_timed else 1

    @cached_property
    def sheets(self) -> tuple[Sheet, ...]:
        """One sheet, or two if there is a faster kernel: of its widths, then of the others."""
        even, uneven = (self.inputs.spread(even=kind) for kind in (True, False))
        if self.multiple == 1:
            return (self._sheet(even, int(even[-1]), np.ones(len(self.inputs.widths), dtype=np.bool_)),)
        widths = np.union1d(even, uneven)
        fast, fast_grid = (these % self.multiple == 0 for these in (self.inputs.widths, widths))
        return (
            self._sheet(widths[fast_grid], int(even[-1]), fast),
            self._sheet(widths[~fast_grid], int(uneven[-1]), ~fast),
        )

    def _sheet(self, inputs: NDArray[np.int64], last: int, members: NDArray[np.bool_]) -> Sheet:
        """A sheet.

        Args:
            inputs: Input widths of its grid.
            last: The one for which the output widths were scanned.
            members: The admissible input widths that run on the kernel.
        """
        outputs = self.outputs.spread(even=True)
        times = np.array([[self.times[int(i), int(o)] for o in outputs] for i in inputs])
        scan = {i: self.times[i, self.outputs.dense] for i, _ in self.first_points}
        across = {int(o): self.times[last, int(o)] for o in (*self.outputs.scanned, *outputs)}
        return Sheet(
            members,
            times,
            Side.of(self.inputs.widths, self.inputs.curve(scan), inputs, times[:, -1]),
            Side.of(self.outputs.widths, self.outputs.curve(across), outputs, times[inputs == last][0]),
        )


def fast_multiple(times: Mapping[int, float]) -> int:
    """The smallest multiple whose widths take a faster kernel than the widths between them; 1 if none does.

    Args:
        times: Time of each scanned width.
    """
    widths = np.array(sorted(times))
    values = np.array([times[width] for width in widths.tolist()])
    for multiple in (2, 4, 8, PERIOD):
        fast = widths % multiple == 0
        slow = ~fast & (widths > PERIOD)
        if fast.sum() < 2 or not slow.any():
            continue
        line = np.interp(widths, widths[fast], values[fast])
        even = fast & (widths % (2 * multiple) != 0)
        finer = np.interp(widths, widths[fast & ~even], values[fast & ~even]) if even.any() else line
        slower, unlike = (
            np.median(values[slow] / line[slow]),
            np.median(values[even] / finer[even]) if even.any() else 1.0,
        )
        if slower > SLOWER and unlike - 1 < (slower - 1) / 2:
            return multiple
    return 1
