"""Times of one unit by its widths: which points are timed, and the time of every width between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

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
SLOWER = 1.08
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
        """At most ``GRID`` widths over the axis, first and last among them or near them.

        Args:
            even: Prefer widths that are multiples of a large power of two; otherwise those that are not.
        """
        widths = self.widths
        powers = np.gcd(widths, PERIOD)
        reach = min(PERIOD // 2, (len(widths) - 1) // (2 * (GRID - 1)))
        chosen = set()
        for place in np.linspace(0, len(widths) - 1, GRID).round().astype(np.int64).tolist():
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
class Sheet:
    """Times of the input widths that run on one kernel.

    Attributes:
        inputs: Input widths of the grid, ascending.
        outputs: Output widths of the grid, ascending.
        times: Times of the grid, shape (inputs, outputs).
        input_ratio: Time of each admissible input width by that of the grid, at the dense output.
        output_ratio: Time of each admissible output width by that of the grid, at one input width.
    """

    inputs: NDArray[np.int64]
    outputs: NDArray[np.int64]
    times: Floats
    input_ratio: Floats
    output_ratio: Floats


@dataclass(frozen=True)
class Entry:
    """Times of a unit.

    Attributes:
        key: Description of the unit; equal units share an entry.
        inputs: Admissible input widths.
        outputs: Admissible output widths; the dense one alone if the output follows from the input.
        points: Pairs of input and output width that are timed.
        samples: Times of the points in units of the anchor's, in several passes: a row for each pass.
    """

    key: str
    inputs: Axis
    outputs: Axis
    points: tuple[Point, ...] = ()
    samples: tuple[tuple[float, ...], ...] = ()

    @cached_property
    def times(self) -> dict[Point, float]:
        """Medians of the samples."""
        return dict(zip(self.points, np.median(np.array(self.samples), axis=0).tolist(), strict=True))

    @property
    def first_points(self) -> tuple[Point, ...]:
        """The scan of the input widths."""
        return tuple((int(width), self.outputs.dense) for width in self.inputs.scanned)

    def next_points(self, *, slow: bool) -> tuple[Point, ...]:
        """The other points: for the fast kernel the scan of the output widths, and the grid.

        Args:
            slow: The same for the input widths that a faster kernel leaves out.
        """
        kinds = [self.inputs.spread(even=True), *([self.inputs.spread(even=False)] if slow else [])]
        points = dict.fromkeys(
            (int(i), int(o))
            for inputs in kinds
            for i, outputs in ((inputs[-1], self.outputs.scanned), *((i, self.outputs.spread(even=True)) for i in inputs))
            for o in outputs
        )
        return tuple(point for point in points if point not in self.first_points)

    @property
    def needed(self) -> tuple[Point, ...]:
        """The points without which there is no prediction, once the first ones are timed."""
        return self.next_points(slow=self.multiple > 1)

    @cached_property
    def multiple(self) -> int:
        """The input widths that are multiples of this run on a faster kernel; 1: all widths run on one kernel."""
        found = fast_multiple({i: self.times[i, self.outputs.dense] for i, _ in self.first_points})
        fast, slow = (int(self.inputs.spread(even=even)[-1]) for even in (True, False))
        return found if fast % found == 0 and slow % found else 1

    @cached_property
    def sheets(self) -> tuple[Sheet, ...]:
        """One sheet, or two if there is a faster kernel: of its widths, then of the others."""
        even, uneven = (self.inputs.spread(even=kind) for kind in (True, False))
        if self.multiple == 1:
            return (self._sheet(even, int(even[-1])),)
        widths = np.union1d(even, uneven)
        fast = widths % self.multiple == 0
        return self._sheet(widths[fast], int(even[-1])), self._sheet(widths[~fast], int(uneven[-1]))

    def _sheet(self, inputs: NDArray[np.int64], last: int) -> Sheet:
        """A sheet.

        Args:
            inputs: Input widths of its grid.
            last: The one for which the output widths were scanned.
        """
        outputs = self.outputs.spread(even=True)
        times = np.array([[self.times[int(i), int(o)] for o in outputs] for i in inputs])
        scan = {i: self.times[i, self.outputs.dense] for i, _ in self.first_points}
        by_input = self.inputs.curve(scan) / np.interp(self.inputs.widths, inputs, times[:, -1])
        across = {int(o): self.times[last, int(o)] for o in (*self.outputs.scanned, *outputs)}
        by_output = self.outputs.curve(across) / np.interp(self.outputs.widths, outputs, times[inputs == last][0])
        return Sheet(inputs, outputs, times, by_input, by_output)


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
        is_faster = np.median(values[slow] / line[slow]) > SLOWER
        if is_faster and (not even.any() or np.median(values[even] / finer[even]) < SLOWER):
            return multiple
    return 1
