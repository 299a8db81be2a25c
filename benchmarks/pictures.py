"""Pictures of RESULTS.md, from the same JSON files as its tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evidence_tables import STAGES
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from method_tables import PAIRS, by_seed, chosen, selected_search
from table_format import RESULTS, available, read

FEW = {"cifar10-resnet20": "C0", "cifar100-resnet20": "C1", "cifar10-resnet56": "C2", "cifar100-resnet56": "C3"}
SHORT = (
    ("best single,\nBN only", "plain", "best single"),
    ("compensated", "compensated", "best single"),
    ("refined", "refined", "best single"),
    ("one threshold,\ndrafts", "drafts", "best single, one threshold"),
    ("search,\ndrafts", "drafts", "ours, evolved widths, pre-screened"),
)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def at_half(axes: Any) -> None:
    """Test top-1 at half of the FLOPs, a line for each pair and a point for each stage."""
    labels = [label for label, _, _ in SHORT] + ["search with\nselection", "recovered"]
    for pair, colour in FEW.items():
        values: list[float | None] = []
        for _, protocol, arm in SHORT:
            rows = by_seed(kind="arm", budget=0.5, protocol=protocol, arm=arm, pair=pair)
            values.append(_mean(list(rows.values())))
        values += [_mean(selected_search(pair, stage)) for stage in ("refined", "recovered")]
        points = [(place, value) for place, value in enumerate(values) if value is not None]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=PAIRS[pair])
        axes.axhline(100 * chosen(pair=pair, kind="dense")[0]["test accuracy"], color=colour, lw=0.8, ls=":")
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylabel("test top-1, % (dotted: dense)")
    axes.set_title("Half of the FLOPs, no training", fontsize=10)
    axes.legend(fontsize=8)


def rivals(axes: Any) -> None:
    """Torch-Pruning's pruners and this library's masks by stage, ResNet-20 on CIFAR-100."""
    for row in read("rivals"):
        if row["pair"] == "cifar100-resnet20":
            ours = row["pruner"].startswith("this library")
            values = [100 * row["test accuracy"][stage] for stage in STAGES]
            axes.plot(STAGES, values, "o-" if ours else "x--", lw=2 if ours else 1, label=row["pruner"])
    axes.set_ylabel("test top-1, %")
    axes.set_title("ResNet-20, CIFAR-100, half of the FLOPs: Torch-Pruning's pruners (dashed) and ours", fontsize=10)
    axes.legend(fontsize=7)


def after_training(axes: Any) -> None:
    """Test top-1 before and after training."""
    for rows in read("after_training").values():
        for row in rows:
            if row["before training"] is not None:
                values = [100 * row["before training"], 100 * row["test accuracy"]]
                axes.plot([0, row["epochs"]], values, "o-", label=f"{row['arm']}, seed {row['seed']}")
    axes.set_xlabel("epochs of training")
    axes.set_ylabel("test top-1, %")
    axes.set_title("ResNet-20, CIFAR-100, half of the FLOPs: before and after training", fontsize=10)
    axes.legend(fontsize=7)


PICTURES: dict[str, Callable[[Any], None]] = {
    "at_half": at_half,
    "rivals": rivals,
    "after_training": after_training,
}
NEEDS = {"rivals": "rivals", "after_training": "after_training"}


def draw_all() -> None:
    """Write every picture whose results exist to results/*.png."""
    for name, draw in PICTURES.items():
        if name in NEEDS and not available(NEEDS[name]):
            continue
        figure = Figure(figsize=(8, 4.2), dpi=100, layout="constrained")
        draw(figure.add_subplot())
        FigureCanvasAgg(figure).print_png(RESULTS / f"{name}.png", metadata={"Software": None})
