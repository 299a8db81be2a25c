"""The run folder, except for front and checkpoints: fingerprint, the cache's journal, the files of a result."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deap import tools
from torch import Tensor
from torch.utils._pytree import tree_leaves

from deap_prune.errors import RunError
from deap_prune.evolution.checkpoint import Journal
from deap_prune.evolution.front import ParetoFront
from deap_prune.files import write_text
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.options import SearchOptions
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import unwrap
from deap_prune.structure.space import PruningSpace
from deap_prune.task import Task


def check_folder(folder: Path) -> None:
    """Check that a run can start in a folder: it is new or empty, and writable.

    Raises:
        RunError: If it is not.
    """
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        door = f"dp.resume('{folder}', model, example_inputs, calibration=..., validation=...)"
        again = f", or go on with its run: deap-prune resume {folder}, or from Python {door}"
        held = again if (folder / "config.yaml").is_file() else ""
        raise RunError(f"'{folder}' exists and is not empty; choose another out folder{held}")
    try:
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    except OSError as error:  # a name that is too long, for example
        raise RunError(f"'{folder}' can't be made: {error}; choose another out folder") from error
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise RunError(f"'{folder}' can't be made: '{place}' is no folder that you may write to; choose another out")


def fingerprint(task: Task, options: SearchOptions) -> dict[str, str]:
    """What a run depends on: settings as JSON, hashes of model and data. How long the run lasts is not part of it."""
    weights = hashlib.sha256()
    for name, tensor in sorted(unwrap(task.model).state_dict().items()):
        weights.update(name.encode())
        weights.update(_bytes(tensor))
    images = hashlib.sha256()
    for leaf in tree_leaves([task.calibration, task.validation]):
        images.update(_bytes(leaf) if isinstance(leaf, Tensor) else repr(leaf).encode())
    return {
        "settings": json.dumps(options.fingerprint(), sort_keys=True),
        "model": weights.hexdigest(),
        "data": images.hexdigest(),
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def cache_journal(folder: Path, evaluator: Evaluator) -> Journal:
    """The evaluator's cache as a file: per line the mask as hexadecimal bits in channel order, and its values."""

    def line(masks: Masks, values: tuple[float, ...]) -> str:
        return json.dumps([pack_masks(evaluator.space, masks), *values])

    return Journal(folder / "cache.jsonl", evaluator.cache, line)


def pack_masks(space: PruningSpace, masks: Masks) -> str:
    """The kept filters of all groups as hexadecimal bits."""
    keep = (masks[g.name] if g.name in masks else np.ones(g.size, dtype=np.bool_) for g in space.groups)
    return np.packbits(np.concatenate(list(keep))).tobytes().hex()


def unpack_masks(space: PruningSpace, text: str) -> Masks:
    """The inverse of :func:`pack_masks`."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8)).astype(bool)
    return Masks({g.name: bits[g.start : g.start + g.size] for g in space.groups})


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


def versions() -> dict[str, str]:
    """Versions of Python, the machine and the packages that results depend on."""
    packages = ("deap-prune", "torch", "torchvision", "deap", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in packages},
    }


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
