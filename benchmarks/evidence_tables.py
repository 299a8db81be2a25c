"""Tables of RESULTS.md on the search with selection: its parts, rivals, parameters, training, ImageNet."""

from __future__ import annotations

from typing import Any

from method_tables import PAIRS
from table_format import available, markdown, not_measured, read, spread

Row = dict[str, Any]
STAGES = ("as pruned", "BN statistics", "compensated", "refined", "selected")


def percent(values: list[float]) -> str:
    """Mean of shares in percent, with deviation and n."""
    return spread([100 * value for value in values])


def pairs_of(rows: list[Row]) -> list[str]:
    """Pairs that have rows, in the order of the headline table."""
    return [pair for pair in PAIRS if any(row["pair"] == pair for row in rows)]


# ------------------------------------------------------------------ the blend
def ablation() -> str:
    """Parts of the search with selection."""
    if not available("ablation"):
        return not_measured("parts of the search with selection, `python benchmarks/ablation.py`")
    rows = read("ablation")
    pairs, lines = pairs_of(rows), []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        here = [row for row in rows if row["arm"] == arm]
        evaluations = "/".join(sorted({str(row["evaluations"]) for row in here}))
        cells = []
        for pair in pairs:
            alike = [row for row in here if row["pair"] == pair]
            losses = [row["validation"]["loss"] for row in alike]
            cells += [spread(losses, 3), percent([row["test accuracy"] for row in alike])]
        lines.append([arm, evaluations, *cells])
    head = [text for pair in pairs for text in (f"{PAIRS[pair]}: validation loss", "test top-1")]
    text = (
        "With selection the individual decides the widths and the blend is a preference. Each arm changes one option "
        "of the search; few evaluations. Command: `python benchmarks/ablation.py --data DIR --weights DIR`\n\n"
    )
    return text + markdown(["arm", "evaluations", *head], lines)


# ------------------------------------------------------------------ rivals
def _is_ours(row: Row) -> bool:
    return bool(row["pruner"].startswith("this library"))


def rivals() -> str:
    """Torch-Pruning's pruners at every stage, on ResNet-20, CIFAR-100."""
    if not available("rivals"):
        return not_measured("Torch-Pruning's pruners")
    rows = [row for row in read("rivals") if row["pair"] == "cifar100-resnet20"]
    lines = []
    for pruner in dict.fromkeys(row["pruner"] for row in rows):
        here = [row for row in rows if row["pruner"] == pruner]
        name = pruner if _is_ours(here[0]) else f"Torch-Pruning, {pruner}"
        share = sum(row["flops"] for row in here) / len(here)
        cells = [percent([row["test accuracy"][stage] for row in here]) for stage in STAGES]
        lines.append([name, f"{100 * share:.1f}", *cells])
    return markdown(["ResNet-20, CIFAR-100", "FLOPs, %", *STAGES], lines)


def rival_ranges() -> str:
    """The worst and the best of Torch-Pruning's masks and of this library's, at every stage and on every pair."""
    if not available("rivals"):
        return not_measured("Torch-Pruning's pruners")
    lines = []
    for pair in pairs_of(read("rivals")):
        for name, mine in (("Torch-Pruning", False), ("this library", True)):
            rows = [row for row in read("rivals") if row["pair"] == pair and _is_ours(row) == mine]
            lines.append([f"{PAIRS[pair]}: {name}", str(len(rows)), *(_range(rows, stage) for stage in STAGES)])
    return markdown(["all masks, lowest to highest", "masks", *STAGES], lines)


def _range(rows: list[Row], stage: str) -> str:
    values = [100 * row["test accuracy"][stage] for row in rows]
    return f"{min(values):.2f} to {max(values):.2f}" if values else "-"


PUBLISHED_PARAMETERS = {0.5: "about 85.5", 0.25: "about 50", 0.125: "about 25"}  # El Halabi et al. 2022, figure 2


def parameter_budgets() -> str:
    """Training-free accuracy at budgets of parameters."""
    if not available("parameter_budgets"):
        return not_measured("budgets of parameters")
    lines = []
    for budget, published in PUBLISHED_PARAMETERS.items():
        rows = [row for row in read("parameter_budgets") if row["budget"] == budget]
        if rows:
            shares = [sum(row[cost] for row in rows) / len(rows) for cost in ("params", "flops")]
            cells = [f"{100 * share:.1f}" for share in shares]
            cells += [str(rows[0]["evaluations"]), percent([row["test accuracy"] for row in rows]), published]
            lines.append(cells)
    head = ["ResNet-56, CIFAR-10: parameters, %", "FLOPs, %", "evaluations", "ours (dense 93.39)"]
    return markdown([*head, "published (dense about 92.3)"], lines)


def published() -> str:
    """Figures of papers."""
    keys = ("method", "images", "dense", "pruned", "cut")
    head = ["ResNet-56", "images", "dense", "pruned and trained", "FLOPs cut, %"]
    rows = read("notes")["published"]["rows"]
    return markdown(head, ([row[key] for key in keys] for row in (*rows[1:4], *rows[5:7])))


