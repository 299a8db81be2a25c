"""What the steps of quality.py say: one JSON file, tables for RESULTS.md, a figure."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from arms import ABLATIONS, ARMS, FRONTS

Row = dict[str, Any]
MARKS = ("<!-- quality -->", "<!-- end of quality -->")
LEFT_OUT = ("individual", "blend", "masks")  # what only a transfer and training.py read
STAGES = ("compensated", "refined", "drafts", "plain")
CONTRASTS = (
    ("compensated", "ours, uniform widths", "best single"),
    ("compensated", "ours, uniform widths, pre-screened", "best single"),
    ("compensated", "ours, no clustering, pre-screened", "best single"),
    ("compensated", "ours, evolved widths", "ours, uniform widths"),
    ("compensated", "ours, evolved widths, pre-screened", "LeGR"),
    ("compensated", "ours, evolved widths, pre-screened", "best single, balanced widths"),
    ("refined", "ours, uniform widths", "best single"),
    ("refined", "ours, uniform widths, pre-screened", "best single"),
    ("refined", "ours, no clustering, pre-screened", "best single"),
    ("refined", "ours, evolved widths", "best single"),
    ("refined", "ours, evolved widths, pre-screened", "best single"),
    ("refined", "ours, evolved widths, pre-screened", "LeGR"),
    ("refined", "best single, balanced widths", "best single"),
    ("refined", "ours, evolved widths, pre-screened", "best single, balanced widths"),
    ("refined", "best single, one threshold", "best single, balanced widths"),
    ("drafts", "ours, uniform widths, pre-screened", "best single"),
    ("drafts", "best single, balanced widths", "best single"),
    ("drafts", "ours, evolved widths, pre-screened", "best single, balanced widths"),
    ("drafts", "ours, evolved widths, pre-screened", "best single, one threshold"),
    ("drafts", "ours, evolved widths, pre-screened", "LeGR"),
    ("plain", "ours, uniform widths", "best single"),
    ("plain", "no clustering", "best single"),
    ("plain", "ours, uniform widths, by accuracy", "best single, by accuracy"),
    ("plain", "ours, uniform widths, by accuracy", "ours, uniform widths"),
    ("plain", "ours, uniform widths", "random search, uniform widths"),
    ("plain", "ours, uniform widths", "no clustering"),
    ("plain", "ours, uniform widths", "mean rank"),
    ("plain", "ours, evolved widths", "ours, uniform widths"),
    ("plain", "ours, evolved widths", "best single, one threshold"),
    ("plain", "ours, evolved widths", "LeGR"),
    ("plain", "ours, evolved widths", "random search, evolved widths"),
)
UNMEASURED = "imagenet-resnet50"


def gather(out: Path) -> list[Row]:
    """All rows that there are."""
    rows = [json.loads(path.read_text()) for path in sorted(out.glob("*/*/*.json"))]
    return [{key: value for key, value in row.items() if key not in LEFT_OUT} for row in rows]


def with_refined(rows: list[Row]) -> list[Row]:
    """The rows, and what became of them by refinement as rows of a protocol of its own."""
    return rows + [{**row, **row["refined"], "protocol": "refined"} for row in rows if "refined" in row]


def chosen(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def top1(row: Row) -> float:
    """Test accuracy in percent."""
    return 100 * float(row["test accuracy"])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean, standard deviation (n - 1) and how many."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation} ({len(values)})"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def in_order(rows: Iterable[Row], key: str) -> list[Any]:
    """The values of a column, each once, as they first come."""
    return list(dict.fromkeys(row[key] for row in rows))


# ------------------------------------------------------------------ tables
def by_arm(rows: list[Row], pairs: Sequence[str], figure: Callable[[Row], float], digits: int = 2) -> str:
    """Arms down, pairs across."""
    present = [p for p in pairs if chosen(rows, pair=p)]
    lines = []
    for arm in in_order(rows, "arm"):
        cells = ([figure(row) for row in chosen(rows, arm=arm, pair=pair)] for pair in present)
        lines.append([arm, *(spread(cell, digits) for cell in cells)])
    return markdown(["", *present], lines)


def gap(rows: list[Row], protocol: str, one: str, other: str, pair: str) -> str:
    """The difference of two arms, seed by seed; bold where the mean is beyond two of their standard deviations."""
    here = chosen(rows, pair=pair, protocol=protocol)
    scores = [{row["seed"]: top1(row) for row in chosen(here, arm=arm)} for arm in (one, other)]
    gaps = [scores[0][seed] - scores[1][seed] for seed in sorted(set(scores[0]) & set(scores[1]))]
    beyond = len(gaps) > 1 and abs(statistics.mean(gaps)) > 2 * statistics.stdev(gaps)
    return f"**{spread(gaps)}**" if beyond else spread(gaps)


def contrasts(rows: list[Row], pairs: Sequence[str]) -> str:
    """Differences of two arms of the same cell, in points of test top-1: contrasts down, pairs across."""
    present = [p for p in pairs if chosen(rows, pair=p)]
    lines = []
    for protocol, one, other in CONTRASTS:
        cells = [gap(rows, protocol, one, other, pair) for pair in present]
        if set(cells) != {"-"}:
            lines.append([protocol, f"{one} - {other}", *cells])
    return markdown(["protocol", "difference of", *present], lines)


def singles(rows: list[Row], pairs: Sequence[str]) -> str:
    """Validation accuracy of every single criterion."""
    told = chosen(rows, arm="best single")
    spelt = [{**row, "arm": name, "value": v["accuracy"]} for row in told for name, v in row["singles"].items()]
    return by_arm(spelt, pairs, lambda row: 100 * row["value"], 1)


def fronts(rows: list[Row], pairs: Sequence[str]) -> str:
    """Hypervolumes: arms down, on validation and on test images; pairs across."""
    told = chosen(rows, kind="front")
    present, lines = [p for p in pairs if chosen(told, pair=p)], []
    for protocol, split, arm in itertools.product(STAGES, ("test", "validation"), in_order(told, "arm")):
        here = chosen(told, protocol=protocol, arm=arm)
        if here:
            cells = ([row["hypervolume"][split] for row in chosen(here, pair=pair)] for pair in present)
            lines.append([f"{protocol}, {split}", arm, *(spread(cell, 4) for cell in cells)])
    return markdown(["protocol, images", "front of", *present], lines)


def text(rows: list[Row], pairs: Sequence[str]) -> str:
    """All tables."""
    arms = chosen(rows, kind="arm")
    dense = {row["pair"]: f"{row['pair']} {top1(row):.2f}" for row in chosen(rows, kind="dense")}
    parts = [f"Dense networks, test top-1: {', '.join(dense.values())}."] if dense else []
    for budget in sorted(set(in_order(arms, "budget")), reverse=True):
        for protocol in STAGES:
            here = chosen(arms, budget=budget, protocol=protocol)
            if here:
                parts.append(f"**{budget:.0%} of the FLOPs, {protocol}**: test top-1, mean ± sd (seeds)")
                parts.append(by_arm(here, pairs, top1))
    half, moved = chosen(arms, budget=0.5), chosen(rows, kind="transfer")
    for budget in sorted(set(in_order(arms, "budget")), reverse=True):
        heading = f"**Differences within a cell, {budget:.0%} of the FLOPs**"
        parts.append(f"{heading}: points of test top-1; bold: the mean is beyond two standard deviations")
        parts.append(contrasts(chosen(arms, budget=budget), pairs))
    for protocol in (p for p in ("compensated", "plain") if chosen(half, protocol=p)):
        parts.append(f"**Single criteria, half the FLOPs, uniform widths, {protocol}**: validation top-1")
        parts.append(singles(chosen(half, protocol=protocol), pairs))
    for budget, protocol in itertools.product(sorted(set(in_order(moved, "budget")), reverse=True), STAGES):
        if here := chosen(moved, budget=budget, protocol=protocol):
            parts.append(f"**Blends carried over, {budget:.0%} of the FLOPs, {protocol}**: test top-1")
            parts.append(by_arm(here, pairs, top1))
    if chosen(rows, kind="front"):
        parts += ["**Fronts**: hypervolume of (accuracy, FLOPs), reference (0, 1)", fronts(rows, pairs)]
    if told := chosen(rows, kind="ablation"):
        parts.append("**Ablations**, plain, half the FLOPs, uniform widths: test top-1")
        parts.append(by_arm(told, in_order(told, "pair"), top1))
    if not chosen(rows, pair=UNMEASURED):
        parts.append(f"{UNMEASURED}: not measured.")
    return "\n\n".join(parts)


# ------------------------------------------------------------------ figure
def draw(rows: list[Row], pairs: Sequence[str], path: Path) -> None:
    """Arms at half the FLOPs, a panel for each pair and protocol that was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    half = chosen(rows, kind="arm", budget=0.5)
    panels = [(p, protocol) for protocol in STAGES for p in pairs if chosen(half, pair=p, protocol=protocol)]
    columns = max(1, min(3, len(panels)))
    lines = -(-len(panels) // columns) or 1
    figure = Figure(figsize=(4.6 * columns, 2.6 * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (pair, protocol) in enumerate(panels):
        here = chosen(half, pair=pair, protocol=protocol)
        axes = figure.add_subplot(lines, columns, number + 1)
        arms = in_order(here, "arm")[::-1]
        for height, arm in enumerate(arms):
            scores = [top1(row) for row in chosen(here, arm=arm)]
            color = "#1f6feb" if arm.startswith("ours") else "#57606a"
            axes.plot(scores, [height] * len(scores), "o", ms=4, color=color, alpha=0.5)
            axes.plot([statistics.mean(scores)], [height], "|", ms=14, mew=2, color=color)
        axes.set_yticks(range(len(arms)), arms, fontsize=7)
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.set_title(f"{pair}, {protocol}: test top-1", loc="left", fontsize=8)
        axes.grid(color="#e6e8eb", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def write_tables(out: Path, results: Path, report: Path | None, pairs: Sequence[str]) -> None:
    """Gather the steps into quality.json and quality.png, and put the tables between the marks of the report."""
    arms = [*ARMS, *FRONTS, *ABLATIONS]
    places = {name: number for number, name in enumerate([*pairs, *arms])}

    def place(row: Row) -> tuple[Any, ...]:
        return places[row["pair"]], -(row["budget"] or 0), row["protocol"], places.get(row["arm"], -1), row["seed"]

    rows = sorted(gather(out), key=place)
    for pair in pairs:
        if len(found := {row["weights"] for row in chosen(rows, pair=pair) if "weights" in row}) > 1:
            raise SystemExit(f"the rows of {pair} in {out} are of several networks: {', '.join(sorted(found))}")
    results.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    (results / "quality.json").write_text(f"[\n{lines}\n]\n")
    rows = with_refined(rows)
    draw(rows, pairs, results / "quality.png")
    tables = text(rows, pairs)
    print(tables)
    if report is not None:
        before, rest = report.read_text().split(MARKS[0])
        report.write_text(f"{before}{MARKS[0]}\n{tables}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")
