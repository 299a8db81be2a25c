r"""Does a latency table predict the latency of pruned networks, and does it rank them better than FLOPs do?

Question: how far are predicted latencies from measured ones, and how do a table and FLOPs rank networks?
Method: networks with random weights (time does not depend on them): ResNet-56 (CIFAR, 32x32), MobileNetV2 and ResNet-50
(224x224), batch 1, one thread. ``dp.latency_table`` measures the table. Then networks with random widths (a random kept
share in each group, around a common one) are slimmed and timed in turn; none of them is among those that the table's
rest is fitted to. With one thread its own processor time counts, since other processes share the machine. It is slower
when its neighbours are busy, so six of the networks that the table was fitted to are timed again in turn with the
others, and measured times are scaled by the median of what these took then and take now.
Output: one row per network and runtime in a JSON file of benchmarks/results: per pruned network the predicted and the
measured milliseconds and the FLOPs; median error and Kendall's tau of the predictions, and the tau of FLOPs; the
microseconds of one prediction. A row of the same network and runtime is replaced.

    python benchmarks/latency.py --networks resnet56 mobilenet_v2 resnet50 --runtimes onnxruntime torch --tables tables
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from selection import commit
from torch import nn
from torchvision.models import mobilenet_v2, resnet50

import deap_prune as dp
from deap_prune.costs import check_latency
from deap_prune.costs.measure import random_widths
from deap_prune.zoo import cifar10_resnet56

SEED = 5
NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet56": (cifar10_resnet56, 32),
    "mobilenet_v2": (mobilenet_v2, 224),
    "resnet50": (resnet50, 224),
}
"""Name to the function that makes the network, and the side of its images."""


def microseconds(space: dp.PruningSpace) -> float:
    """Processor time of one prediction, mean of 500."""
    assert space.latency_of is not None
    start = time.process_time()
    for _ in range(500):
        space.latency_of(space.sizes)
    return 1e6 * (time.process_time() - start) / 500


def measure(name: str, masks: int, runtime: str, batch: int, threads: int, file: Path | None) -> dict[str, Any]:
    """The table of a network, and random networks against it."""
    torch.manual_seed(0)
    make, side = NETWORKS[name]
    model, image = make().eval(), torch.randn(1, 3, side, side)
    traced = dp.trace(model, image)
    begun, start, cpu = file is not None and file.is_file(), time.perf_counter(), time.process_time()
    table = dp.latency_table(model, traced, image, runtime=runtime, batch=batch, threads=threads, out=file)
    seconds = {"wall": time.perf_counter() - start, "processor": time.process_time() - cpu}
    space, rng = table.on(traced), np.random.default_rng(SEED)
    assert space.latency_of is not None
    kept = [random_widths(space, rng) for _ in range(masks)]
    counts = np.array([space.kept_counts(one) for one in kept])
    small = [dp.slim(model, space, one) for one in kept]
    check = check_latency(small, kept, table, model, space, image)
    flops = space.flops_of(counts) / space.flops
    print(check)
    return {
        "network": name,
        "commit": commit(),
        "setting": dict(table.about),
        "n": masks,
        "seed": SEED,
        "seconds of the table": None if begun else seconds,
        "points": sum(len(entry.points) for entry in table.entries),
        "rest": vars(table.rest),
        "dense ms": float(space.latency_of(space.sizes)),
        "predicted ms": list(check.predicted),
        "measured ms": list(check.measured),
        "flops": flops.tolist(),
        "median error": check.median_error,
        "largest error": float(np.abs(np.array(check.predicted) / np.array(check.measured) - 1).max()),
        "kendall tau": check.tau,
        "kendall tau of flops": float(kendalltau(flops, check.measured).statistic),
        "microseconds of a prediction": microseconds(space),
    }


def stored(path: Path, row: dict[str, Any]) -> None:
    """Write a row, in the place of an earlier one of the same network and runtime."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    rows = [r for r in rows if (r["network"], r["setting"]["runtime"]) != (row["network"], row["setting"]["runtime"])]
    content = {
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cores": "2, shared with other processes",
        "rows": [*rows, row],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet56"], choices=list(NETWORKS))
    parser.add_argument("--runtimes", nargs="+", default=["torch"])
    parser.add_argument("--masks", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", type=Path, help="folder of the tables, to go on from")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "latency.json")
    args = parser.parse_args()
    if args.tables is not None:
        args.tables.mkdir(parents=True, exist_ok=True)
    for name in args.networks:
        for runtime in args.runtimes:
            file = None if args.tables is None else args.tables / f"{name}-{runtime}.json"
            row = measure(name, args.masks, runtime, args.batch, args.threads, file)
            stored(args.out, row)
            for figure in ("median error", "kendall tau", "kendall tau of flops", "microseconds of a prediction"):
                print(f"{name}, {runtime}: {figure}: {row[figure]:.3g}", flush=True)


if __name__ == "__main__":
    main()
