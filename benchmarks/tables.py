"""Write RESULTS.md: the text of RESULTS.template.md, with every table made from the JSON files in results/.

A line ``<!-- table: name -->`` of the template becomes the table of that name (see ``TABLES``). Run it with
``make results``; a test compares the committed RESULTS.md with what this script makes.

    python benchmarks/tables.py
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from pathlib import Path

from method_tables import PAIRS, at_half, blend_worth, fronts, other_budgets
from table_format import markdown, read, spread

FOLDER = Path(__file__).parent
SELECTED_PAIRS = {name: label for name, label in PAIRS.items() if name != "digits"}


def resnet56() -> str:
    """Single runs of dp.search on ResNet-56, before and after training."""
    lines = [
        [
            row["network"],
            row["method"].replace('compare="', '`compare="').replace('"', '"`').replace('="`', '="'),
            f"{100 * row['flops']:.1f}",
            str(row["evaluations"]),
            f"{row['refined']:.2f}",
            f"{row['trained']:.2f} ({row['epochs']})" if "trained" in row else "-",
        ]
        for row in read("notes")["resnet56"]["rows"]
    ]
    return markdown(["network", "method", "FLOPs, %", "evaluations", "refined", "trained (epochs)"], lines)


SELECTION = (
    ("L2, compensated", "l2", "compensated"),
    ("elimination, compensated", "elimination", "compensated"),
    ("L2, refined", "l2", "refined"),
    ("elimination, refined", "elimination", "refined"),
    ("L2, selected", "l2", "selected"),
    ("elimination, selected", "elimination", "selected"),
)


def selection() -> str:
    """Half of every block's inner filters, chosen in different ways."""
    rows = read("selection")
    lines = []
    for label, criterion, stage in SELECTION:
        alike = [row for row in rows if (row["criterion"], row["stage"]) == (criterion, stage)]
        values = ([100 * row["test accuracy"] for row in alike if row["pair"] == pair] for pair in SELECTED_PAIRS)
        lines.append([label, *(spread(column) for column in values)])
    return markdown(["test top-1", *SELECTED_PAIRS.values()], lines)


def selected_search() -> str:
    """Searches with sequential selection."""
    lines = [
        [
            f"{SELECTED_PAIRS[row['pair']]}, seed {row['seed']}",
            f"{100 * row['flops']:.1f}",
            str(row["evaluations"]),
            f"{100 * row['refined']:.2f}",
            f"{100 * row['recovered']:.2f} ({row['recover of']})" if "recovered" in row else "-",
        ]
        for row in read("selected_search")
    ]
    return markdown(["pair", "FLOPs, %", "evaluations", "refined", "recovered (steps)"], lines)


def published() -> str:
    """Figures of papers."""
    keys = ("method", "images", "dense", "pruned", "cut")
    head = ["ResNet-56", "images", "dense", "pruned and trained", "FLOPs cut, %"]
    return markdown(head, ([row[key] for key in keys] for row in read("notes")["published"]["rows"][:7]))


RESTORED = {
    "as pruned": "slim",
    "BN statistics from data": "slim, BN data",
    "compensated, BN in closed form": "compensated, BN closed, full",
    "compensated channel by channel, BN from data": "compensated, BN data, channel",
    "refined": "refined",
    "dense": "dense",
}


def restored() -> str:
    """What compensation and refinement restore."""
    digits = read("compensation-digits")
    cases = {
        "ResNet-56, CIFAR-10": read("compensation-cifar10")["cifar10"],
        "ResNet-56, CIFAR-100": read("compensation-cifar100")["cifar100"],
        "VGG, digits": digits["digits-vgg"],
        "MobileNetV2 blocks, digits": digits["digits-mobile"],
    }
    lines = [[label, *(f"{case['accuracy'][key]:.2f}" for case in cases.values())] for label, key in RESTORED.items()]
    return markdown(["test top-1, n = 1", *cases], lines)


