r"""What do Ray workers bring on one machine, and what does a candidate cost beside its evaluation?

Question: is the throughput of two workers on two cores at least 1.6 times that of no worker, with one thread each, and
is the overhead per candidate under 10 ms?
Method: the same masks, judged by the evaluator itself and through ``dp.distributed.ray_map``, in turn, every time with
empty caches and workers that are up; the median of the paired ratios counts. Overhead: one worker and an objective that
costs nothing (FLOPs), per candidate. The network is the config's, or an untrained digits ResNet on its images. Set
OMP_NUM_THREADS=1.
Output: a JSON file in benchmarks/results, and a table.

    OMP_NUM_THREADS=1 python benchmarks/workers.py --workers 2 --candidates 40 --repeat 5
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from deap_prune.search.workspace import Workspace

import deap_prune as dp
from deap_prune.config import load_config
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet


def seconds(judge: object, evaluate: dp.Evaluator, masks: list[dp.Masks]) -> float:
    """Seconds to judge all, from an empty cache."""
    evaluate.cache.clear()
    start = time.perf_counter()
    judge.many(masks)  # type: ignore[attr-defined]
    return time.perf_counter() - start


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "workers.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.config is not None:
        work = Workspace.open(load_config(args.config, args.set))
        model, example, data = work.model, work.example, (work.calibration, work.validation)
    else:
        splits, model = load_data(format="digits"), digits_resnet()
        example, data = splits.calibration[0][:1], (splits.calibration, splits.validation)
    space = dp.trace(model, example)
    masks = [dp.Masks.random(space, keep=0.5, seed=seed) for seed in range(args.candidates)]
    evaluate = dp.Evaluator(model, space, calibration=data[0], validation=data[1])
    pairs = []
    with dp.distributed.ray_map(evaluate, workers=args.workers, threads=1, cpus=0.5) as workers:
        seconds(workers, evaluate, masks[: 4 * args.workers])  # all are up
        for _ in range(args.repeat):
            pairs.append((seconds(evaluate, evaluate, masks), seconds(workers, evaluate, masks)))
            print(f"alone {pairs[-1][0]:.2f} s, {args.workers} workers {pairs[-1][1]:.2f} s", flush=True)
        costless = dp.Evaluator(model, space, objectives=("flops",), recalibrate=None)
        with dp.distributed.ray_map(costless, workers=1, threads=1, cpus=0.1) as one:
            seconds(one, costless, masks[:4])
            overheads = [seconds(one, costless, masks) / len(masks) for _ in range(args.repeat)]
    report = {
        "workers": args.workers,
        "candidates": args.candidates,
        "seconds alone, with workers": pairs,
        "throughput": statistics.median(alone / together for alone, together in pairs),
        "overhead per candidate, s": statistics.median(overheads),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, CPU",
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"throughput {report['throughput']:.2f} times; overhead {1000 * report['overhead per candidate, s']:.1f} ms")
    print(args.out)


if __name__ == "__main__":
    main()
