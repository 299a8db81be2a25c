r"""Does a latency table predict the latency of pruned networks, and does it rank them better than FLOPs do?

Question: how far are predicted latencies from measured ones, and how do a table and FLOPs rank networks?
Method: ResNet-56 (CIFAR, 32x32, random weights: time does not depend on them). ``dp.latency_table`` measures the table.
Then networks with random widths (a random kept share in each group, around a common one) are slimmed and timed in turn;
none of them is among those that the table's rest is fitted to. Times are taken relative to an anchor (see
deap_prune/costs/runtimes.py), since other processes share the processor.
Output: a JSON file in benchmarks/results: per network the predicted and the measured milliseconds and the FLOPs; median
error and Kendall's tau of the predictions, and the tau of FLOPs; the microseconds of one prediction.

    python benchmarks/latency.py --masks 10
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

import deap_prune as dp
from deap_prune.costs import check_latency
from deap_prune.costs.measure import random_widths
from deap_prune.zoo import cifar10_resnet56

SEED = 5


def microseconds(space: dp.PruningSpace) -> float:
    """Processor time of one prediction, mean of 500."""
    assert space.latency_of is not None
    start = time.process_time()
    for _ in range(500):
        space.latency_of(space.sizes)
    return 1e6 * (time.process_time() - start) / 500


def measure(masks: int, runtime: str, batch: int, threads: int, file: Path | None) -> dict[str, Any]:
    """The table, and random networks against it."""
    torch.manual_seed(0)
    model, image = cifar10_resnet56().eval(), torch.randn(1, 3, 32, 32)
    traced = dp.trace(model, image)
    start = time.perf_counter()
    table = dp.latency_table(model, traced, image, runtime=runtime, batch=batch, threads=threads, out=file)
    seconds = time.perf_counter() - start
    space, rng = table.on(traced), np.random.default_rng(SEED)
    assert space.latency_of is not None
    kept = [random_widths(space, rng) for _ in range(masks)]
    counts = np.array([space.kept_counts(one) for one in kept])
    check = check_latency([dp.slim(model, space, one) for one in kept], space.latency_of(counts), table, image)
    flops = space.flops_of(counts) / space.flops
    print(check)
    return {
        "network": "cifar10_resnet56",
        "setting": dict(table.about),
        "n": masks,
        "seconds of the table": seconds,
        "grid points": sum(entry.times.size for entry in table.entries),
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


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=10)
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=Path, help="JSON file of the table, to go on from")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "latency.json")
    args = parser.parse_args()
    result = measure(args.masks, args.runtime, args.batch, args.threads, args.table)
    about = {"torch": torch.__version__, "processor": torch.backends.cpu.get_cpu_capability(), "cores": "2, shared"}
    args.out.write_text(json.dumps({**about, **result}, indent=1) + "\n", encoding="utf-8")
    for name in ("median error", "kendall tau", "kendall tau of flops", "microseconds of a prediction"):
        print(f"{name}: {result[name]:.3g}")


if __name__ == "__main__":
    main()
