"""Tables of RESULTS.md on seconds, memory, latency and coverage."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from table_format import available, markdown, not_measured, read

CANDIDATE = {
    "this library, compensated, BN in closed form": "ours, fp32, BN closed_form, compensation auto",
    "this library, compensated, BN from data": "ours, fp32, BN data, compensation auto",
    "LeGR's fitness, our surgery and images": "LeGR, hoisted",
    "EagleEye's fitness, our surgery and images": "EagleEye, hoisted",
    "deepcopy, Torch-Pruning, fvcore, DataLoader": "deepcopy + Torch-Pruning + fvcore + DataLoader",
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


def waiting() -> str:
    """Share of the time that workers compute, by simulation."""
    rows = {row["workers"]: row["generational"]["busy"] for row in read("scaling")["rows"]}
    return ", ".join(f"{workers} workers {rows[workers]:.0%} busy" for workers in (8, 32, 256))


def memory() -> str:
    """Memory beside that of a dense pass."""
    cases = {"ResNet-56": "speed-cifar10_resnet56-cpu", "VGG-19": "speed-vgg19-cpu"}
    return ", ".join(f"{name} {read(file)['memory']['ratio']:.1f} times a dense pass" for name, file in cases.items())


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


FAMILIES = {
    "timm": "timm",
    "smp": "segmentation-models-pytorch",
    "transformers": "transformers",
    "parts": "torchvision, segmentation and detection backbone",
    "": "torchvision, classification",
}
TRACING = ("9379481", "66fe09b")  # commits of the tracing as it is
PEER = "half, Torch-Pruning"
LEAST = 1  # networks with the least prunable FLOPs that the table shows
"""Networks that are named, those with the least prunable FLOPs."""


def _family(name: str) -> str:
    if name.startswith(("fcn_", "deeplab", "lraspp", "fasterrcnn")):
        return "parts"
    return name.split(":")[0] if ":" in name else ""


def _seconds(rows: Mapping[str, Any]) -> str:
    """CPU seconds of the traces of these rows, as text."""
    largest = max(rows, key=lambda name: rows[name]["seconds"])
    middle = median([row["seconds"] for row in rows.values()])
    return f"median {middle:.1f} CPU seconds, largest {rows[largest]['seconds']:.0f} (`{largest}`)"


def coverage_totals() -> str:
    """What holds on all rows, as text."""
    rows = read("coverage")
    traced = {name: row for name, row in rows.items() if "error" not in row}
    laws = sum(row["law 1"] and row["law 2"] for row in traced.values())
    both = {n: row["half"] - row[PEER] for n, row in traced.items() if isinstance(row.get(PEER), float)}
    above = [n for n, gap in both.items() if gap > 0.02]
    now = {name: row for name, row in traced.items() if row.get("commit") in TRACING}
    text = (
        f"{len(rows)} networks, {len(traced)} traced; both laws hold on {laws}. {len(both)} are pruned by "
        f"Torch-Pruning too: half of every group leaves {len(above) or 'none'} of them more than 0.02 above it. "
        f"Traces, all rows: {_seconds(traced)}"
    )
    return f"{text}; the {len(now)} rows of the tracing as it is: {_seconds(now)}." if now else f"{text}."


def coverage() -> str:
    """Families of networks, and those with the least prunable FLOPs."""
    rows = read("coverage")
    traced = {name: row for name, row in rows.items() if "error" not in row}
    lines = []
    for family, label in FAMILIES.items():
        members = [row for name, row in traced.items() if _family(name) == family]
        failed = sum(_family(name) == family for name in rows) - len(members)
        if members or failed:
            exact = sum(row["law 1"] and row["law 2"] for row in members)
            wide = sum(row["share"] >= 0.99 for row in members)
            half = [row["half"] for row in members if "half" in row]
            kept = f"{median(half):.3f} ({len(half)})" if half else "-"
            peers = [row[PEER] for row in members if PEER in row]
            runs = f"{sum(not isinstance(peer, str) for peer in peers)} of {len(peers)}" if peers else "-"
            lines.append([label, str(len(members)), str(failed), str(exact), str(wide), kept, runs, ""])
    narrow = [(name, row) for name, row in traced.items() if row["share"] < 0.99]
    for name, row in sorted(narrow, key=lambda item: item[1]["share"])[:LEAST]:
        reasons = {why: layers for why, layers in row["refused"].items() if "output of the network" not in why}
        why = max(reasons, key=lambda reason: len(reasons[reason]), default="")
        text = f"{row['share']:.1%} of the FLOPs; {len(reasons[why])} layers: {why}" if why else ""
        lines.append([f"`{name}`", "1", "", str(int(row["law 1"] and row["law 2"])), "0", "", "", text])
    head = ["networks", "traced", "not traced", "laws hold", "at least 99 % prunable"]
    head += ["FLOPs with half of every group, median (n)", "Torch-Pruning runs, of those tried"]
    return markdown([*head, "prunable, and what stays dense"], lines)


def predicted_latency() -> str:
    """Latency tables against measured networks."""
    stored = read("latency")
    lines = []
    for row in stored.get("rows", [stored]):
        taus = [f"{row[name]:.2f}" for name in ("kendall tau", "kendall tau of flops")]
        errors = f"{row['median error']:.1%} / {row['largest error']:.1%}"
        lines.append([f"{row['network']}, {row['setting']['runtime']}", str(row["n"]), errors, *taus])
    return markdown(["network, runtime", "networks", "error: median / largest", "tau, table", "tau, FLOPs"], lines)


def int8() -> str:
    """Dense and pruned networks in fp32 and in eight bits."""
    if not available("int8"):
        return not_measured("pruned networks in eight bits")
    lines = []
    for row in read("int8")["rows"]:
        for variant in row["variants"]:
            accuracy = "-" if variant["accuracy"] is None else f"{100 * variant['accuracy']:.2f}"
            cells = [accuracy, f"{variant['size'] / 1e6:.2f}"]
            lines.append([f"{row['network']}, {variant['name']}", *cells])
    text = (
        "ONNX Runtime's static quantisation; ResNet-56 refined, on 10,000 images, MobileNetV2 compensated, on 300. "
        "Times are not measured on an idle machine. "
        "Command: `python benchmarks/int8.py configs/cifar10-resnet56.yaml`\n\n"
    )
    return text + markdown(["half of the FLOPs, no training", "test top-1", "MB"], lines)


def latency_search() -> str:
    """Searches under a budget of milliseconds and of FLOPs, at one latency."""
    if not available("latency_search"):
        return not_measured("searches under budgets of latency and of FLOPs at one measured latency")
    stored = read("latency_search")
    lines = []
    for row in stored["rows"]:
        cells = [f"{100 * row[name]:.1f}" for name in ("flops", "predicted", "measured", "accuracy", "refined")]
        lines.append([row["search"], *cells])
    head = ["FLOPs, %", "latency, %: predicted", "measured", "validation top-1: compensated", "selected"]
    text = (
        "Searches under a budget, one seed, validation images. The networks were timed in two sessions, and their "
        "latencies are not equal: an indication. "
        "Command: `python benchmarks/latency_search.py configs/cifar100-resnet56.yaml --table table.json`\n\n"
    )
    return text + markdown([f"{stored['network']}: budget of", *head], lines)


def steady_state() -> str:
    """Steady state against generations on unequal workers."""
    if not available("steady_state") or "throughput" not in read("steady_state"):
        return not_measured("steady state on unequal workers")
    rows = read("steady_state")["throughput"]["rows"]
    pairs = len(rows[0]["candidates per second"])
    gains = ", ".join(f"{row['ratio']:.2f} times with a population of {row['population']}" for row in rows)
    return (
        f"Steady state against generations, two Ray workers of which one has half the speed: candidates per second "
        f"{gains} (medians of {pairs} pairs beside other work). Command: `python benchmarks/steady_state.py`"
    )


SHOWN = ("trace", "score", "moments", "compensate", "draft", "refine", "select")


def imagenet_cost() -> str:
    """Steps on networks of ImageNet's size, in dense passes, and memory beyond the dense network's."""
    if not available("imagenet_cost"):
        return not_measured("time and memory at 224 pixels")
    rows = read("imagenet_cost")
    networks = list(dict.fromkeys(row["network"] for row in rows))
    lines = []
    for step in (step for step in SHOWN if any(row["step"] == step for row in rows)):
        here = {row["network"]: row for row in rows if row["step"] == step}
        cells = []
        for name in networks:
            row = here.get(name)
            cells += [f"{row['dense passes']:.2f}", f"{row['MB beyond dense']:.0f}"] if row else ["-", "-"]
        lines.append([step, *cells])
    head = [text for name in networks for text in (f"{name}: dense passes", "MB beyond dense")]
    table = markdown([f"step, {rows[0]['images']} images of 224 pixels", *head], lines)
    return f"Command: `python benchmarks/imagenet_cost.py`\n\n{table}"


def workers() -> str:
    """Throughput of workers, measured and simulated."""
    row = read("workers")
    return (
        f"Workers: {row['workers']} Ray workers on {row['cores']} cores make {row['throughput']:.2f} times as many "
        f"candidates, {1000 * row['overhead per candidate, s']:.1f} ms a candidate are overhead; simulated, a "
        f"generation keeps {waiting()}. Commands: `python benchmarks/workers.py`, `python benchmarks/bookkeeping.py`"
    )