CANDIDATE = {
    "this library, compensated, BN in closed form": "ours, fp32, BN closed_form, compensation auto",
    "this library, compensated, BN from data": "ours, fp32, BN data, compensation auto",
    "LeGR's fitness, our surgery and images": "LeGR, hoisted",
    "EagleEye's fitness, our surgery and images": "EagleEye, hoisted",
    "deepcopy, Torch-Pruning, fvcore, DataLoader": "deepcopy + Torch-Pruning + fvcore + DataLoader",
    "masks of torch.nn.utils.prune": "torch.nn.utils.prune masks",
    "LeGR as published, no training steps": "LeGR, as published",
    "EagleEye as published": "EagleEye, as published",
    "LeGR as published, 200 training steps": "LeGR, as published, 200 steps",
}


def candidate_cost() -> str:
    """Seconds of one candidate as a multiple of a dense pass."""
    networks = {"ResNet-56, CIFAR-10": "speed-cifar10_resnet56-cpu", "VGG-19, random weights": "speed-vgg19-cpu"}
    lines = []
    for label, arm in CANDIDATE.items():
        rows = [read(name)["arms"][arm] for name in networks.values()]
        cells = [text for row in rows for text in (f"{row['R']:.2f}", f"{row['times ours']:.1f}")]
        lines.append([label, *cells])
    head = [text for name in networks for text in (f"{name}: dense passes", "times ours")]
    return markdown(["fitness of one candidate", *head], lines)


def proxies() -> str:
    """Rank correlation with the loss after refinement, and seconds."""
    report = read("proxies")["cifar100-resnet20"]
    names = {
        "loss, compensated": "compensated",
        "closed-form error": "closed-form error",
        "the same, layer weights fitted to 20 drafts": "closed-form error, learned",
        "loss, refined on 100 images": "refined on 100 images",
        "loss, refined on 250 images": "refined on 250 images",
    }
    lines = [
        [label, f"{report['tau'][key]:.2f}", f"{report['seconds'].get(key, 0):.2f}"] for label, key in names.items()
    ]
    return markdown(["figure", "Kendall's tau", "CPU seconds a candidate"], lines)


def operators() -> str:
    """Hypervolumes of operators, DEAP's and Optuna's."""
    labels = {
        "ours": "this library",
        "ours, random start": "the same operators, random first population",
        "generic": "DEAP's cxTwoPoint and mutGaussian, random first population",
        "optuna": "Optuna's NSGA-II",
    }
    files, lines = ("operators-digits", "operators-cifar10-resnet20-front"), []
    for arm, label in labels.items():
        cells = []
        for report in map(read, files):
            mean, deviation = report["arms"][arm]["mean"], report["arms"][arm]["deviation"]
            places = [report["evaluations"].index(count) for count in (100, 500)]
            cells += [f"{mean[k]:.3f} ± {deviation[k]:.3f}" for k in places]
        lines.append([label, *cells])
    return markdown(["hypervolume, n = 10", "digits: 100", "500", "ResNet-20, CIFAR-10: 100", "500"], lines)


def coverage() -> str:
    """Families, and every network with less than 95 % of its FLOPs prunable."""
    rows, families = read("coverage"), {}
    for name, row in rows.items():
        parts = ("fcn_", "deeplab", "lraspp", "fasterrcnn")
        family = "timm" if name.startswith("timm:") else "torchvision, segmentation and detection backbone"
        families.setdefault(family if name.startswith(("timm:", *parts)) else "torchvision, classification", []).append(
            row
        )
    lines = []
    for family, members in families.items():
        exact = sum(row["law 1"] and row["law 2"] for row in members)
        wide = sum(row["share"] >= 0.99 for row in members)
        lines.append([family, str(len(members)), str(exact), str(wide), ""])
    for name, row in rows.items():
        if row["share"] < 0.95:
            reasons = [f"{len(layers)} layers: {why}" for why, layers in row["refused"].items() if "output" not in why]
            held = "1" if row["law 1"] and row["law 2"] else "0"
            lines.append([f"`{name}`: {row['share']:.1%} of the FLOPs", "1", held, "0", "; ".join(reasons)])
    return markdown(["networks", "number", "laws hold", "at least 99 % prunable", "what stays dense"], lines)


