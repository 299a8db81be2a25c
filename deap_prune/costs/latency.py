"""Latency of a pruned network from a table that was measured once: a sum over units, and a rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deap_prune.errors import ConfigError
from deap_prune.files import parse_json, read_text, write_text
from deap_prune.structure.cost_polynomial import Activations

if TYPE_CHECKING:
    from deap_prune.structure.space import LayerChannels, PruningSpace

FORMAT = 1
MOST_BYTES = 64 * 2**20
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """Times of a unit by its widths.

    Attributes:
        key: Description of the unit; equal units share an entry.
        inputs: Input widths of the grid, ascending.
        outputs: Output widths of the grid, ascending; the dense one alone if the output follows from the input.
        samples: Times in units of the anchor's, measured in several passes: a row for each input width, a column for
            each output width.
        step: Width step that the device likes: narrower by less than that saves next to nothing.
    """

    key: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    samples: tuple[tuple[tuple[float, ...], ...], ...]
    step: int = 1

    @cached_property
    def times(self) -> Floats:
        """Medians of the samples, shape (input widths, output widths)."""
        return np.median(np.array(self.samples, dtype=np.float64), axis=0)


@dataclass(frozen=True)
class Rest:
    """The part of a network's time that its units, timed alone, do not take.

    Attributes:
        constant: Milliseconds.
        per_megabyte: Milliseconds for 10^6 bytes that operators between the units write, one sample.
        factor: Time of a unit in the network by its time alone.
    """

    constant: float = 0.0
    per_megabyte: float = 0.0
    factor: float = 1.0


@dataclass(frozen=True)
class LatencyTable:
    """Measured times of the units of a network.

    Attributes:
        about: Runtime, batch, threads, device and version: what the times hold for.
        anchor: Milliseconds of the anchor (see :class:`deap_prune.costs.runtimes.Clock`).
        entries: Times by widths.
        units: For each use of a layer its name and the number of its entry.
        whole: Times of the whole networks that the rest is fitted to, in units of the anchor's, measured in several
            passes.
        rest: Fitted to whole networks; None while the table is being measured.

    Examples:
        >>> table = dp.latency_table(model, space, images, repeats=3, progress=False)
        >>> fast = table.on(space)
        >>> bool(fast.latency_of(space.sizes) > 0)
        True
    """

    about: Mapping[str, Any]
    anchor: float
    entries: tuple[Entry, ...]
    units: tuple[tuple[str, int], ...] = ()
    whole: tuple[tuple[float, ...], ...] = ()
    rest: Rest | None = None

    def on(self, space: PruningSpace) -> PruningSpace:
        """The space with this table's latency, for budgets, objectives and ``round_to="auto"``.

        Raises:
            ConfigError: If the table is not complete, or was measured on another network.
        """
        return replace(space, latency_of=TableLatency.of(self, space))

    def to_json(self) -> str:
        """The table as text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """The inverse of :meth:`to_json`.

        Raises:
            ConfigError: If the text is no latency table of this version.
        """
        try:
            content = parse_json(text)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            entries = tuple(
                Entry(e["key"], tuple(e["inputs"]), tuple(e["outputs"]), _as_tuples(e["samples"]), e["step"])
                for e in content["entries"]
            )
            units = tuple((str(name), int(number)) for name, number in content["units"])
            rest = None if content["rest"] is None else Rest(**content["rest"])
            about, anchor, whole = dict(content["about"]), float(content["anchor"]), _as_tuples(content["whole"])
            table = cls(about, anchor, entries, units, whole, rest)
            table._check()
            return table
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"this is no latency table of this version ({error!r}); measure it again") from error

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table.

        Raises:
            ConfigError: If there is no such file, or it is no latency table.
        """
        try:
            text = read_text(Path(path), most=MOST_BYTES)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the latency table '{path}' can't be read: {error}") from error
        return cls.from_json(text)

    def _check(self) -> None:
        """Raise a ValueError if the parts do not fit together."""
        for entry in self.entries:
            shape = (max(len(entry.samples), 1), len(entry.inputs), len(entry.outputs))
            ascending = all(0 < a < b for axis in (entry.inputs, entry.outputs) for a, b in pairwise((0.5, *axis)))
            times = np.array(entry.samples, dtype=np.float64)
            if not ascending or 0 in shape or times.shape != shape or not (times >= 0).all():
                raise ValueError(f"the grid of '{entry.key[:60]}' is damaged")
        if not all(0 <= number < len(self.entries) for _, number in self.units):
            raise ValueError("a unit has no entry")

    @property
    def digest(self) -> str:
        """Hash of the content."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class TableLatency:
    """Predicted latency of a space's networks: ``rest + factor * sum of the units``, interpolated bilinearly.

    Every unit has two widths, affine in the kept counts; arrays over both begin with the input widths. A width's cell
    of the grid is read from a list by its whole part.

    Attributes:
        fixed: Dense channels of each width, shape (2 * units,).
        slopes: Channels that one kept filter of a group adds, shape (2 * units, groups).
        bounds: Smallest and largest width of the grid, shape (2, 2 * units).
        starts: Place of width 0 in ``cells``, shape (2 * units,).
        cells: Lower end of the cell of each whole width, 1 / length, and the place of its times, shape (widths,) each.
        strides: Distance of the times of the cell's upper end, shape (2 * units,).
        times: Times of all grids, in milliseconds.
        rest: Of the table.
        activations: Bytes that the operators between the units write.
        steps: Width step of each group that the device likes, shape (groups,).
    """

    fixed: Floats
    slopes: Floats
    bounds: Floats
    starts: NDArray[np.intp]
    cells: tuple[Floats, Floats, NDArray[np.intp]]
    strides: NDArray[np.intp]
    times: Floats
    rest: Rest
    activations: Activations
    steps: NDArray[np.int64]

    def __call__(self, kept: ArrayLike) -> Floats:
        """Milliseconds for kept counts of shape (..., groups), whole or not; shape (...)."""
        counts = np.asarray(kept, dtype=np.float64)
        rest = self.rest
        written = self.activations.written(counts) / 1e6
        return np.asarray(rest.constant + rest.per_megabyte * written + rest.factor * self.units(counts).sum(axis=-1))

    def units(self, kept: ArrayLike) -> Floats:
        """Milliseconds of each unit alone, for kept counts of shape (..., groups); shape (..., units)."""
        widths = self.fixed + np.asarray(kept, dtype=np.float64) @ self._across
        widths = np.minimum(np.maximum(widths, self.bounds[0]), self.bounds[1])
        places = widths.astype(np.intp) + self.starts
        low, inverse, cell = self.cells
        along = (widths - low[places]) * inverse[places]
        n = len(self.fixed) // 2
        corner = cell[places]
        at = corner[..., :n] + corner[..., n:]
        rows, columns = self.strides[:n], self.strides[n:]
        x, y = along[..., :n], along[..., n:]
        near = self.times[at]
        near = near + y * (self.times[at + columns] - near)
        far = self.times[at + rows]
        far = far + y * (self.times[at + rows + columns] - far)
        return np.asarray(near + x * (far - near))

    @cached_property
    def _across(self) -> Floats:
        return np.ascontiguousarray(self.slopes.T)

    @classmethod
    def of(cls, table: LatencyTable, space: PruningSpace) -> TableLatency:
        """The prediction for a space.

        Raises:
            ConfigError: If the table is not complete, or was measured on another network.
        """
        if table.rest is None or space.activations is None:
            raise ConfigError("the latency table is not complete; measure it to the end (it goes on where it stopped)")
        layers = _layers_of(table, space)
        entries = [table.entries[number] for _, number in table.units]
        sides = [[layer.inputs for layer in layers], [layer.outputs for layer in layers]]
        affine = [affine_widths(space, ids) for side in sides for ids in side]
        axes = [entry.inputs for entry in entries] + [entry.outputs for entry in entries]
        lengths = [len(ids) for side in sides for ids in side]
        starts, cells, strides, times = _lookup(entries, axes, lengths)
        return cls(
            np.array([fixed for fixed, _ in affine]),
            np.array([slopes for _, slopes in affine]),
            np.array([[axis[0] for axis in axes], [axis[-1] for axis in axes]], dtype=np.float64),
            starts,
            cells,
            strides,
            table.anchor * times,
            table.rest,
            space.activations,
            _group_steps(space, dict(zip((name for name, _ in table.units), entries, strict=True))),
        )


