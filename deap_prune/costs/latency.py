"""A latency table that was measured once, as a file, and attached to a space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deap_prune.arguments import checked
from deap_prune.costs.entry import Axis, Entry
from deap_prune.costs.prediction import Rest, TableLatency
from deap_prune.errors import ConfigError
from deap_prune.files import parse_json, read_text, sealed_json, unsealed_json, write_text

if TYPE_CHECKING:
    from deap_prune.structure.space import LayerChannels, PruningSpace

FORMAT = 2
ABOUT = {"runtime", "batch", "threads", "device", "version"}
ELSEWHERE = "elsewhere"
"""The device of a table whose times come from another machine."""
MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class LatencyTable:
    """Measured times of the units of a network.

    Attributes:
        about: Runtime, batch, threads, device and version: what the times hold for; while it is measured, the network.
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

    @property
    def setting(self) -> str:
        """Runtime, batch, threads and device in words."""
        about = self.about
        return f"{about['runtime']}, batch {about['batch']}, threads {about['threads']}, {about['device']}"

    @checked
    def on(self, space: PruningSpace) -> PruningSpace:
        """The space with this table's latency, for budgets, objectives and ``round_to="auto"``.

        Raises:
            ConfigError: If the table is not complete, or was measured on another network.
        """
        return replace(space, latency_of=self.prediction(space))

    def prediction(self, space: PruningSpace) -> TableLatency:
        """The prediction for the networks of a space.

        Raises:
            ConfigError: If the table is not complete, or was measured on another network.
        """
        if self.rest is None or space.activations is None:
            raise ConfigError("the latency table is not complete; measure it to the end (it goes on where it stopped)")
        entries = [self.entries[number] for _, number in self.units]
        return TableLatency.of(self._layers(space), entries, self.anchor, self.rest, space)

    def _layers(self, space: PruningSpace) -> list[LayerChannels]:
        """The layer of each unit."""
        layers = {layer.name: layer for layer in space.layers if layer.dim is None}
        for name, number in self.units:
            entry, layer = self.entries[number], layers.get(name)
            widths = None if layer is None else (len(layer.inputs), len(layer.outputs))
            if widths != (measured := (entry.inputs.dense, entry.outputs.dense)):
                raise ConfigError(
                    f"the latency table was measured on another network: '{name}' has widths {measured} in it, and "
                    f"{widths or 'does not exist'} here; measure a table of this network"
                )
        return [layers[name] for name, _ in self.units]

    def to_json(self) -> str:
        """The table as text."""
        return sealed_json({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """The inverse of :meth:`to_json`.

        Raises:
            ConfigError: If the text is no latency table of this version.
        """
        try:
            content = unsealed_json(parse_json(text))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            entries = tuple(
                Entry(
                    e["key"],
                    Axis(**e["inputs"]),
                    Axis(**e["outputs"]),
                    e["channel_bytes"],
                    as_tuples(e["points"]),
                    as_tuples(e["samples"]),
                )
                for e in content["entries"]
            )
            units = tuple((str(name), int(number)) for name, number in content["units"])
            rest = None if content["rest"] is None else Rest(**content["rest"])
            about, anchor, whole = dict(content["about"]), float(content["anchor"]), as_tuples(content["whole"])
            table = cls(about, anchor, entries, units, whole, rest)
            table._check()
            return table
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"this is no latency table of this version ({error!r}); measure it again") from error

    @checked
    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        write_text(Path(path), self.to_json())

    @classmethod
    @checked
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
        if not {*self.about} >= ABOUT or not 0 < self.anchor < float("inf"):
            raise ValueError("its setting is incomplete")
        for entry in self.entries:
            axes = (entry.inputs, entry.outputs)
            legal = entry.channel_bytes >= 0 and all(
                0 < a.lowest <= a.dense and a.stride > 0 and a.dense <= MOST_BYTES for a in axes
            )
            times = np.array(entry.samples, dtype=np.float64)
            if not legal or times.shape != (len(entry.samples), len(entry.points)) or not (times > 0).all():
                raise ValueError(f"the times of '{entry.key[:60]}' are damaged")
            if not {*entry.first_points} <= {*entry.points} or not {*entry.needed} <= {*entry.points}:
                raise ValueError(f"times of '{entry.key[:60]}' are missing")
        if not all(0 <= number < len(self.entries) for _, number in self.units):
            raise ValueError("a unit has no entry")

    @property
    def digest(self) -> str:
        """Hash of the content."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)  # without a checksum, as in earlier versions
        return hashlib.sha256(text.encode()).hexdigest()


def as_tuples(nested: Any) -> Any:
    """Nested lists as nested tuples."""
    return tuple(map(as_tuples, nested)) if isinstance(nested, list) else nested
