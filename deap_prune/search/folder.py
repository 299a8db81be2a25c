"""The run folder, except for front and checkpoints: the cache's journal, the files of a result."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from deap import tools

from deap_prune.errors import RunError
from deap_prune.evolution.checkpoint import Journal
from deap_prune.evolution.front import ParetoFront
from deap_prune.evolution.loop import ALGORITHMS
from deap_prune.evolution.returns import Returns
from deap_prune.files import write_text
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.options import SearchOptions
from deap_prune.search.fingerprint import versions
from deap_prune.search.lock import check_unused
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace


def check_folder(folder: Path) -> None:
    """Check that a run can start in a folder: it is new or empty, and writable.

    Raises:
        RunError: If it is not.
    """
    check_unused(folder)
    try:
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    except OSError as error:  # a name that is too long, for example
        raise RunError(f"'{folder}' can't be made: {error}; choose another out folder") from error
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise RunError(f"'{folder}' can't be made: '{place}' is no folder that you may write to; choose another out")


def cache_journal(folder: Path, evaluator: Evaluator) -> Journal:
    """The evaluator's cache as a file: per line the mask as hexadecimal bits in channel order, and its values."""

    def line(masks: Masks, values: tuple[float, ...]) -> str:
        return json.dumps([pack_masks(evaluator.space, masks), *values])

    return Journal(folder / "cache.jsonl", evaluator.cache, line)


def returns_journal(folder: Path, options: SearchOptions, fingerprint: Mapping[str, str]) -> Returns | None:
    """The order of returns as a file, if the algorithm is steady-state."""
    if not ALGORITHMS[options.algorithm].steady:
        return None
    task = {name: text for name, text in fingerprint.items() if name != "environment"}  # the checkpoint warns of that
    return Returns(folder / "returns.jsonl", task)


def pack_masks(space: PruningSpace, masks: Masks) -> str:
    """The kept filters of all groups as hexadecimal bits."""
    keep = (masks[g.name] if g.name in masks else np.ones(g.size, dtype=np.bool_) for g in space.groups)
    return np.packbits(np.concatenate(list(keep))).tobytes().hex()


def unpack_masks(space: PruningSpace, text: str) -> Masks:
    """The inverse of :func:`pack_masks`."""
    return unpack_bits({group.name: group.size for group in space.groups}, text)


def unpack_bits(sizes: Mapping[str, int], text: str) -> Masks:
    """Masks of hexadecimal bits.

    Args:
        sizes: Number of filters of each group, in the order of the bits.
        text: The bits, filled up to whole bytes.

    Raises:
        ValueError: If they are too few or too many, or no hexadecimal bits.
    """
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8)).astype(bool)
    ends = np.cumsum([0, *sizes.values()])
    if not ends[-1] <= len(bits) < ends[-1] + 8:
        raise ValueError(f"masks have {len(bits)} bits, not those of {ends[-1]} filters")
    return Masks({name: bits[end - size : end] for (name, size), end in zip(sizes.items(), ends[1:], strict=True)})


def checkpoint_extra(evaluator: Evaluator) -> dict[str, Any]:
    """What a checkpoint stores of the evaluator, apart from its cache; a latency can't be measured again."""
    return {"candidates": evaluator.counters.candidates, "dense": evaluator.dense["values"]}


def restore_evaluator(extra: Mapping[str, Any], lines: Sequence[str], evaluator: Evaluator) -> None:
    """Set the evaluator to its state at a checkpoint.

    Args:
        extra: Result of :func:`checkpoint_extra`.
        lines: Lines of the cache's journal.
        evaluator: A new evaluator of the same task.
    """
    rows = (json.loads(line) for line in lines)
    values = {unpack_masks(evaluator.space, text): tuple(numbers) for text, *numbers in rows}
    evaluator.restore(values, candidates=extra["candidates"], dense=extra["dense"])


def write_versions(folder: Path) -> None:
    """Write versions.json when a run starts; a resumed run keeps it."""
    if not (folder / "versions.json").exists():
        write_text(folder / "versions.json", json.dumps(versions(), indent=1))


def write_history(folder: Path, logbook: tools.Logbook) -> None:
    """Write history.csv: one row per generation, with the columns that callbacks added."""
    table = io.StringIO()
    columns = dict.fromkeys(name for record in logbook for name in record)
    writer = csv.DictWriter(table, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(logbook)
    write_text(folder / "history.csv", table.getvalue())


def write_result(folder: Path, front: ParetoFront, logbook: tools.Logbook) -> None:
    """Write history.csv, the front's files and its picture."""
    from deap_prune.plot import plot_front

    write_history(folder, logbook)
    front.save(folder)
    if len(front.weights) > 1:
        plot_front(front, folder / "front.png")
