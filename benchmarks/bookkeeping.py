r"""What does a generation cost beside the evaluations? Operators, decoding, selection, archive, checkpoint.

Question: for a population of 256 on ResNet-50's groups, is the bookkeeping of one generation under a second, and does
it grow no faster than n log n up to 4,096?
Method: ResNet-50 (random weights, traced at 64 x 64), eight criteria with random scores in three clusters, widths as
genes, at half of the FLOPs and with a free budget. The fitness costs nothing: a function of the kept counts, and the
FLOPs. One generation of mu + lambda, n children for n parents; each step timed apart, the checkpoint with its fsync
included. The median of the repetitions counts.
Output: a JSON file in benchmarks/results, and a table.

    python benchmarks/bookkeeping.py --sizes 256 1024 4096 --repeat 5
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from deap import algorithms

import deap_prune as dp
from deap_prune.evolution.checkpoint import Checkpoints


class Scores:
    """Random scores of eight criteria."""

    def __init__(self, space: dp.PruningSpace) -> None:
        rng = np.random.default_rng(0)
        self.scores = {g.name: {c: rng.random(g.size) for c in "abcdefgh"} for g in space.groups}


class CheapFitness:
    """A fitness that costs next to nothing."""

    names, weights, settings = ("quality", "flops"), (1.0, -1.0), {}

    def __init__(self, space: dp.PruningSpace) -> None:
        self.space = space
        self.dense: dict[str, Any] = {"flops": space.flops, "params": space.params, "values": {}}

    def __call__(self, masks: dp.Masks) -> tuple[float, ...]:
        """A figure of the kept counts, and the FLOPs."""
        counts = self.space.kept_counts(masks)
        return float(np.log1p(counts).sum()), int(self.space.flops_of(counts)) / self.space.flops

    def many(self, masks: Iterable[dp.Masks]) -> list[tuple[float, ...]]:
        """The values of several candidates."""
        return [self(candidate) for candidate in masks]


def generation(genome: dp.Genome, n: int, folder: Path) -> dict[str, float]:
    """Seconds of each step of one generation, after two generations that are not counted."""
    fitness = CheapFitness(genome.space)
    toolbox = dp.make_toolbox(genome, fitness, seed=0)
    checkpoints = Checkpoints(folder, {})
    loop = dp.algorithms.Loop("mu_plus_lambda", toolbox, dp.algorithms.Variation(n), [checkpoints])
    state = loop.run(loop.start(n), 2)
    marks = [time.perf_counter()]
    children = algorithms.varOr(state.population, toolbox, n, 0.5, 0.5)
    marks.append(time.perf_counter())
    masks = genome.decode_many(children)
    marks.append(time.perf_counter())
    for child, candidate in zip(children, masks, strict=True):
        child.fitness.values = fitness(candidate)
    marks.append(time.perf_counter())
    survivors = toolbox.select(state.population + children, n)
    marks.append(time.perf_counter())
    state.number += 1
    state.advance(survivors, children, toolbox)
    marks.append(time.perf_counter())
    checkpoints(state)
    marks.append(time.perf_counter())
    steps = ("operators", "decoding", "(evaluation)", "selection", "archive", "checkpoint")
    seconds = dict(zip(steps, np.diff(marks).tolist(), strict=True))
    return {**seconds, "total": sum(s for name, s in seconds.items() if name != "(evaluation)")}


def main() -> None:
    """Time all sizes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bookkeeping.json")
    args = parser.parse_args()
    space = dp.trace(torchvision.models.resnet50(weights=None), torch.zeros(1, 3, 64, 64))
    scores = Scores(space)
    clusters = dp.cluster(scores, n_clusters=3)
    rows = []
    for budget in (0.5, None):
        genome = dp.Genome(space, scores, clusters, max_flops=budget)
        for n in args.sizes:
            runs = []
            for _ in range(args.repeat):
                with tempfile.TemporaryDirectory() as folder:
                    runs.append(generation(genome, n, Path(folder)))
            median = {step: statistics.median(run[step] for run in runs) for step in runs[0]}
            rows.append({"max_flops": budget, "n": n, "genes": len(genome.layout), "seconds": median})
            print(budget, n, {k: round(v, 3) for k, v in median.items()}, flush=True)
        own = [row for row in rows if row["max_flops"] == budget]
        first = own[0]["seconds"]["total"] / (own[0]["n"] * math.log(own[0]["n"]))
        for row in own:
            row["against n log n"] = row["seconds"]["total"] / (row["n"] * math.log(row["n"])) / first
    report = {
        "groups": len(space.groups),
        "filters": int(space.sizes.sum()),
        "repeat": args.repeat,
        "rows": rows,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, CPU",
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        ratio = row["against n log n"]
        print(f"budget {row['max_flops']}, n {row['n']}: {row['seconds']['total']:.3f} s, {ratio:.2f} of n log n")
    print(args.out)


if __name__ == "__main__":
    main()
