"""The comparison of runs of one network: what they reach, and which settings differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deap_prune.errors import BudgetError, PruneError, RunError
from deap_prune.evolution.front import ParetoFront

SHARES = (0.75, 0.5, 0.25)
"""Kept shares of the FLOPs at which fronts are compared."""


def compare_fronts(fronts: Mapping[str, ParetoFront]) -> list[list[str]]:
    """A table of the fronts, the first row its head.

    The columns are: solutions; hypervolume by the first front's reference; best value of the first objective at some
    shares of the FLOPs; share of the front that another of the fronts dominates (Zitzler and Thiele 1999, coverage).

    Args:
        fronts: Name of a run to its front; all have the first front's objectives.
    """
    first = next(iter(fronts.values()))
    names = list(first.weights)
    goal = names[0]
    head = ["run", "solutions", "hypervolume", *(f"{goal} at ≤ {share:.0%} FLOPs" for share in SHARES), "dominated"]
    points = {name: _minimised(front, first.weights) for name, front in fronts.items()}
    rows = [head if len(names) > 1 else [cell for cell in head if cell != "hypervolume"]]
    for name, front in fronts.items():
        others = np.concatenate([p for other, p in points.items() if other != name])
        row = [name, str(len(front))]
        if len(names) > 1:
            row.append(f"{_projected(front, first).hypervolume(first.reference):.4f}")
        row += [_best(front, share, goal) for share in SHARES]
        rows.append([*row, f"{_dominated(points[name], others):.0%}"])
    return rows


def run_names(folders: Sequence[Path]) -> list[str]:
    """Short, different names of run folders: the folder's name, or its path where names are equal.

    Raises:
        RunError: If two of the folders are the same.
    """
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        twice = next(folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1)
        raise RunError(f"'{twice}' is given twice; give another run to compare it with")
    names = [path.name for path in paths]
    return [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]


def config_differences(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Config key to its value in each folder, for the keys whose values are not all equal; "-" for a missing one."""
    if len(folders) < 2:
        return {}
    configs = [_flat(_read_config(folder)) for folder in folders]
    keys = dict.fromkeys(key for config in configs for key in config)
    table = {key: [config.get(key, "-") for config in configs] for key in keys if key != "out"}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def _read_config(folder: Path) -> dict[str, Any]:
    from deap_prune.config import load_config

    try:
        return load_config(folder).model_dump(mode="json")
    except PruneError:
        return {}  # a front of another program has no config


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Keys of nested mappings, joined by dots, to values as text."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": str(value)}
    return flat


def _projected(front: ParetoFront, first: ParetoFront) -> ParetoFront:
    """The front with the first one's objectives alone."""
    if list(front.weights) == list(first.weights):
        return front
    solutions = [replace(s, values={name: s.values[name] for name in first.weights}) for s in front]
    return ParetoFront.of(solutions, first.weights, front.dense, front.settings)


def _minimised(front: ParetoFront, weights: Mapping[str, float]) -> Any:
    """Values to minimise, shape (solutions, objectives)."""
    table = [[-weight * s.values[name] for name, weight in weights.items()] for s in front]
    return np.array(table, dtype=np.float64).reshape(len(front), len(weights))


def _dominated(points: Any, others: Any) -> float:
    """Share of the points that are nowhere better, and somewhere worse, than one of the others."""
    if not len(points):
        return 0.0
    no_better = (others[None] <= points[:, None]).all(axis=2)
    worse = (others[None] < points[:, None]).any(axis=2)
    return float((no_better & worse).any(axis=1).mean())


def _best(front: ParetoFront, share: float, goal: str) -> str:
    try:
        return f"{front.best(max_flops=share, by=goal).values[goal]:.4f}"
    except BudgetError:
        return "-"
