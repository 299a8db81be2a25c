r"""What the ways of not judging save, and what they cost.

Question: racing, pre-screening by the surrogate, and few images drawn anew for every generation: how many candidates
are judged, on how many images, in how many seconds, and how good is what the search ends with, on images that nothing
looked at?
Method: the same short search (loss at half the FLOPs, (mu + lambda), the same seed, population, generations and
children) with each option; the best network of the archive (with redrawn images: of the last population) is judged on
training images that are neither calibration nor validation images. Judged in batches of 100, so that races end early.
R is the mean over all candidates of the search, everything included, divided by one plain dense fp32 channels_last pass
over the validation images, made before every search and after it. Seconds are CPU time of the process (one thread), so
that other work on the machine hardly counts; on CUDA they are wall time.
Output: a JSON file in benchmarks/results, and a table.

    OMP_NUM_THREADS=1 python benchmarks/savings.py --weights cifar10_resnet20.pth --data DIR
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from deap import algorithms
from protocols import Bench, mean_loss
from speed import clock, dense_forward, random_blends, setup

import deap_prune as dp
from deap_prune.evolution.loop import eaBlend
from deap_prune.evolution.problem import BlendProblem
from deap_prune.fitness import Sampling
from deap_prune.search.finalists import NextGeneration, PreScreen

CLOSED = {"recalibrate": "closed_form"}
DRAWN = Sampling(images=250, augment=True, redraw=True)
ARMS: dict[str, dict[str, Any]] = {
    "all images, BN data": {"recalibrate": "data"},
    "all images, BN closed form": CLOSED,
    "racing at 0.99": {**CLOSED, "racing": 0.99},
    "racing at 0.9": {**CLOSED, "racing": 0.9},
    "three children a slot, by surrogate": {**CLOSED, "prescreen": 3},
    "250 images, augmented, redrawn": {**CLOSED, "sampling": DRAWN},
    "all three": {**CLOSED, "racing": 0.99, "prescreen": 3, "sampling": DRAWN},
}


def short_search(
    bench: Bench, *, population: int, generations: int, prescreen: int = 1, seed: int = 0, **options: Any
) -> dict[str, Any]:
    """One search: what it took, and the loss of its best network on images that nothing looked at."""
    data = {"calibration": bench.calibration, "validation": bench.validation, "device": bench.validation[0].device}
    evaluate = dp.Evaluator(bench.model, bench.space, **data, **{"objectives": ("loss",), "batch_size": 100, **options})
    genome = random_blends(bench)
    toolbox, problem = dp.make_toolbox(genome, evaluate, seed=seed), BlendProblem(genome, evaluate)
    vary = PreScreen(evaluate, problem, prescreen) if prescreen > 1 else algorithms.varOr
    evaluate._build.grams  # noqa: B018  collected once a search, and not a candidate's time
    dense, start = [dense_forward(bench)], clock(bench)
    begin = NextGeneration(evaluate, problem)
    state = eaBlend(
        toolbox.population(n=population), toolbox, population, 0.5, 0.5, generations, begin=begin, vary=vary
    )
    seconds, counters = clock(bench) - start, evaluate.counters
    dense.append(dense_forward(bench))
    pool = state.population if evaluate.options.sampling.redraw else state.archive
    best = genome.decode(min(pool, key=lambda ind: ind.fitness.values))
    held_out = tuple(t[: 2 * len(bench.validation[0])] for t in bench.train)
    return {
        "judged": counters.candidates,
        "dropped": counters.dropped,
        "images": counters.samples,
        "seconds": seconds,
        "R": seconds / counters.candidates / statistics.mean(dense),
        "validation loss": evaluate.in_full(refine=False)(best)[0],
        "held-out loss": mean_loss(evaluate.slim(best), held_out),
    }


def main() -> None:
    """Search with every option and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10_resnet20")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", type=Path, help="folder with cifar10_train.npz, cifar10_test.npz, ...")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=1000, help="validation images")
    parser.add_argument("--bn-images", type=int, default=250)
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--quick", action="store_true", help="4 individuals, 1 generation, 250 images")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.population, args.generations, args.images = 4, 1, 250
    bench, _ = setup(args)
    rows = {}
    print(f"{'option':38} {'judged':>7} {'dropped':>8} {'images':>8} {'seconds':>8} {'R':>6} {'held-out loss':>14}")
    for name in args.arms:
        row = rows[name] = short_search(bench, population=args.population, generations=args.generations, **ARMS[name])
        figures = f"{row['judged']:7} {row['dropped']:8} {row['images']:8} {row['seconds']:8.1f} {row['R']:6.2f}"
        print(f"{name:38} {figures} {row['held-out loss']:14.4f}", flush=True)
    arguments = {
        k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("data", "weights", "out")
    }
    report = {"arguments": arguments, "searches": rows, "torch": torch.__version__, "threads": torch.get_num_threads()}
    name = f"savings-{args.network}{'-quick' if args.quick else ''}.json"
    path = args.out or Path(__file__).parent / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