def _as_tuples(nested: Any) -> Any:
    return tuple(map(_as_tuples, nested)) if isinstance(nested, list) else nested


def affine_widths(space: PruningSpace, ids: NDArray[np.intp]) -> tuple[float, Floats]:
    """The number of kept channels as a function of the kept counts: dense channels, and a slope for each group.

    Args:
        space: The pruning space.
        ids: Channel ids of one side of a layer, -1 for dense ones.
    """
    group_of = np.concatenate([np.full(group.size, i) for i, group in enumerate(space.groups)] + [[-1]])
    counts = np.bincount(group_of[ids].astype(np.int64) + 1, minlength=len(space.groups) + 1)
    return float(counts[0]), counts[1:] / space.sizes


def _layers_of(table: LatencyTable, space: PruningSpace) -> list[LayerChannels]:
    """The layer of each unit."""
    layers = {layer.name: layer for layer in space.layers if layer.dim is None}
    for name, number in table.units:
        entry, layer = table.entries[number], layers.get(name)
        widths = None if layer is None else (len(layer.inputs), len(layer.outputs))
        if widths != (measured := (entry.inputs[-1], entry.outputs[-1])):
            raise ConfigError(
                f"the latency table was measured on another network: '{name}' has widths {measured} in it, and "
                f"{widths or 'does not exist'} here; measure a table of this network"
            )
    return [layers[name] for name, _ in table.units]


