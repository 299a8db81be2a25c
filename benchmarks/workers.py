r"""How much throughput do Ray workers add on one machine, and what does a candidate cost beside its evaluation?

Question: is the throughput of two workers on two cores at least 1.6 times that of no worker, with one thread each, and
is the overhead per candidate under 10 ms?
Method: the same masks, new ones in every turn, evaluated by one evaluator here and by another through
``dp.distributed.ray_map``, with workers that are up; the median of the paired ratios counts. Overhead: one worker and
an objective that costs nothing (FLOPs), per candidate. An untrained digits ResNet on its images. Set OMP_NUM_THREADS=1.
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
from itertools import count
from pathlib import Path
from typing import Any

import torch

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet


def seconds(evaluate: Any, masks: list[dp.Masks]) -> float:
    """Seconds to evaluate new candidates."""
    start = time.perf_counter()
    evaluate.many(masks)
    return time.perf_counter() - start


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "workers.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, model = load_data(format="digits"), digits_resnet()
    space = dp.trace(model, data.calibration[0][:1])
    seeds = count()

    def draw(number: int) -> list[dp.Masks]:
        return [dp.Masks.random(space, keep=0.5, seed=next(seeds)) for _ in range(number)]

    images = {"calibration": data.calibration, "validation": data.validation}
    alone, shared = (dp.Evaluator(model, space, **images) for _ in range(2))
    pairs = []
    with dp.distributed.ray_map(shared, workers=args.workers, threads=1, num_cpus=0.5) as workers:
        warm_up = draw(4 * args.workers)
        seconds(workers, warm_up), seconds(alone, warm_up[:1])
        for _ in range(args.repeat):
            masks = draw(args.candidates)
            pairs.append((seconds(alone, masks), seconds(workers, masks)))
            print(f"alone {pairs[-1][0]:.2f} s, {args.workers} workers {pairs[-1][1]:.2f} s", flush=True)
    costless = dp.Evaluator(model, space, objectives=("flops",), recalibrate=None)
    with dp.distributed.ray_map(costless, workers=1, threads=1, num_cpus=0.1) as worker:
        seconds(worker, draw(4))
        overheads = [seconds(worker, draw(args.candidates)) / args.candidates for _ in range(args.repeat)]
    report = {
        "workers": args.workers,
        "candidates": args.candidates,
        "seconds alone, with workers": pairs,
        "throughput": statistics.median(one / several for one, several in pairs),
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