def tracing_and_scoring() -> str:
    """Seconds of tracing and scoring."""
    trace, criteria = read("trace_speed"), read("criteria-cifar10-resnet56")["ratio to plain, median"]
    lines = []
    for label, name in (("ResNet-50", "resnet50"), ("DenseNet-121", "densenet121")):
        graph = trace[name]["torch-pruning, graph alone"]["median"]
        reference = f"{graph:.2f} s: Torch-Pruning's graph, without proof or cost"
        lines.append([f"`dp.trace`, {label}", f"{trace[name]['dp.trace']['median']:.2f} s", reference])
    for label, pool in (("12", "twelve"), ("26", "whole")):
        reference = "1: a plain forward and backward pass"
        lines.append([f"`dp.score`, {label} criteria, ResNet-56, 500 images", f"{criteria[pool]:.2f}", reference])
    return markdown(["call", "median", "reference"], lines)


def latency() -> str:
    """Milliseconds, dense and slim."""
    rows, lines = read("export_latency")["rows"], []
    for backend in ("ONNX Runtime", "torch"):
        for batch in (1, 32):
            here = {r["widths"]: r for r in rows if (r["backend"], r["batch"]) == (backend, batch)}
            slim = [here[f"multiples of {width}"] for width in (1, 8)]
            cells = [f"{row['ms']:.1f} ({row['speed-up']:.2f} times)" for row in slim]
            lines.append([f"{backend}, batch {batch}", f"{here['dense']['ms']:.1f}", *cells])
    return markdown(["ms", "dense", "half of the FLOPs", "the same, `round_to=8`"], lines)


def related() -> str:
    """Related methods, on networks of their own kind."""
    measured, lines = read("neighbours"), []
    for case, source, part in (
        ("compensation", "compensation (Xie et al. 2021)", "compensated"),
        ("uniform, vgg19", "uniform rates (Chang et al. 2020), VGG-19", "rates"),
    ):
        for row in measured[case]["rows"]:
            if part in row["arm"]:
                lines.append([source, row["arm"], f"{100 * row['flops']:.1f}", f"{100 * row['test']:.2f}"])
    for row in measured["self_supervised"]["rows"]:
        if "labels" in row["arm"]:
            probe = f"{100 * row['linear probe']:.2f} (linear probe)"
            lines.append(["no labels (Caron et al. 2020)", row["arm"], f"{100 * row['flops']:.1f}", probe])
    for row in read("notes")["polyphase"]["rows"][2:]:
        for layer in ("strides", "polyphase"):
            accuracy, same = row[layer]
            figures = f"{accuracy:.2f}; {same:.1f} % of labels unchanged under shifts"
            lines.append(["polyphase sampling (Chaman and Dokmanic 2021)", f"{layer}, {row['stage']}", "50", figures])
    return markdown(["method", "network", "FLOPs, %", "test top-1"], lines)


# ------------------------------------------------------------------ decisions
def rectified_gain() -> str:
    """Mean gain of refinement through rectifiers, by network."""
    rows = [row for row in read("compare_methods") if "refined_linearly" in row]
    gains: dict[str, list[float]] = {}
    for row in rows:
        gain = 100 * (row["refined"]["test accuracy"] - row["refined_linearly"]["test accuracy"])
        gains.setdefault(PAIRS[row["pair"]], []).append(gain)
    return ", ".join(f"{name} {statistics.mean(values):+.1f} ({len(values)})" for name, values in gains.items())


def ablations() -> str:
    """Range of the ablations on the digits, and the default's figure."""
    rows = [row for row in read("compare_methods") if row["kind"] == "ablation" and row["pair"] == "digits"]
    arms: dict[str, list[float]] = {}
    for row in rows:
        arms.setdefault(row["arm"], []).append(100 * row["test accuracy"])
    default = next(values for name, values in arms.items() if name.startswith("as it is"))
    means = [statistics.mean(values) for values in arms.values()]
    return f"{len(arms) - 1} settings between {min(means):.1f} and {max(means):.1f}; the defaults {spread(default, 1)}"


def closed_form() -> str:
    """Kendall's tau with test accuracy, and seconds, of both ways to get BN statistics."""
    report = read("fitness_validity-cifar10_resnet20")
    data, closed = (report["tau"][f"BN {way}: accuracy"][f"test, BN {way}"] for way in ("data", "closed form"))
    seconds = [report["seconds"][f"BN {way}"] for way in ("data", "closed form")]
    return f"tau {closed:.2f} in {seconds[1]:.2f} s, from data {data:.2f} in {seconds[0]:.2f} s (51 candidates)"


