r"""Does the fitness choose what generalises?

Question: how well does each fitness rank candidates of one budget, by test accuracy as pruned and after a short
fine-tune, and what does it cost? A fitness that is cheap, or that does not overfit the images it is measured on, must
still rank as an exact one does.
Method: candidates are random blends with evolved widths, and as many that a short evolution (stock eaMuPlusLambda, loss
on a fixed draw) ends with. Each way of judging gives all of them its loss, accuracy and agreement. The truths are top-1
on test images of the networks that are handed over (compensated, BN statistics from data, or in closed form), and of
the former after a few steps of fine-tuning on training images. Kendall's tau with each, with the exact loss (fp32, BN
from data, all validation images), and seconds a candidate: medians of CPU time of the process (one thread), so that
other work on the machine hardly counts. Nothing is chosen on the test images; what is concluded from them here is which
way of judging is the default.
Output: a JSON file in benchmarks/results, and a table.

    OMP_NUM_THREADS=1 python benchmarks/fitness_validity.py --weights cifar10_resnet20.pth --data DIR
    OMP_NUM_THREADS=1 python benchmarks/fitness_validity.py --network digits-vgg     # trained here, no files needed
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compensation import mobile, vgg
from deap import algorithms
from protocols import Bench, top1
from scipy.stats import kendalltau
from speed import setup
from torch import Tensor

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.fitness import Sampling
from deap_prune.fitness.settings import computes_bf16

Pair = tuple[Tensor, Tensor]
MEASURES = ("loss", "accuracy", "agreement")
MOVED = Sampling(augment=True)
DATA = {"recalibrate": "data"}
CLOSED = {"recalibrate": "closed_form"}
EXACT = "BN data"
JUDGES: dict[str, dict[str, Any]] = {
    EXACT: DATA,
    "BN data, augmented": {**DATA, "sampling": MOVED},
    "BN closed form": CLOSED,
    "BN closed form, augmented": {**CLOSED, "sampling": MOVED},
    "no compensation, BN data": {**DATA, "compensate": None},
    "no compensation, BN closed form": {**CLOSED, "compensate": None},
    "no compensation, stale BN": {"compensate": None, "recalibrate": None},
    "BN data, bf16": {**DATA, "precision": "bf16"},
}


DIGITS = {"digits-vgg": vgg, "digits-mobile": mobile}  # a plain network, and one of depthwise blocks


def digits_setup(args: argparse.Namespace) -> tuple[Bench, Pair]:
    """A network that is trained here, on 8x8 images of digits, and its test images."""
    torch.manual_seed(0)
    model, splits = DIGITS[args.network](), load_data(format="digits")
    recipe = dp.Recipe(lr=0.1, batch_size=64)
    dp.finetune(model, splits.train, epochs=3 if args.quick else 30, recipe=recipe, device="cpu", progress=False)
    space = dp.trace(model.eval(), splits.train[0][:1])
    return Bench(model, space, splits.train, splits.calibration, splits.validation), splits.test


def few(bench: Bench) -> Sampling:
    """A quarter of the validation images."""
    return Sampling(images=len(bench.validation[0]) // 4)


def evaluator(bench: Bench, options: dict[str, Any], device: str) -> dp.Evaluator:
    """A way of judging."""
    data = {"calibration": bench.calibration, "validation": bench.validation, "device": device}
    return dp.Evaluator(bench.model, bench.space, **data, **{"objectives": MEASURES, **options})


def candidates(bench: Bench, count: int, generations: int, device: str) -> list[dp.Masks]:
    """Half of them a first population, half where a short evolution ends; no two are the same."""
    scores = dp.score(bench.model, bench.space, bench.calibration, criteria=("l1", "l2", "bn_scale", "random"))
    clusters = dp.cluster(scores, n_clusters=2)
    genome = dp.Genome(bench.space, scores, clusters, allocation="evolved", max_flops=bench.budget)
    judge = evaluator(bench, {**DATA, "objectives": ("loss",), "sampling": few(bench)}, device)
    toolbox = dp.make_toolbox(genome, judge, seed=0)
    first = toolbox.population(n=count)
    random.seed(1)
    parents = [toolbox.clone(ind) for ind in first[: max(2, count // 4)]]
    size = len(parents)
    evolved, _ = algorithms.eaMuPlusLambda(parents, toolbox, count // 2, size, 0.5, 0.5, generations, verbose=False)
    masks = [genome.decode(ind) for ind in (*evolved, *first)]
    return list(dict.fromkeys(masks))[:count]


def scored(bench: Bench, masks: list[dp.Masks], device: str) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Scores (larger is better) and median seconds a candidate, of every way of judging and of the surrogate."""
    scores: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    judges = {**JUDGES, "BN data, a quarter of the images": {**DATA, "sampling": few(bench)}}
    for name, options in judges.items():
        if options.get("precision") == "bf16" and not computes_bf16(torch.device(device)):
            continue
        evaluate = evaluator(bench, options, device)
        values, seconds[name] = timed(evaluate, masks, dp.Masks.random(bench.space))
        for measure, weight, column in zip(evaluate.names, evaluate.weights, zip(*values, strict=True), strict=True):
            scores[f"{name}: {measure}"] = [weight * value for value in column]
        print(f"{name}: {seconds[name]:.3f} s", flush=True)
    evaluate = evaluator(bench, JUDGES[EXACT], device)
    errors, seconds["surrogate"] = timed(evaluate.surrogate, masks, masks[0])
    scores["surrogate"] = [-error for error in errors]
    return scores, seconds