# ------------------------------------------------------------------ training
def after_training() -> str:
    """Arms before and after training, a line for each plan and arm."""
    if not available("after_training"):
        return not_measured("training of all arms by one recipe")
    lines = []
    for key, rows in read("after_training").items():
        pair, budget = key.rsplit("-", 1)
        plans = {id(row): (row["epochs"], row["images"], row["recipe"]["lr"]) for row in rows}
        for plan in dict.fromkeys(plans.values()):
            alike = [row for row in rows if plans[id(row)] == plan]
            for arm in dict.fromkeys(row["arm"] for row in alike):
                here = [row for row in alike if row["arm"] == arm]
                before = [row["before training"] for row in here if row["before training"] is not None]
                figures = [percent(before), percent([row["test accuracy"] for row in here])]
                share = f"{100 * sum(row['flops'] for row in here) / len(here):.1f}"
                lines.append([arm, share, figures[0], figures[1], f"{plan[0]} on {plan[1]:,}, from {plan[2]}"])
    return markdown(
        [f"{PAIRS[pair]}, {float(budget):.0%}", "FLOPs, %", "before", "trained", "epochs, images, rate"], lines
    )


def resnet56() -> str:
    """Single runs of dp.search on ResNet-56, before and after training."""
    lines = [
        [
            row["network"],
            row["method"].replace('compare="', '`compare="').replace('"', '"`').replace('="`', '="'),
            f"{100 * row['flops']:.1f}",
            str(row["evaluations"]),
            f"{row['refined']:.2f}",
            f"{row['trained']:.2f} ({row['epochs']})",
        ]
        for row in read("notes")["resnet56"]["rows"]
        if "trained" in row
    ]
    return markdown(["network", "method", "FLOPs, %", "evaluations", "refined", "trained (epochs)"], lines)


def trained_proxies() -> str:
    """Rank correlation of cheap figures with the accuracy after training."""
    if not available("trained_proxies"):
        return not_measured("which figure ranks as training will, `python benchmarks/trained_proxies.py run`")
    taus = read("trained_proxies")["tau"]
    order = sorted(taus, key=lambda name: -taus[name]["tau"])
    lines = [
        [name, f"{taus[name]['tau']:.2f} ± {taus[name]['spread']:.2f}", f"{taus[name]['better half']:.2f}"]
        for name in order
    ]
    text = (
        "Which figure ranks candidates of very different widths as training will? ± is the deviation over bootstrap "
        "samples. Command: `python benchmarks/trained_proxies.py run --data DIR --weights DIR`\n\n"
    )
    return text + markdown(["figure before training", "Kendall's tau", "tau among the better half"], lines)


def recipes() -> str:
    """Recipes by length, from refined and from raw networks."""
    if not available("recipes"):
        return not_measured("recipes by length")
    rows = sorted(read("recipes"), key=lambda row: (row["start"] == "raw", row["recipe"]))
    lengths = sorted({(row["epochs"], row["images"]) for row in rows})
    lines = []
    for start, recipe in dict.fromkeys((row["start"], row["recipe"]) for row in rows):
        here = [row for row in rows if (row["start"], row["recipe"]) == (start, recipe)]
        cells = [percent([row["accuracy"] for row in here if (row["epochs"], row["images"]) == k]) for k in lengths]
        lines.append([start, recipe, percent([row["before"] for row in here][:1]), *cells])
    head = [f"{epochs} x {images:,} images" for epochs, images in lengths]
    return markdown(["start", "SGD, cosine, batches of 128", "before", *head], lines)


# ------------------------------------------------------------------ ImageNet
WIDTHS = {"uniform": "uniform widths", "balanced": "balanced widths", "threshold": "one threshold"}
AFTER = ("compensated", "refined", "selected", "recovered")


def imagenet() -> str:
    """MobileNetV2 on ImageNet's classes at every stage."""
    if not available("imagenet"):
        return not_measured("MobileNetV2 on ImageNet's classes")
    rows = read("imagenet")
    dense = next((row for row in rows if row["stage"] == "dense"), None)
    pruned = [row for row in rows if row["stage"] != "dense"]
    lines = []
    for budget, widths in dict.fromkeys((row["budget"], row["widths"]) for row in pruned):
        here = {row["stage"]: row for row in pruned if (row["budget"], row["widths"]) == (budget, widths)}
        cells = [f"{100 * here[stage]['test accuracy']:.1f}" if stage in here else "-" for stage in AFTER]
        criterion = next(iter(here.values()))["criterion"]
        lines.append([f"{100 * budget:.0f}", f"{WIDTHS.get(widths, widths)}, {criterion}", *cells])
    name = f"MobileNetV2 (dense {100 * dense['test accuracy']:.1f})" if dense else "MobileNetV2"
    command = "Command: `python benchmarks/imagenet.py --data DIR --weights DIR`\n\n"
    return command + markdown([f"{name}: FLOPs, %", "widths, criterion", *AFTER], lines)
