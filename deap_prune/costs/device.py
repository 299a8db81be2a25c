"""A latency table of another device: small ONNX files to time there, and the table from the times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from torch import nn

from deap_prune.costs.entry import Entry, Point
from deap_prune.costs.latency import ELSEWHERE, LatencyTable
from deap_prune.costs.measure import begun_entry, calibration_masks, fitted, timed
from deap_prune.costs.runtimes import Setting, onnx_bytes
from deap_prune.costs.units import Unit, units_of
from deap_prune.errors import ConfigError
from deap_prune.files import parse_json, read_text, write_bytes, write_text
from deap_prune.progress import Shown, track
from deap_prune.structure.inputs import Inputs
from deap_prune.structure.slim import slim, unwrap
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.clean_copy import pristine

SCRIPT = "time_networks.py"


class Times(BaseModel):
    """times.json of a device: for each file its milliseconds in several rounds."""

    version: str
    digest: str
    batch: int = Field(ge=1)
    threads: int = Field(ge=1)
    times: dict[str, list[float]]


@dataclass(frozen=True, eq=False)
class Grid:
    """What is to be timed on a device: every unit of a network at some widths, and whole pruned networks.

    Attributes:
        network: The dense network.
        space: Its pruning space.
        example_inputs: As for :func:`deap_prune.trace`.
        setting: Batch and threads; the runtime is ``"onnxruntime"``.
    """

    network: nn.Module
    space: PruningSpace
    example_inputs: Inputs
    setting: Setting

    @classmethod
    def of(cls, model: nn.Module, space: PruningSpace, example_inputs: Inputs, *, batch: int, threads: int) -> Grid:
        """The grid of a model.

        Raises:
            ConfigError: If ONNX is not installed, or batch or threads are illegal.
        """
        network = pristine(unwrap(model)).cpu().eval()
        return cls(network, space, example_inputs, Setting("onnxruntime", batch, threads))

    def units(self) -> list[Unit]:
        """Every use of a layer."""
        return units_of(self.network, self.setting.call(self.example_inputs))

    def entries(self) -> Iterator[tuple[Unit, Entry]]:
        """The units that differ, with their entries, without times."""
        for unit in {unit.key: unit for unit in self.units()}.values():
            yield unit, begun_entry(self.space, unit)

    @property
    def digest(self) -> str:
        """Hash of what is timed."""
        keys = [(entry.key, points_of(entry)) for _, entry in self.entries()]
        return hashlib.sha256(json.dumps([keys, self.setting.batch, self.setting.threads]).encode()).hexdigest()

    def write(self, folder: Path, *, progress: Shown = True) -> int:
        """Write the ONNX files, without weights, plan.json and the script that times them; returns their number.

        Raises:
            RunError: If the folder can't be written to.
            ConfigError: If a part of the network can't be written as ONNX.
        """
        folder.mkdir(parents=True, exist_ok=True)
        names = list[str]()
        for number, (unit, entry) in enumerate(track(list(self.entries()), "writing layers", shown=progress)):
            for point in points_of(entry):
                names.append(file_name(number, point))
                write_bytes(folder / names[-1], onnx_bytes(unit.at(point), unit.call(point[0]), weights=False))
        call = self.setting.call(self.example_inputs)
        for number, masks in enumerate(calibration_masks(self.space)):
            names.append(whole_name(number))
            small = slim(self.network, self.space, masks)
            write_bytes(folder / names[-1], onnx_bytes(small, call, weights=False))
        about = {"digest": self.digest, "batch": self.setting.batch, "threads": self.setting.threads}
        write_text(folder / "plan.json", json.dumps({"threads": self.setting.threads, "of": about, "files": names}))
        write_text(folder / SCRIPT, (files("deap_prune.costs") / SCRIPT).read_text(encoding="utf-8"))
        return len(names)

    def table(self, times: Times) -> LatencyTable:
        """The table from the times of a device.

        Raises:
            ConfigError: If they are of another network, or some are missing.
        """
        if times.digest != self.digest:
            raise ConfigError("these times belong to another network, batch size or number of threads; export again")
        about = {**self.setting.about, "device": ELSEWHERE, "version": times.version}
        table = LatencyTable(about, 1.0, ())
        for number, (_, entry) in enumerate(self.entries()):

            def timer(points: Sequence[Point], number: int = number) -> list[float]:
                return [_median(times, file_name(number, point)) for point in points]

            entry = timed(entry, entry.first_points, timer)
            table = replace(table, entries=(*table.entries, timed(entry, entry.needed, timer)))
        numbers = {entry.key: number for number, entry in enumerate(table.entries)}
        units = tuple((unit.name, numbers[unit.key]) for unit in self.units())
        whole = tuple(_median(times, whole_name(number)) for number in range(len(calibration_masks(self.space))))
        return fitted(replace(table, units=units, whole=(whole,)), self.space)


def read_times(path: Path) -> Times:
    """The times that the script wrote.

    Raises:
        ConfigError: If the file can't be read.
    """
    try:
        return Times.model_validate(parse_json(read_text(path)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path}' is no times.json of {SCRIPT}: {error}; run the script again") from error


def points_of(entry: Entry) -> tuple[Point, ...]:
    """All points of an entry that may be needed: which kernels the device has is known only afterwards."""
    return (*entry.first_points, *entry.next_points(slow=True))


def file_name(number: int, point: Point) -> str:
    """File of a unit at a point."""
    return f"layer{number}-{point[0]}x{point[1]}.onnx"


def whole_name(number: int) -> str:
    """File of a whole network."""
    return f"network{number}.onnx"


def _median(times: Times, name: str) -> float:
    rounds: Any = sorted(times.times.get(name, []))
    if not rounds or not rounds[0] > 0:
        raise ConfigError(f"the times lack '{name}'; run {SCRIPT} to the end")
    return float(rounds[len(rounds) // 2])
