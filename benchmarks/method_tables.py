"""The tables of RESULTS.md that come from compare_methods.json: methods at a budget, differences, fronts."""

from __future__ import annotations

import statistics
from functools import cache
from typing import Any

from table_format import markdown, read, spread

Row = dict[str, Any]
PAIRS = {
    "digits": "digits",
    "cifar10-resnet20": "ResNet-20, CIFAR-10",
    "cifar100-resnet20": "ResNet-20, CIFAR-100",
    "cifar10-resnet56": "ResNet-56, CIFAR-10",
    "cifar100-resnet56": "ResNet-56, CIFAR-100",
}
# Label, protocol and method of compare_methods.json; "refined" is a compensated choice after refinement.
AT_HALF = (
    ("best single criterion, BN statistics only", "plain", "best single"),
    ("the same, compensated", "compensated", "best single"),
    ("the same, refined", "refined", "best single"),
    ("one threshold, compared as drafts", "drafts", "best single, one threshold"),
    ('search, evolved widths, `compare="compensated"`', "refined", "ours, evolved widths, pre-screened"),
    ('search, evolved widths, `compare="drafts"`', "drafts", "ours, evolved widths, pre-screened"),
    ("LeGR's genome, compared as drafts", "drafts", "LeGR"),
)
BLEND_WORTH = (
    ("BN statistics only, chosen by accuracy", "plain", "ours, uniform widths, by accuracy", ", by accuracy"),
    ("BN statistics only, chosen by loss", "plain", "ours, uniform widths", ""),
    ("the same, a cluster per criterion", "plain", "no clustering", ""),
    ("compensated, chosen by loss", "compensated", "ours, uniform widths, pre-screened", ""),
    ("refined, chosen by loss before refinement", "refined", "ours, uniform widths, pre-screened", ""),
)


@cache
def compared() -> list[Row]:
    """All rows; the refined networks as rows of a protocol of their own."""
    rows = read("compare_methods")
    return rows + [{**row, **row["refined"], "protocol": "refined"} for row in rows if "refined" in row]


def chosen(**values: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in compared() if all(row[key] == value for key, value in values.items())]


def by_seed(**values: Any) -> dict[int, float]:
    """Test top-1 in percent of the rows with these values, by seed."""
    return {row["seed"]: 100 * row["test accuracy"] for row in chosen(**values)}


def difference(first: dict[int, float], second: dict[int, float]) -> str:
    """Differences seed by seed; bold where their mean is beyond two standard deviations."""
    gaps = [first[seed] - second[seed] for seed in sorted(set(first) & set(second))]
    beyond = len(gaps) > 1 and abs(statistics.mean(gaps)) > 2 * statistics.stdev(gaps)
    return f"**{spread(gaps)}**" if beyond else spread(gaps)


def at_half() -> str:
    """Methods at half of the FLOPs, test top-1; the last rows select filters inside refinement."""
    dense = ["dense", *(f"{100 * chosen(pair=pair, kind='dense')[0]['test accuracy']:.2f}" for pair in PAIRS)]
    lines = [dense]
    for label, protocol, arm in AT_HALF:
        values = {"kind": "arm", "budget": 0.5, "protocol": protocol, "arm": arm}
        lines.append([label, *(spread(list(by_seed(pair=pair, **values).values())) for pair in PAIRS)])
    for label, stage in (
        ("search with selection, refined on 2,000 images", "refined"),
        ("the same, recovered without labels", "recovered"),
    ):
        lines.append([label, *(spread(selected_search(pair, stage)) for pair in PAIRS)])
    return markdown(["test top-1", *PAIRS.values()], lines)


def selected_search(pair: str, stage: str) -> list[float]:
    """Test top-1 in percent of the searches with sequential selection, a value for each seed."""
    rows = [row for row in read("selected_search") if row["pair"] == pair and row["select"] == "sequential"]
    return list({row["seed"]: 100 * row[stage] for row in rows if stage in row}.values())


def selection() -> str:
    """Half of every block's inner filters, or of the FLOPs with balanced widths, chosen without a search."""
    rows, pairs, lines = read("selection"), list(PAIRS)[1:], []
    for widths, criterion in sorted({(row["widths"], row["criterion"]) for row in rows}, reverse=True):
        alike = [row for row in rows if (row["widths"], row["criterion"]) == (widths, criterion)]
        cells = []
        for pair in pairs:
            stages = [
                [100 * row["test accuracy"] for row in alike if (row["pair"], row["stage"]) == (pair, stage)]
                for stage in ("compensated", "refined", "selected")
            ]
            cells.append(" / ".join(map(spread, stages)) if any(stages) else "-")
        lines.append([f"{widths}, {criterion}", *cells])
    return markdown(["compensated / refined / selected", *(PAIRS[pair] for pair in pairs)], lines)


def blend_worth() -> str:
    """Blend minus best single criterion, uniform widths, half of the FLOPs."""
    lines = []
    for label, protocol, arm, suffix in BLEND_WORTH:
        cells = []
        for pair in PAIRS:
            values = {"kind": "arm", "budget": 0.5, "protocol": protocol, "pair": pair}
            cells.append(difference(by_seed(arm=arm, **values), by_seed(arm=f"best single{suffix}", **values)))
        lines.append([label, *cells])
    return markdown(["blend minus best single criterion", *PAIRS.values()], lines)
