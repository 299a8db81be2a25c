"""Pictures of fronts, histories, scores and the agreement between criteria. Classes of the package stay out of here."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deap_prune.display import FrontFigures
from deap_prune.files import write_bytes

INK, BLUE = "#1b1f24", "#1f6feb"
OTHERS = ("#d9622b", "#7a3fd0", "#1a7f43")


class GroupAgreement(Protocol):
    """The agreement between the criteria of one group."""

    @property
    def criteria(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def correlation(self) -> NDArray[np.float64]: ...  # noqa: D102


class Agreement(Protocol):
    """The agreement between criteria, group by group."""

    @property
    def groups(self) -> Mapping[str, GroupAgreement]: ...  # noqa: D102
    def correlation(self) -> tuple[tuple[str, ...], NDArray[np.float64]]: ...  # noqa: D102


def new_axes() -> Any:
    """The axes of a new matplotlib figure, which a notebook shows."""
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(7, 4.4), layout="constrained")[1]


def plot_front(
    front: FrontFigures,
    path: str | Path,
    *,
    points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    title: str = "",
) -> None:
    """Draw a front into a file, as :func:`draw_front` does.

    Args:
        front: The front.
        path: File to write; its suffix determines the format.
        points: Other results on the same axes: label to pairs of (first, second) objective.
        title: Title of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    draw_front(figure.add_subplot(), front, points=points, title=title)
    _save(figure, Path(path))


def draw_front(
    axes: Any,
    front: FrontFigures,
    *,
    points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    title: str = "",
) -> Any:
    """Draw the first two objectives of a front; costs over a decade or more use a logarithmic axis.

    Args:
        axes: matplotlib axes to draw on.
        front: A front; with one objective its second axis is the kept share of the FLOPs.
        points: Other results on the same axes: label to pairs of (first, second) objective.
        title: Title of the picture.

    Returns:
        The axes.
    """
    first, second = [*front.weights, "flops"][:2]
    x = [s.values.get(second, s.flops / front.dense["flops"]) if second == "flops" else s.values[second] for s in front]
    y = [s.values[first] for s in front]
    axes.plot(x, y, "o-", color=BLUE, ms=4.5, lw=1.2, label="blends (front)", zorder=3)
    for number, (name, values) in enumerate((points or {}).items()):
        style: Any = {"marker": "x+1234"[number % 6], "color": OTHERS[number % len(OTHERS)], "label": name}
        axes.plot([v[1] for v in values], [v[0] for v in values], ls="", ms=4.5, mew=1.1, alpha=0.8, **style)
    dense = {"flops": 1.0, **front.dense.get("values", {})}
    if first in dense and second in dense:
        axes.plot(dense[second], dense[first], "s", color=INK, ms=6, label="dense network", zorder=4)
    if front.weights.get(second, -1) < 0 and x and min(x) > 0 and 10 * min(x) <= max(*x, dense.get(second, 0.0)):
        _logarithmic(axes)
    units = {"flops": "share of the dense multiply-adds kept", "params": "share of the parameters kept"}
    _label(axes, units.get(second, second), {"accuracy": "validation accuracy"}.get(first, first), title)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    return axes


def draw_history(axes: Any, values: Sequence[tuple[int, float]], *, label: str) -> Any:
    """Draw a value by generation.

    Args:
        axes: matplotlib axes to draw on.
        values: Pairs of (generation, value).
        label: Name of the value.

    Returns:
        The axes.
    """
    axes.plot([number for number, _ in values], [value for _, value in values], "o-", color=BLUE, ms=4.5, lw=1.2)
    _label(axes, "generation", f"best {label}", "")
    return axes


def draw_ranks(axes: Any, scores: Mapping[str, NDArray[np.float64]], *, title: str = "") -> Any:
    """Draw how criteria rank the filters of a group, as shares of the filters; columns are ordered by the mean rank.

    Args:
        axes: matplotlib axes to draw on.
        scores: Scores by criterion, shape (filters,) each, larger = keep.
        title: Title of the picture.

    Returns:
        The axes.
    """
    ranks = np.stack([np.argsort(np.argsort(s, kind="stable"), kind="stable") for s in scores.values()])
    ranks = ranks / max(ranks.shape[1] - 1, 1)
    image = axes.imshow(
        ranks[:, np.argsort(ranks.mean(axis=0))], aspect="auto", cmap="viridis", interpolation="nearest"
    )
    axes.set_yticks(range(len(ranks)), list(scores), fontsize=8, color=INK)
    axes.set_xlabel("filters, by mean rank", color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.figure.colorbar(image, ax=axes, label="rank (1: most important)")
    return axes


def _label(axes: Any, horizontal: str, vertical: str, title: str) -> None:
    axes.set_xlabel(horizontal, color=INK)
    axes.set_ylabel(vertical, color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.grid(color="#e6e8eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


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


def plot_agreement(clusters: Agreement, path: str | Path, *, title: str = "", columns: int = 8) -> None:
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
