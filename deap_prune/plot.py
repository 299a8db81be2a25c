"""Pictures of fronts and of the agreement between criteria."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deap_prune.blending.clusters import CriteriaClusters
from deap_prune.evolution.front import ParetoFront
from deap_prune.files import write_bytes

INK, BLUE = "#1b1f24", "#1f6feb"
OTHERS = ("#d9622b", "#7a3fd0", "#1a7f43")


def plot_front(
    front: ParetoFront,
    path: str | Path,
    *,
    points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    title: str = "",
) -> None:
    """Draw the first two objectives of a front; costs over a decade or more use a logarithmic axis.

    Args:
        front: A front with at least two objectives.
        path: File to write; its suffix determines the format.
        points: Other results on the same axes: label to pairs of (first, second) objective.
        title: Title of the picture.
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
    for number, (name, values) in enumerate((points or {}).items()):
        style: Any = {"marker": "x+1234"[number % 6], "color": OTHERS[number % len(OTHERS)], "label": name}
        axes.plot([v[1] for v in values], [v[0] for v in values], ls="", ms=4.5, mew=1.1, alpha=0.8, **style)
    dense = front.dense.get("values", {})
    if first in dense and second in dense:
        axes.plot(dense[second], dense[first], "s", color=INK, ms=6, label="dense network", zorder=4)
    if front.weights[second] < 0 and x and min(x) > 0 and 10 * min(x) <= max(*x, dense.get(second, 0.0)):
        _logarithmic(axes)
    units = {"flops": "share of the dense multiply-adds kept", "params": "share of the parameters kept"}
    axes.set_xlabel(units.get(second, second), color=INK)
    axes.set_ylabel({"accuracy": "validation accuracy"}.get(first, first), color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.grid(color="#e6e8eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    _save(figure, Path(path))


def _save(figure: Any, path: Path) -> None:
    """Write a figure in the format of the path's suffix, in one step."""
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:] or "png")
    write_bytes(path, image.getvalue())


def _logarithmic(axes: Any) -> None:
    """Make the horizontal axis logarithmic, with ticks at 1, 2 and 5 times powers of ten, in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def plot_agreement(clusters: CriteriaClusters, path: str | Path, *, title: str = "", columns: int = 8) -> None:
    """Draw Spearman's rho between criteria: the mean over the layers, and each layer in a small panel below.

    Criteria are in the order of a hierarchical clustering of the means, so similar ones are adjacent. Pairs that do not
    apply to a layer are blank.

    Args:
        clusters: Clusters from ``dp.cluster``.
        path: File to write; its suffix determines the format.
        title: Title of the picture.
        columns: Number of panels in a row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, mean = clusters.correlation()
    order = _similarity_order(mean)
    rows = -(-len(clusters.groups) // columns)
    side = 1.6 + 0.34 * len(names)
    figure = Figure(figsize=(max(side + 1, 7), side + 1.15 * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(2, 1, height_ratios=(side, 1.15 * rows))
    above, below = halves
    axes = above.add_subplot()
    ordered = mean[np.ix_(order, order)]
    image = _heat(axes, ordered)
    axes.set_xticks(range(len(order)), [names[i] for i in order], rotation=90, fontsize=7, color=INK)
    axes.set_yticks(range(len(order)), [names[i] for i in order], fontsize=7, color=INK)
    for (i, j), rho in np.ndenumerate(ordered):
        if np.isfinite(rho):
            axes.text(j, i, f"{rho:.2f}", ha="center", va="center", fontsize=5, color="w" if abs(rho) > 0.6 else INK)
    subject = f"Spearman's rho, mean over {len(clusters.groups)} layers"
    axes.set_title(f"{title}: {subject}" if title else subject, loc="left", fontsize=9, color=INK)
    above.colorbar(image, ax=axes, shrink=0.7)
    panels = below.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, (name, group) in zip(panels.flat, clusters.groups.items(), strict=False):
        place = {criterion: i for i, criterion in enumerate(group.criteria)}
        table = np.full((len(names), len(names)), np.nan)
        rows_used = [i for i, criterion in enumerate(names) if criterion in place]
        index = [place[names[i]] for i in rows_used]
        table[np.ix_(rows_used, rows_used)] = group.correlation[np.ix_(index, index)]
        _heat(panel, table[np.ix_(order, order)])
        panel.set_title(name, fontsize=5, color=INK, pad=2)
    _save(figure, Path(path))


def _heat(axes: Any, values: NDArray[np.float64]) -> Any:
    return axes.imshow(values, cmap="PuOr_r", vmin=-1, vmax=1, interpolation="nearest")


def _similarity_order(rho: NDArray[np.float64]) -> list[int]:
    """An order of the criteria in which similar ones are adjacent; pairs without a value count as uncorrelated."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(rho) < 3:
        return list(range(len(rho)))
    distance = 1 - np.nan_to_num((rho + rho.T) / 2)
    np.fill_diagonal(distance, 0.0)
    return [int(i) for i in leaves_list(linkage(squareform(np.clip(distance, 0, 2)), "average", optimal_ordering=True))]
