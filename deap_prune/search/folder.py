"""What a run folder needs beside the front: fingerprints, the evaluator's cache, the files of a result."""

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
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deap_prune.config import STOPS, SearchConfig
from deap_prune.data.batches import Data
from deap_prune.errors import RunError
from deap_prune.evolution.checkpoint import Journal
from deap_prune.evolution.front import ParetoFront
from deap_prune.files import write_text
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import unwrap
from deap_prune.structure.space import PruningSpace


def check_folder(folder: Path) -> None:
    """A run starts in a new or an empty folder, which can be written.

    Raises:
        RunError: If there is anything in it, or it can't be made.
    """
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        door = f"dp.resume('{folder}', model, example_inputs, calibration=..., validation=...)"
        again = f", or go on with its run: deap-prune resume {folder}, or from Python {door}"
        held = again if (folder / "config.yaml").is_file() else ""
        raise RunError(f"'{folder}' exists and is not empty; choose another out folder{held}")
    try:
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    except OSError as error:  # a name too long, say
        raise RunError(f"'{folder}' can't be made: {error}; choose another out folder") from error
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise RunError(f"'{folder}' can't be made: '{place}' is no folder that you may write to; choose another out")


def fingerprint(model: nn.Module, options: SearchConfig, calibration: Data, validation: Data) -> dict[str, str]:
    """What a run depends on: settings as JSON, hashes of model and data; how long it runs may change."""
    settings = options.model_dump(mode="json", exclude={"generations", *STOPS})
    weights = hashlib.sha256()
    for name, tensor in sorted(unwrap(model).state_dict().items()):
        weights.update(name.encode())
        weights.update(_bytes(tensor))
    images = hashlib.sha256()
    for leaf in tree_leaves([calibration, validation]):
        images.update(_bytes(leaf) if isinstance(leaf, Tensor) else repr(leaf).encode())
    return {
        "settings": json.dumps(settings, sort_keys=True),
        "model": weights.hexdigest(),
        "data": images.hexdigest(),
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def cache_journal(folder: Path, evaluator: Evaluator) -> Journal:
    """The evaluator's cache as a file: a mask as hexadecimal bits in the order of the space's channels, its values."""

    def line(masks: Masks, values: tuple[float, ...]) -> str:
        return json.dumps([pack_masks(evaluator.space, masks), *values])

    return Journal(folder / "cache.jsonl", evaluator.cache, line)


def pack_masks(space: PruningSpace, masks: Masks) -> str:
    """The kept filters of all groups as hexadecimal bits."""
    dense = (masks[g.name] if g.name in masks else np.ones(g.size, dtype=np.bool_) for g in space.groups)
    return np.packbits(np.concatenate(list(dense))).tobytes().hex()


def unpack_cache(extra: Mapping[str, Any], lines: Sequence[str], evaluator: Evaluator) -> None:
    """Bring the evaluator to where a checkpoint was."""
    space = evaluator.space
    evaluator.at_generation(extra.get("generation", 0))
    for line in lines:
        text, *values = json.loads(line)
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8)).astype(bool)
        masks = Masks({g.name: bits[g.start : g.start + g.size] for g in space.groups})
        evaluator.cache[masks] = tuple(values)
    evaluator.counters.candidates = extra["candidates"]
    evaluator.dense["values"].update(extra.get("dense", {}))


def versions() -> dict[str, str]:
    """What computes: Python, the machine, and the packages that figures depend on."""
    packages = ("deap-prune", "torch", "torchvision", "deap", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in packages},
    }


def write_versions(folder: Path) -> None:
    """versions.json, as of the run's start; a resumed run keeps it."""
    if not (folder / "versions.json").exists():
        write_text(folder / "versions.json", json.dumps(versions(), indent=1))


def write_history(folder: Path, logbook: tools.Logbook) -> None:
    """history.csv: one row a generation, with what callbacks added to any of them."""
    table = io.StringIO()
    columns = dict.fromkeys(name for record in logbook for name in record)
    writer = csv.DictWriter(table, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(logbook)
    write_text(folder / "history.csv", table.getvalue())


def write_result(folder: Path, front: ParetoFront, logbook: tools.Logbook) -> None:
    """history.csv, the front's files and its picture."""
    from deap_prune.plot import plot_front

    write_history(folder, logbook)
    front.save(folder)
    if len(front.weights) > 1:
        plot_front(front, folder / "front.png")
