"""Checkpoints: one JSON file per generation, written atomically, with a checksum; the newest three are kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from deap import tools
from pydantic import BaseModel, Field

from deap_prune.errors import RunError
from deap_prune.evolution.compatibility import check_same_task
from deap_prune.evolution.generation import Generation
from deap_prune.files import make_folder, open_to_append, parse_json, read_text, remove_file, write_text, writing
from deap_prune.randomness import random_states, restore_random_states

KEPT = 3


class Mark(BaseModel):
    """From where to where the lines of a journal count, in bytes, and their checksum."""

    start: Annotated[int, Field(ge=0, strict=True)]
    stop: Annotated[int, Field(ge=0, strict=True)]
    sha256: str


class Body(BaseModel):
    """What a checkpoint stores."""

    fingerprint: dict[str, str]
    number: Annotated[int, Field(ge=0, strict=True)]
    population: list[tuple[str, list[int], list[float]]]
    archive: list[tuple[str, list[int], list[float]]]
    logbook: list[dict[str, Any]]
    memory: Any
    random: Any
    extra: dict[str, Any]
    journal: Mark | None


class Journal:
    """A file of lines that only grows, for a cache that is too large to be written with every checkpoint.

    A checkpoint stores a mark: first and last byte of the lines that count, and their checksum. Lines after the mark,
    which a crash leaves, are removed when the run continues.

    Args:
        path: The file.
        entries: The mapping to write; it grows, and may be emptied.
        pack: Function of a key and its value to a line, without its end.
    """

    def __init__(self, path: Path, entries: Mapping[Any, Any], pack: Callable[[Any, Any], str]) -> None:
        self.path, self._entries, self._pack = path, entries, pack
        self._written, self._first, self._start, self._stop = 0, None, 0, 0
        self._hash = hashlib.sha256()

    def append(self) -> dict[str, Any]:
        """Append the new entries, sync the file to disk, and return the mark."""
        first = next(iter(self._entries), None)
        if len(self._entries) < self._written or (self._written and first is not self._first):
            self._written, self._start, self._hash = 0, self._stop, hashlib.sha256()  # the mapping was emptied
        new = islice(self._entries.items(), self._written, None)
        data = "".join(self._pack(key, value) + "\n" for key, value in new).encode()
        with writing(self.path), os.fdopen(open_to_append(self.path), "r+b") as file:
            file.truncate(self._stop)
            file.seek(self._stop)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._hash.update(data)
        self._written, self._first, self._stop = len(self._entries), first, self._stop + len(data)
        return {"start": self._start, "stop": self._stop, "sha256": self._hash.hexdigest()}

    def read(self, mark: Mapping[str, Any]) -> list[str] | None:
        """The lines of a mark, or None if they are damaged."""
        try:
            with self.path.open("rb") as file:
                if mark["stop"] > os.fstat(file.fileno()).st_size:
                    return None
                file.seek(mark["start"])
                data = file.read(mark["stop"] - mark["start"])
        except OSError:
            return None
        return data.decode().splitlines() if hashlib.sha256(data).hexdigest() == mark["sha256"] else None

    def go_on(self, mark: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Append after this mark from now on; the entries are those of its lines."""
        self._written, self._first = len(self._entries), next(iter(self._entries), None)
        self._start, self._stop = mark["start"], mark["stop"]
        self._hash = hashlib.sha256("".join(line + "\n" for line in lines).encode())


