r"""Does the fitness choose what generalises?

Question: how well does each fitness rank candidates of one budget, by test accuracy as pruned and after a short
fine-tune, and what does it cost? A fitness that is cheap, or that does not overfit the images it is measured on, must
still rank as an exact one does.
Method: candidates are random blends with evolved widths, and as many that a short evolution (stock eaMuPlusLambda, loss
on a fixed draw) ends with. Each fitness scores all of them. The truth is top-1 on test images of the network that is
handed over (compensated, BN re-estimated on data), and the same after fine-tuning on training images. Kendall's tau
with either, with the exact fp32 loss, and seconds per candidate (medians).
Output: a JSON file in benchmarks/results, and a table.

    OMP_NUM_THREADS=1 python benchmarks/fitness_validity.py --network cifar10_resnet56 --weights W.pth --data DIR
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from deap import algorithms
from protocols import Bench, top1
from scipy.stats import kendalltau
from speed import NORMS, setup
from torch import Tensor

import deap_prune as dp
from deap_prune.fitness import Sampling
from deap_prune.fitness.settings import computes_bf16

Pair = tuple[Tensor, Tensor]
FEW = Sampling(images=250)
MOVED = Sampling(augment=True)
FITNESSES: dict[str, dict[str, Any]] = {
    "loss": {"objectives": ("loss",)},
    "accuracy": {"objectives": ("accuracy",)},
    "agreement": {"objectives": ("agreement",)},
    "loss, augmented": {"objectives": ("loss",), "sampling": MOVED},
    "accuracy, augmented": {"objectives": ("accuracy",), "sampling": MOVED},
    "agreement, augmented": {"objectives": ("agreement",), "sampling": MOVED},
    "loss, a quarter of the images": {"objectives": ("loss",), "sampling": FEW},
    "agreement, a quarter of the images": {"objectives": ("agreement",), "sampling": FEW},
    "loss, closed-form BN": {"objectives": ("loss",), "recalibrate": "closed_form"},
    "loss, no compensation": {"objectives": ("loss",), "compensate": None},
    "loss, no compensation, closed-form BN": {
        "objectives": ("loss",),
        "compensate": None,
        "recalibrate": "closed_form",
    },
    "loss, stale BN": {"objectives": ("loss",), "compensate": None, "recalibrate": None},
    "loss, bf16": {"objectives": ("loss",), "precision": "bf16"},
}
EXACT = "loss"


def evaluator(bench: Bench, options: dict[str, Any], device: str) -> dp.Evaluator:
    """The fitness of some options."""
    data = {"calibration": bench.calibration, "validation": bench.validation, "device": device}
    return dp.Evaluator(bench.model, bench.space, **data, **options)


def candidates(bench: Bench, count: int, generations: int, device: str) -> list[dp.Masks]:
    """Half of them random, half where a short evolution ends; no two are the same."""
    scores = dp.score(bench.model, bench.space, bench.calibration, criteria=("l1", "l2", "bn_scale", "random"))
    clusters = dp.cluster(scores, n_clusters=2)
    genome = dp.Genome(bench.space, scores, clusters, allocation="evolved", max_flops=bench.budget)
    toolbox = dp.make_toolbox(genome, evaluator(bench, {"objectives": ("loss",), "sampling": FEW}, device), seed=0)
    first = toolbox.population(n=count)
    random.seed(1)
    parents = [toolbox.clone(ind) for ind in first[: max(2, count // 4)]]
    size = len(parents)
    evolved, _ = algorithms.eaMuPlusLambda(parents, toolbox, count // 2, size, 0.5, 0.5, generations, verbose=False)
    masks = [genome.decode(ind) for ind in (*evolved, *first)]
    return list(dict.fromkeys(masks))[:count]


def scored(bench: Bench, masks: list[dp.Masks], device: str) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Scores (larger is better) and median seconds a candidate, of every fitness and of the surrogate."""
    scores: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for name, options in FITNESSES.items():
        if options.get("precision") == "bf16" and not computes_bf16(torch.device(device)):
            continue
        evaluate = evaluator(bench, options, device)
        evaluate(dp.Masks.random(bench.space))  # warm-up
        scores[name], times = [], []
        for each in masks:
            start = time.perf_counter()
            scores[name].append(evaluate.weights[0] * evaluate(each)[0])
            times.append(time.perf_counter() - start)
        seconds[name] = statistics.median(times)
        print(f"{name}: {seconds[name]:.3f} s", flush=True)
    evaluate, times = evaluator(bench, FITNESSES[EXACT], device), []
    evaluate.surrogate(masks[0])
    scores["surrogate"] = []
    for each in masks:
        start = time.perf_counter()
        scores["surrogate"].append(-evaluate.surrogate(each))
        times.append(time.perf_counter() - start)
    seconds["surrogate"] = statistics.median(times)
    return scores, seconds


def truths(bench: Bench, masks: list[dp.Masks], test: Pair, args: argparse.Namespace) -> dict[str, list[float]]:
    """Test accuracy of the networks that are handed over, as they are and after fine-tuning."""
    evaluate = evaluator(bench, FITNESSES[EXACT], args.device)
    x, y = (t[: args.test_images].to(args.device) for t in test)
    chosen = torch.randperm(len(bench.train[0]), generator=torch.Generator().manual_seed(0))[: args.tune_images]
    train = (bench.train[0][chosen].contiguous(), bench.train[1][chosen])
    found: dict[str, list[float]] = {"test": [], "fine-tuned": []}
    for k, each in enumerate(masks):
        small = evaluate.slim(each)
        found["test"].append(top1(small, (x, y)))
        if args.tune_epochs:
            dp.finetune(small, train, epochs=args.tune_epochs, augment=True, device=args.device, progress=False)
            found["fine-tuned"].append(top1(small.eval(), (x, y)))
        print(f"truth {k + 1} of {len(masks)}: {[values[-1] for values in found.values() if values]}", flush=True)
    return {name: values for name, values in found.items() if values}


def main() -> None:
    """Score all candidates by every fitness and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10_resnet56", choices=sorted(NORMS))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10_train.npz, cifar10_test.npz, ...")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--generations", type=int, default=4, help="of the evolution that makes half of them")
    parser.add_argument("--bn-images", type=int, default=250)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--tune-images", type=int, default=5_000)
    parser.add_argument("--tune-epochs", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="6 candidates, 250 images, 500 test images, no fine-tuning"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.candidates, args.generations, args.test_images, args.tune_epochs = 6, 1, 500, 0
    bench, test = setup(args)
    if test is None:
        parser.error("test images are needed")
    masks = candidates(bench, args.candidates, args.generations, args.device)
    scores, seconds = scored(bench, masks, args.device)
    truth = {**truths(bench, masks, test, args), "exact loss": scores[EXACT]}
    taus = {name: {t: float(kendalltau(v, w).statistic) for t, w in truth.items()} for name, v in scores.items()}
    report = {
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "data"},
        "candidates": len(masks),
        "tau": taus,
        "seconds": seconds,
        "scores": scores,
        "truth": truth,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    name = f"fitness_validity-{args.network}{'-quick' if args.quick else ''}.json"
    path = args.out or Path(__file__).parent / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{'fitness':40} {'seconds':>8} " + " ".join(f"{t:>12}" for t in truth))
    for fitness, row in taus.items():
        print(f"{fitness:40} {seconds[fitness]:8.3f} " + " ".join(f"{tau:12.2f}" for tau in row.values()))
    print(path)


if __name__ == "__main__":
    main()
