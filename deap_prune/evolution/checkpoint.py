"""Checkpoints: one JSON file a generation, written atomically, with a checksum; the newest few are kept."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from deap import tools

from deap_prune.errors import RunError
from deap_prune.evolution.generation import Generation
from deap_prune.evolution.randomness import random_states, restore_random_states
from deap_prune.files import write_text

KEPT = 3
_OTHER = {
    "settings": "other settings",
    "model": "another model",
    "data": "other data (a DataLoader needs shuffle=False to give the same again)",
}


class Checkpoints:
    """The checkpoints/ folder of a run.

    Args:
        folder: The run folder.
        fingerprint: Name to hash of what the run depends on (settings, model, data): a resume must match.
        extra: Gives more to store, such as the evaluator's cache.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, str], extra: Callable[[], dict[str, Any]] = dict) -> None:
        self.folder = folder / "checkpoints"
        self.fingerprint = fingerprint
        self.extra = extra

    def __call__(self, state: Generation) -> None:
        """Store a generation (a callback of ``eaBlend``)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        body = {
            "fingerprint": self.fingerprint,
            "number": state.number,
            "population": _pack(state.population),
            "archive": _pack(state.archive),
            "logbook": list(state.logbook),
            "random": random_states(),
            "extra": self.extra(),
        }
        text = json.dumps(body)
        write_text(self._path(state.number), json.dumps({"sha256": _hash(text)}) + "\n" + text)
        for old in self.paths()[KEPT:]:
            old.unlink()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def paths(self) -> list[Path]:
        """The files there are, newest first."""
        return sorted(self.folder.glob("[0-9]*.json"), reverse=True)

    def load(self, individual: Callable[[Iterable[float]], Any]) -> tuple[Generation, dict[str, Any]] | None:
        """The newest whole checkpoint, with the random generators set to it; None if there is none.

        Args:
            individual: Makes an individual of genes.

        Raises:
            RunError: If it was written with other settings, another model or other data (named).
        """
        body = self.newest()
        if body is None:
            return None
        logbook = tools.Logbook()
        for record in body["logbook"]:
            logbook.record(**record)
        population, archive = (_unpack(body[name], individual) for name in ("population", "archive"))
        restore_random_states(body["random"])
        return Generation(body["number"], population, archive, logbook), body["extra"]

    def newest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint as it is stored; None if there is none.

        Raises:
            RunError: If it was written with other settings, another model or other data (named).
        """
        for path in self.paths():
            body = _read(path)
            if body is None:
                warnings.warn(f"checkpoint '{path}' is damaged; going back to the one before", stacklevel=3)
                continue
            differing = [_OTHER[k] for k, v in self.fingerprint.items() if body["fingerprint"].get(k) != v]
            if differing:
                raise RunError(
                    f"'{path.parent.parent}' was run with {' and '.join(differing)}; go on with the same, "
                    "or start a new run in another folder"
                )
            return body
        return None


def _pack(individuals: list[Any]) -> list[Any]:
    return [[list(ind), list(ind.fitness.values)] for ind in individuals]


def _unpack(stored: list[Any], individual: Callable[[Iterable[float]], Any]) -> list[Any]:
    found = []
    for genes, values in stored:
        found.append(individual(genes))
        found[-1].fitness.values = tuple(values)
    return found


def _read(path: Path) -> dict[str, Any] | None:
    """The body of a checkpoint, or None if it is damaged."""
    try:
        head, text = path.read_text(encoding="utf-8").split("\n", 1)
        return json.loads(text) if json.loads(head)["sha256"] == _hash(text) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