def timed(judge: Callable[[dp.Masks], Any], masks: list[dp.Masks], warm: dp.Masks) -> tuple[list[Any], float]:
    """What a function says of each candidate, and its median seconds."""
    judge(warm)
    found, times = [], []
    for each in masks:
        start = time.process_time()
        found.append(judge(each))
        times.append(time.process_time() - start)
    return found, statistics.median(times)


def truths(bench: Bench, masks: list[dp.Masks], test: Pair, args: argparse.Namespace) -> dict[str, list[float]]:
    """Test accuracy of the networks that are handed over, and of the first after fine-tuning."""
    data, closed = (evaluator(bench, JUDGES[name], args.device) for name in (EXACT, "BN closed form"))
    x, y = (t[: args.test_images].to(args.device) for t in test)
    recipe = dp.Recipe(batch_size=64, lr=0.01)
    chosen = torch.randperm(len(bench.train[0]), generator=torch.Generator().manual_seed(0))[: 64 * args.tune_steps]
    train = (bench.train[0][chosen].contiguous(), bench.train[1][chosen])
    found: dict[str, list[float]] = {"test, BN data": [], "test, BN closed form": [], "fine-tuned": []}
    for k, each in enumerate(masks):
        small = data.slim(each)
        found["test, BN data"].append(top1(small, (x, y)))
        found["test, BN closed form"].append(top1(closed.slim(each), (x, y)))
        if args.tune_steps:
            options = {"epochs": 1, "recipe": recipe, "augment": True, "device": args.device, "progress": False}
            dp.finetune(small, train, **options)
            found["fine-tuned"].append(top1(small.eval(), (x, y)))
        print(f"truth {k + 1} of {len(masks)}: {[values[-1] for values in found.values() if values]}", flush=True)
    return {name: values for name, values in found.items() if values}


def main() -> None:
    """Score all candidates by every fitness and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10_resnet20")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", type=Path, help="folder with cifar10_train.npz, cifar10_test.npz, ...")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--generations", type=int, default=3, help="of the evolution that makes half of them")
    parser.add_argument("--images", type=int, default=500, help="validation images")
    parser.add_argument("--bn-images", type=int, default=250)
    parser.add_argument("--test-images", type=int, default=1500)
    parser.add_argument("--tune-steps", type=int, default=20, help="of 64 images")
    parser.add_argument("--quick", action="store_true", help="6 candidates, 250 images, 250 test images, 2 steps")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.candidates, args.generations, args.images, args.test_images, args.tune_steps = 6, 1, 250, 250, 2
    bench, test = digits_setup(args) if args.network in DIGITS else setup(args)
    if test is None:
        parser.error("test images are needed")
    masks = candidates(bench, args.candidates, args.generations, args.device)
    name = f"fitness_validity-{args.network}{'-quick' if args.quick else ''}.json"
    path = args.out or Path(__file__).parent / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    scores, seconds = scored(bench, masks, args.device)
    report: dict[str, Any] = {
        "arguments": {
            k: str(v) if isinstance(v, Path) else v
            for k, v in vars(args).items()
            if k not in ("data", "weights", "out")
        },
        "candidates": len(masks),
        "seconds": seconds,
        "scores": scores,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    path.write_text(json.dumps(report, indent=1) + "\n")  # a run that is stopped from here on keeps its scores
    truth = {**truths(bench, masks, test, args), "exact loss": scores[f"{EXACT}: loss"]}
    taus = {name: {t: float(kendalltau(v, w).statistic) for t, w in truth.items()} for name, v in scores.items()}
    means = {name: statistics.mean(values) for name, values in truth.items() if name != "exact loss"}
    path.write_text(json.dumps(report | {"tau": taus, "mean accuracy": means, "truth": truth}, indent=1) + "\n")
    print(f"{'fitness':44} {'seconds':>8} " + " ".join(f"{t:>20}" for t in truth))
    for fitness, row in taus.items():
        took = seconds[fitness.split(":")[0]]
        print(f"{fitness:44} {took:8.3f} " + " ".join(f"{tau:20.3f}" for tau in row.values()))
    print(means)
    print(path)


if __name__ == "__main__":
    main()
