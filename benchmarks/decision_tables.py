"""Tables of RESULTS.md on fronts, operators and figures before training, and the experiments that decided defaults."""

from __future__ import annotations

import statistics

from cost_tables import memory
from method_tables import PAIRS
from table_format import markdown, read, spread


def operators() -> str:
    """Hypervolumes of this library's operators, of a random first population, DEAP's operators and Optuna."""
    texts = []
    for name, file in (("digits", "operators-digits"), ("ResNet-20, CIFAR-10", "operators-cifar10-resnet20-front")):
        report = read(file)
        place = report["evaluations"].index(500)
        found = {arm: [row[key][place] for key in ("mean", "deviation")] for arm, row in report["arms"].items()}
        arms = ("ours", "ours, random start", "generic", "optuna")
        texts.append(f"{name} " + ", ".join(f"{found[arm][0]:.3f} ± {found[arm][1]:.3f}" for arm in arms))
    return (
        "Hypervolume of (accuracy, FLOPs) on validation images after 500 evaluations, n = 10, of this library's "
        "operators, of them from a random first population, of DEAP's generic ones, and of Optuna's NSGA-II: "
        + "; ".join(texts)
        + ". On ResNet-20 the operators and the first population bring nothing. Command: "
        "`python benchmarks/operators.py --config digits --seeds 10`"
    )


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


def decisions() -> str:
    """Defaults, and the experiments that decided them."""
    notes = read("notes")
    first, rounds, ridge = (notes[key] for key in ("first_population", "refinement_rounds", "ridge"))
    balanced, random = "half balanced, the best third of the criteria", "a quarter balanced, a quarter random"
    pairs = ", ".join(f"{name} {first[name][balanced]} / {first[name][random]}" for name in list(PAIRS.values())[2:4])
    mean = statistics.mean
    drafts, anchored = notes["draft_population"], notes["anchored_widths"]["resnet20"]
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
            "refined networks: balanced widths anchored to the outputs",
            " to ".join(f"{mean(loss for loss, _ in anchored[name]):.2f}" for name in ("balanced", "power 1"))
            + " loss of validation images, ResNet-20, CIFAR-100, n = 2",
            "notes",
        ],
        ["one resident network, narrowed in place", memory(), "speed-*"],
    ]
    return markdown(["default", "evidence", "JSON"], ([*line[:2], f"`{line[2]}.json`"] for line in lines))