def _lookup(
    entries: Sequence[Entry], axes: Sequence[Sequence[int]], lengths: Sequence[int]
) -> tuple[NDArray[np.intp], tuple[Floats, Floats, NDArray[np.intp]], NDArray[np.intp], Floats]:
    """``starts``, ``cells``, ``strides`` and ``times`` of :class:`TableLatency`."""
    flat = [entry.times.ravel() for entry in entries]
    offsets = np.concatenate([[0], np.cumsum([len(times) for times in flat])[:-1]]).astype(np.intp)
    strides, low, inverse, cell = [], list[Floats](), list[Floats](), list[NDArray[np.intp]]()
    for place, (axis, length) in enumerate(zip(axes, lengths, strict=True)):
        is_input = place < len(entries)
        stride = len(entries[place % len(entries)].outputs) if is_input else 1
        points = np.array(axis, dtype=np.float64)
        index = np.searchsorted(points, np.arange(length + 1), side="right") - 1
        index = index.clip(0, max(len(points) - 2, 0))
        upper = np.minimum(index + 1, len(points) - 1)
        gaps = points[upper] - points[index]
        low.append(points[index])
        inverse.append(np.where(gaps > 0, 1 / np.where(gaps > 0, gaps, 1), 0.0))
        cell.append((index * stride + (offsets[place] if is_input else 0)).astype(np.intp))
        strides.append(stride if len(points) > 1 else 0)
    starts = np.concatenate([[0], np.cumsum([len(part) for part in low])[:-1]]).astype(np.intp)
    cells = np.concatenate(low), np.concatenate(inverse), np.concatenate(cell)
    return starts, cells, np.array(strides, dtype=np.intp), np.concatenate(flat)


def _group_steps(space: PruningSpace, entry_of: Mapping[str, Entry]) -> NDArray[np.int64]:
    """The step of each group: of the layers that make its channels."""
    steps = []
    for group in space.groups:
        made = [entry_of[m.layer].step for m in group.layers("filter") if m.layer in entry_of]
        step = lcm(*made) if made else 1
        steps.append(step if step <= group.size // 2 else 1)
    return np.array(steps, dtype=np.int64)
