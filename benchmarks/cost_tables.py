"""Tables of RESULTS.md on seconds, memory, latency and coverage."""

from __future__ import annotations

from table_format import available, markdown, not_measured, read

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
    """Accuracy after quantisation to eight bits."""
    return not_measured("pruned networks in eight bits") if not available("int8") else ""


def workers() -> str:
    """Throughput of workers, measured and simulated."""
    row = read("workers")
    return (
        f"Workers: {row['workers']} Ray workers on {row['cores']} cores make {row['throughput']:.2f} times as many "
        f"candidates, {1000 * row['overhead per candidate, s']:.1f} ms a candidate are overhead; simulated, a "
        f"generation keeps {waiting()}. Commands: `python benchmarks/workers.py`, `python benchmarks/bookkeeping.py`"
    )