def shortcuts() -> str:
    """Test top-1 with and without compensation across shortcuts that have no parameters."""
    row = read("compensation-streams")["streams"]["ResNet-56, 0.71 of every group"]
    before, after = row["shortcuts left alone"], row["shortcuts made up for"]
    return f"ResNet-56, CIFAR-10, all groups, half of the FLOPs: top-1 {before:.1f} to {after:.1f}"


def waiting() -> str:
    """Share of the time that workers compute, by simulation."""
    rows = {row["workers"]: row["generational"]["busy"] for row in read("scaling")["rows"]}
    return ", ".join(f"{workers} workers {rows[workers]:.0%} busy" for workers in (8, 32, 256))


def memory() -> str:
    """Memory beside that of a dense pass."""
    cases = {"ResNet-56": "speed-cifar10_resnet56-cpu", "VGG-19": "speed-vgg19-cpu"}
    return ", ".join(f"{name} {read(file)['memory']['ratio']:.1f} times a dense pass" for name, file in cases.items())


def decisions() -> str:
    """Defaults, and the experiments that decided them."""
    notes = read("notes")
    first, rounds, ridge = (notes[key] for key in ("first_population", "refinement_rounds", "ridge"))
    balanced, random = "half balanced, the best third of the criteria", "a quarter balanced, a quarter random"
    pairs = ", ".join(f"{name} {first[name][balanced]} / {first[name][random]}" for name in list(PAIRS.values())[2:4])
    mean = statistics.mean
    drafts, ends = notes["draft_population"], notes["finalists"]
    lines = [
        ["three clusters, evolved candidates, scores divided by their maximum", ablations(), "compare_methods"],
        ['`recalibrate="auto"`: in closed form where that is sound', closed_form(), "fitness_validity-*"],
        ["refinement counts outputs below 0 as right where a ReLU reads them", rectified_gain(), "compare_methods"],
        ["compensation covers parameter-free shortcuts", shortcuts(), "compensation-streams"],
        ["five rounds of refinement", f"top-1 {rounds['rounds']['0']} to {rounds['rounds']['5']}; ten: 32.5", "notes"],
        ["larger ridge where moments have few rows", f"top-1 {ridge['rows']['ridge 0.001']} to 72.3", "notes"],
        ["first population: half with balanced widths / before", f"hypervolume {pairs}", "notes"],
        [
            "drafts: first widths spread by random group weights",
            f"loss {mean(drafts['spread']):.2f} instead of {mean(drafts['near even']):.2f}, n = 3",
            "notes",
        ],
        [
            "finalists refined in addition to the front",
            f"hypervolume {mean(ends['with']):.4f} instead of {mean(ends['without']):.4f}, n = 2",
            "notes",
        ],
        ["generations rather than a steady state (simulated)", waiting(), "scaling"],
        ["one resident network, narrowed in place", memory(), "speed-*"],
    ]
    return markdown(["default", "evidence", "JSON"], ([*line[:2], f"`{line[2]}.json`"] for line in lines))


TABLES: dict[str, Callable[[], str]] = {
    "at_half": at_half,
    "blend_worth": blend_worth,
    "other_budgets": other_budgets,
    "fronts": fronts,
    "resnet56": resnet56,
    "selection": selection,
    "selected_search": selected_search,
    "published": published,
    "restored": restored,
    "candidate_cost": candidate_cost,
    "proxies": proxies,
    "operators": operators,
    "coverage": coverage,
    "tracing_and_scoring": tracing_and_scoring,
    "latency": latency,
    "related": related,
    "decisions": decisions,
}


def results() -> str:
    """The text of RESULTS.md."""
    template = (FOLDER / "RESULTS.template.md").read_text(encoding="utf-8")
    return re.sub(r"<!-- table: (\w+) -->", lambda match: TABLES[match[1]](), template)


if __name__ == "__main__":
    (FOLDER / "RESULTS.md").write_text(results(), encoding="utf-8")