class Checkpoints:
    """The checkpoints/ folder of a run.

    Args:
        folder: The run folder.
        fingerprint: What the run depends on (settings as JSON, hashes of model and data), by name; a resumed run must
            have the same.
        extra: Function to further content.
        journal: A journal; the checkpoint stores its mark.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: dict[str, str],
        extra: Callable[[], dict[str, Any]] = dict,
        journal: Journal | None = None,
    ) -> None:
        self.folder = folder / "checkpoints"
        self.fingerprint = fingerprint
        self.extra = extra
        self.journal = journal

    def __call__(self, state: Generation) -> None:
        """Store a generation (a callback of the loop)."""
        make_folder(self.folder)
        if state.logbook:
            state.logbook[-1].update({name: _plain(name, value) for name, value in state.logbook[-1].items()})
        body = {
            "fingerprint": self.fingerprint,
            "number": state.number,
            "population": _pack(state.population),
            "archive": _pack(state.archive),
            "logbook": list(state.logbook),
            "memory": state.memory,
            "random": random_states(),
            "extra": self.extra(),
            "journal": self.journal.append() if self.journal is not None else None,
        }
        try:
            text = json.dumps(body)
        except (TypeError, ValueError) as error:
            raise RunError(f"the state can't be stored as JSON ({error}); put numbers, text and lists there") from error
        write_text(self._path(state.number), json.dumps({"sha256": _hash(text)}) + "\n" + text)
        for old in self.paths()[KEPT:]:
            remove_file(old)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def paths(self) -> list[Path]:
        """The checkpoints, newest first; files with other names are not the run's."""
        numbers = [(int(p.stem), p) for p in self.folder.glob("*.json") if re.fullmatch(r"\d{6,9}\.json", p.name)]
        return [path for _, path in sorted(numbers, reverse=True)]

    def load(
        self, individual: Callable[[Iterable[float]], Any], unpack: Callable[[dict[str, Any], list[str]], None]
    ) -> Generation | None:
        """The state of the newest undamaged checkpoint, or None; it sets the random generators.

        If all checkpoints are damaged, they are renamed to ``.damaged``.

        Args:
            individual: Makes an individual of genes.
            unpack: Function of the further content and the journal's lines.

        Raises:
            RunError: If it was written with another task: settings, network, functions or data (named).
        """
        body = self.newest()
        if body is None:
            for path in self.paths():  # new checkpoints have lower numbers, and only the highest are kept
                with writing(path.with_suffix(".damaged")):
                    path.rename(path.with_suffix(".damaged"))
            return None
        logbook = tools.Logbook()
        for record in body["logbook"]:
            logbook.record(**record)
        population, archive = (_unpack(body[name], individual) for name in ("population", "archive"))
        lines = None if self.journal is None else self.journal.read(body["journal"])
        unpack(body["extra"], lines or [])
        if self.journal is not None and lines is not None:  # without them a new journal begins
            self.journal.go_on(body["journal"], lines)
        restore_random_states(body["random"])
        return Generation(body["number"], population, archive, logbook, memory=body["memory"])

    def newest(self) -> dict[str, Any] | None:
        """The content of the newest undamaged checkpoint, or None.

        A checkpoint whose journal segment is intact is preferred. Losing the journal loses cached evaluations, never
        the population.

        Raises:
            RunError: If it was written with another task: settings, network, functions or data (named).
        """
        journal, alone = self.journal, None
        for path in self.paths():
            body = _read(path)
            if body is None:
                warnings.warn(f"checkpoint '{path}' is damaged; going back to the one before", stacklevel=3)
                continue
            check_same_task(body["fingerprint"], self.fingerprint, self.folder.parent)
            if journal is None:
                return body
            if journal.read(body["journal"]) is not None:
                if alone is not None:
                    warnings.warn(f"the end of '{journal.path}' is damaged; going back to '{path}'", stacklevel=3)
                return body
            alone = alone or body
        if journal is not None and alone is not None:
            lost = f"'{journal.path}' is lost or damaged; going on from generation {alone['number']} without it"
            warnings.warn(f"{lost}: candidates are evaluated again, a learned surrogate is fitted anew", stacklevel=3)
        return alone


def _plain(name: str, value: Any) -> Any:
    """A value of the logbook as JSON takes it: NumPy's and torch's numbers become Python's.

    Raises:
        RunError: If it is no number, text or list of such.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise RunError(
            f"a callback put '{name}', a {type(value).__name__}, into the logbook, which is stored as JSON; put "
            "numbers or text there"
        ) from error
    return value


def _pack(individuals: list[Any]) -> list[Any]:
    """Each individual as [genes, places of integers, values]; hexadecimal doubles are read far faster than decimals."""
    return [
        [
            np.array(ind, dtype="<f8").tobytes().hex(),
            [i for i, g in enumerate(ind) if isinstance(g, int)],
            ind.fitness.values,
        ]
        for ind in individuals
    ]


def _unpack(stored: list[Any], individual: Callable[[Iterable[float]], Any]) -> list[Any]:
    individuals = []
    for text, whole, values in stored:
        genes = np.frombuffer(bytes.fromhex(text), dtype="<f8").tolist()
        for place in whole:
            genes[place] = int(genes[place])
        individuals.append(individual(genes))
        individuals[-1].fitness.values = tuple(values)
    return individuals


def _read(path: Path) -> dict[str, Any] | None:
    """The body of a checkpoint, or None if it is damaged or no checkpoint."""
    try:
        head, text = read_text(path).split("\n", 1)
        if parse_json(head)["sha256"] != _hash(text):
            return None
        return Body.model_validate(parse_json(text, finite=False)).model_dump()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
