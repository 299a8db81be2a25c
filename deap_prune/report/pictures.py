"""The pictures of a report as files, PNG and SVG, for papers and slides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deap_prune.evolution.front import ParetoFront
from deap_prune.plot import BLUE, INK, plot_front
from deap_prune.report.facts import Facts

FORMATS = ("png", "svg")


def draw(facts: Facts, folder: Path) -> list[Path]:
    """Write every picture that the facts allow.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Facts, Path], None]] = {"kept": _kept}
    if len(facts.front.weights) > 1:
        pictures["front"] = _front
    if facts.history:
        pictures["progress"] = _progress
    if facts.insight is not None:
        pictures["agreement"] = _agreement
        if facts.insight.blends:
            pictures["blends"] = _blends
    paths = [folder / f"{name}.{suffix}" for name in pictures for suffix in FORMATS]
    for path in paths:
        pictures[path.stem](facts, path)
    return paths


def progress_key(front: ParetoFront, history: Sequence[Any]) -> str:
    """What shows a search's progress: the hypervolume, or with one objective its best value."""
    return "hypervolume" if any("hypervolume" in record for record in history) else next(iter(front.weights))


def _front(facts: Facts, path: Path) -> None:
    first, second = list(facts.front.weights)[:2]
    singles = facts.insight.singles if facts.insight else ()
    points = [(s.values[first], s.values[second]) for s in singles]
    plot_front(facts.front, path, points={"single criteria, uniform widths": points} if points else None)


def _kept(facts: Facts, path: Path) -> None:
    figure, axes = _blank(6.5, 1.6 + 0.17 * len(facts.layers))
    image = axes.imshow(facts.kept(), aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    _labels(axes, list(facts.layers), "y")
    axes.set_xlabel("solution of the front, cheapest first", color=INK)
    figure.colorbar(image, ax=axes, label="kept share of the filters")
    figure.savefig(path)


def _progress(facts: Facts, path: Path) -> None:
    figure, axes = _blank(6.5, 3.6)
    key = progress_key(facts.front, facts.history)
    points = [(r["evaluations"], r[key]) for r in facts.history if key in r]
    axes.plot(*np.array(points).reshape(-1, 2).T, "o-", color=BLUE, ms=3.5, lw=1.4)
    axes.set_xlabel("individuals judged", color=INK)
    axes.set_ylabel(key, color=INK)
    axes.grid(color="#e6e8eb", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _agreement(facts: Facts, path: Path) -> None:
    if facts.insight is None:
        return
    names, rho = facts.insight.clusters.correlation()
    figure, axes = _blank(2.6 + 0.42 * len(names), 1.6 + 0.42 * len(names))
    image = axes.imshow(rho, cmap="PuOr_r", vmin=-1, vmax=1, interpolation="nearest")
    _labels(axes, names, "x")
    _labels(axes, names, "y")
    for (i, j), value in np.ndenumerate(rho):
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color="w" if abs(value) > 0.6 else INK)
    figure.colorbar(image, ax=axes, label="Spearman's rho, mean over the layers")
    figure.savefig(path)


def _blends(facts: Facts, path: Path) -> None:
    names, shares = facts.shares()
    figure, axes = _blank(2.8 + 0.42 * len(names), 1.8 + 0.17 * len(facts.layers))
    image = axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    _labels(axes, names, "x")
    _labels(axes, list(facts.layers), "y")
    figure.colorbar(image, ax=axes, label="share of the blend, mean over the front")
    figure.savefig(path)


def _labels(axes: Any, names: Sequence[str], side: str) -> None:
    if side == "x":
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7, color=INK)
    else:
        axes.set_yticks(range(len(names)), names, fontsize=7, color=INK)


def _blank(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
