"""The pictures of a report as PNG and SVG files, for papers and slides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deap_prune.evolution.front import ParetoFront
from deap_prune.plot import BLUE, INK, OTHERS, plot_agreement, plot_front
from deap_prune.report.facts import Facts

FORMATS = ("png", "svg")


def draw(facts: Facts, folder: Path) -> list[Path]:
    """Write all pictures for which the facts have data.

    Args:
        facts: Contents of the report.
        folder: Folder to write to; it is created.

    Returns:
        The files written.
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
    """The column of the history that shows progress: the hypervolume, or the objective if there is only one."""
    return "hypervolume" if any("hypervolume" in record for record in history) else next(iter(front.weights))


def _front(facts: Facts, path: Path) -> None:
    first, second = list(facts.front.weights)[:2]
    insight = facts.insight
    groups: dict[str, Sequence[Any]] = {
        "single criteria, uniform widths": insight.singles if insight else (),
        "random filters, mean rank (Borda)": insight.baselines if insight else (),
        **facts.beside,
    }
    points = {name: [(s.values[first], s.values[second]) for s in group] for name, group in groups.items() if group}
    plot_front(facts.front, path, points=points)


def _kept(facts: Facts, path: Path) -> None:
    figure, axes = _blank(6.5, 1.6 + 0.17 * len(facts.layers))
    image = axes.imshow(facts.kept(), aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    _labels(axes, list(facts.layers), "y")
    axes.set_xlabel("solution, cheapest first", color=INK)
    figure.colorbar(image, ax=axes, label="kept share of the filters")
    figure.savefig(path)


def _progress(facts: Facts, path: Path) -> None:
    figure, axes = _blank(6.5, 3.6)
    key = progress_key(facts.front, facts.history)
    for column, name, style in ((key, key, "o-"), ("guard", f"{key} on held-out images", "o:")):
        points = [(r["evaluations"], r[column]) for r in facts.history if column in r]
        if points:
            colour = BLUE if column == key else OTHERS[1]
            axes.plot(*np.array(points).T, style, color=colour, ms=3.5, lw=1.4, label=name)
    axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("individuals evaluated", color=INK)
    axes.set_ylabel(key, color=INK)
    axes.grid(color="#e6e8eb", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _agreement(facts: Facts, path: Path) -> None:
    if facts.insight is not None:
        plot_agreement(facts.insight.clusters, path)


def _blends(facts: Facts, path: Path) -> None:
    names, shares = facts.shares()
    figure, axes = _blank(2.8 + 0.42 * len(names), 1.8 + 0.17 * len(facts.layers))
    image = axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    _labels(axes, names, "x")
    _labels(axes, list(facts.layers), "y")
    figure.colorbar(image, ax=axes, label="weight in the blend, mean over the front")
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
