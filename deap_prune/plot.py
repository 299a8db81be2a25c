"""Figures as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deap_prune.evolution.front import ParetoFront

INK, BLUE, ORANGE = "#1b1f24", "#1f6feb", "#d9622b"


def plot_front(
    front: ParetoFront,
    path: str | Path,
    *,
    points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    title: str = "",
) -> None:
    """Draw the first two objectives of a front.

    Args:
        front: At least two objectives.
        path: Picture to write; its suffix chooses the format.
        points: Other results on the same axes: label to pairs (first, second objective).
        title: Above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first, second = list(front.weights)[:2]
    figure = Figure(figsize=(7, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x = [s.values[second] for s in front]
    y = [s.values[first] for s in front]
    axes.plot(x, y, "o-", color=BLUE, ms=4.5, lw=1.2, label="blends (front)", zorder=3)
    for name, values in (points or {}).items():
        axes.plot(
            [v[1] for v in values], [v[0] for v in values], "x", color=ORANGE, ms=4.5, mew=1.1, alpha=0.8, label=name
        )
    dense = front.dense.get("values", {})
    if first in dense and second in dense:
        axes.plot(dense[second], dense[first], "s", color=INK, ms=6, label="dense network", zorder=4)
    units = {"flops": "share of the dense multiply-adds kept", "params": "share of the parameters kept"}
    axes.set_xlabel(units.get(second, second), color=INK)
    axes.set_ylabel({"accuracy": "validation accuracy"}.get(first, first), color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.grid(color="#e6e8eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    figure.savefig(path)
