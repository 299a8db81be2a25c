r"""How long does the evaluation of one candidate take, and how well does its score rank candidates?

Question: seconds for one candidate at half of the FLOPs (plan, compensation, BN statistics, forward pass over 1,000
images), as a multiple R of one plain PyTorch fp32 channels_last dense forward pass over the same images (batches of
250). The same for the protocols of LeGR and EagleEye (as published, and hoisted: with our surgery, images and BN
budget), for deepcopy + Torch-Pruning + fvcore + DataLoader, and for torch.nn.utils.prune's masks; see
peer_protocols.py. And: what do a cached candidate and a count of FLOPs cost?
Method: one process, all arms paired candidate by candidate after one warm-up, medians. With one thread the CPU time of
the process (``R``), which other work on the machine hardly changes, and wall time (``R wall``); else wall time alone.
Kendall's tau of each score with the test accuracy of the network that our evaluator returns, over candidates of one
budget; random weights serve for timing alone. "times ours": seconds divided by those of our evaluator with compensation
and closed-form BN statistics in fp32. As published, LeGR's loss is of 5,000 images, and EagleEye re-estimates BN on 102
batches of 128 and scores 10,000 images.
Output: results/speed-*.json, and a table.

    OMP_NUM_THREADS=1 python benchmarks/speed.py --network cifar10_resnet56 --weights cifar10_resnet56.pth --data DIR
    OMP_NUM_THREADS=1 python benchmarks/speed.py --network vgg19 --candidates 5 --published 1   # random weights, images
    python benchmarks/speed.py --network resnet50 --device cuda --images 250                    # at 224 pixels
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from peer_protocols import Bench, EagleEye, LeGR, Protocol, TorchMasks, TorchPruning, top1
from scipy.stats import kendalltau
from torch import Tensor, nn

import deap_prune as dp
from deap_prune import zoo
from deap_prune.data import load_data
from deap_prune.weights import load_weights

OURS = "ours, fp32, BN closed_form, compensation auto"
NORMS = {
    "cifar10": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
}


def setup(args: argparse.Namespace) -> tuple[Bench, tuple[Tensor, Tensor] | None]:
    """Network, space and images; the test images where there are real ones."""
    torch.manual_seed(0)
    if args.network == "resnet50":
        model, shape, classes = torchvision.models.resnet50(weights=None), (3, 224, 224), 1000
    else:
        model, shape, classes = getattr(zoo, args.network)(), (3, 32, 32), 10 if "10_" in args.network else 100
    if args.weights:
        load_weights(model, args.weights)
    model = model.eval().to(args.device)
    if args.data:
        name = args.network.split("_")[0]
        mean, std = NORMS[name]
        paths = {split: str(args.data / f"{name}_{split}.npz") for split in ("train", "test")}
        splits = load_data(
            format="npz", **paths, mean=mean, std=std, calibration=args.bn_images, validation=args.images
        )
        train, calibration, validation, test = splits.train, splits.calibration, splits.validation, splits.test
    else:
        draw = [
            (torch.randn(n, *shape), torch.randint(classes, (n,)))
            for n in (2 * args.images, args.bn_images, args.images)
        ]
        (train, calibration, validation), test = draw, None
    data = [tuple(t.to(args.device) for t in pair) for pair in (train, calibration, validation)]
    fast = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in data]
    space = dp.trace(model, validation[0][:1], ignore=residual_streams(model, validation[0][:1]))
    return Bench(model, space, *fast, scale=0.02 if getattr(args, "quick", False) else 1.0), test


def residual_streams(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """The first layers of groups that several layers make: left dense, as in the configs."""
    return tuple(g.name for g in dp.trace(model, example).groups if len(g.layers("filter")) > 1)


def random_blends(bench: Bench) -> dp.Genome:
    """Blends of four criteria with evolved widths, each at the budget."""
    scores = dp.score(bench.model, bench.space, bench.calibration, criteria=("l1", "l2", "bn_scale", "random"))
    clusters = dp.cluster(scores, n_clusters=2)
    return dp.Genome(bench.space, scores, clusters, allocation="evolved", max_flops=bench.budget)


def candidates(bench: Bench, count: int) -> list[dp.Masks]:
    """Random blends."""
    genome = random_blends(bench)
    evaluate = dp.Evaluator(bench.model, bench.space, objectives=("flops",), recalibrate=None, device="cpu")
    return [genome.decode(ind) for ind in dp.make_toolbox(genome, evaluate).population(n=count)]


def engine(bench: Bench, device: str, **options: Any) -> dp.Evaluator:
    """Our evaluator."""
    data = {"calibration": bench.calibration, "validation": bench.validation}
    return dp.Evaluator(bench.model, bench.space, **data, objectives=("loss",), device=device, **options)


def engines(bench: Bench, device: str, *, bf16: bool) -> dict[str, dp.Evaluator]:
    """Our evaluator in the settings that are compared."""
    evaluators = {}
    for precision in ("fp32", "bf16") if bf16 else ("fp32",):
        for recalibrate in ("data", "closed_form"):
            for compensate in ("auto", "channel", None):
                name = f"ours, {precision}, BN {recalibrate}, compensation {compensate or 'none'}"
                options = {"precision": precision, "recalibrate": recalibrate, "compensate": compensate}
                evaluators[name] = engine(bench, device, **options)
    return evaluators


def clock(bench: Bench) -> float:
    """CPU seconds of the process on a CPU with one thread, else wall seconds when all is done."""
    if bench.validation[0].is_cuda:
        torch.cuda.synchronize()
    alone = not bench.validation[0].is_cuda and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()


def took(bench: Bench, call: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call returns, its seconds by :func:`clock`, and in wall time."""
    wall, start = time.perf_counter(), clock(bench)
    answer = call()
    return answer, clock(bench) - start, time.perf_counter() - wall


def dense_pass(bench: Bench, batch: int = 250) -> None:
    """The yardstick: the plain dense network, in channels_last, over the validation images."""
    with torch.no_grad():
        for x in bench.validation[0].split(batch):
            bench.channels_last(x)


def dense_forward(bench: Bench) -> float:
    """Seconds of the yardstick."""
    return took(bench, lambda: dense_pass(bench))[1]


def score_of(evaluate: dp.Evaluator, masks: dp.Masks) -> float:
    """Score of one candidate; larger is better."""
    return -evaluate(masks)[0]


def small_change(bench: Bench, evaluate: dp.Evaluator, masks: dp.Masks) -> dict[str, float]:
    """Seconds of what should cost nothing: a cached candidate, and the FLOPs of one."""
    evaluate(masks)  # from here on it is in the cache
    resnet50 = dp.trace(torchvision.models.resnet50(weights=None), torch.zeros(1, 3, 64, 64))
    other = dp.Masks.random(resnet50)
    counts = resnet50.kept_counts(other)

    def median(call: Any) -> float:
        times = []
        for _ in range(200):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    return {
        "cached candidate": median(lambda: evaluate(masks)),
        "flops of kept counts, ResNet-50": median(lambda: resnet50.flops_of(counts)),
        "dp.flops of masks, ResNet-50": median(lambda: dp.flops(resnet50, other)),
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All arms."""
    bench, test = setup(args)
    masks = candidates(bench, args.candidates)
    ours = engines(bench, args.device, bf16=args.bf16)
    peers: dict[str, Protocol] = {}
    for published in (False, True) if args.published else (False,):
        how = "as published" if published else "hoisted"
        peers |= {f"{kind.name}, {how}": kind(bench, published=published) for kind in (LeGR, EagleEye)}
    if args.published:
        peers["LeGR, as published, 200 steps"] = LeGR(bench, published=True, tau=200)
    peers |= {kind.name: kind(bench, published=False) for kind in (TorchPruning, TorchMasks)}
    warm_up = dp.Masks.random(bench.space, keep=bench.budget, seed=1)
    for evaluate in ours.values():
        score_of(evaluate, warm_up)
    before = {name: dict(evaluate.counters.seconds) for name, evaluate in ours.items()}
    dense_pass(bench)
    names = ("dense", "dense, batches of 50", *ours, *peers)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    scores: dict[str, list[float]] = {name: [] for name in (*ours, *peers)}
    phases: dict[str, dict[str, float]] = {}
    for k, shared in enumerate(masks):
        seconds["dense"].append(took(bench, lambda: dense_pass(bench))[1:])
        seconds["dense, batches of 50"].append(took(bench, lambda: dense_pass(bench, 50))[1:])
        for name, evaluate in ours.items():
            score, *both = took(bench, partial(score_of, evaluate, shared))
            scores[name].append(score), seconds[name].append(tuple(both))
        for name, protocol in peers.items():
            if "published" in name and k >= args.published:
                continue
            bench.seconds.clear()
            own, *planned = took(bench, protocol.plan)  # timed; the score is of the candidate that all arms share
            candidate = shared if protocol.name != EagleEye.name or test else own
            score, *both = took(bench, partial(protocol.score, candidate))
            scores[name].append(score), seconds[name].append(tuple(map(sum, zip(planned, both, strict=True))))
            phases[name] = {phase: sum(times) for phase, times in bench.seconds.items()}
        print(f"candidate {k + 1} of {len(masks)}", flush=True)
    for name, evaluate in ours.items():
        phases[name] = {p: (s - before[name][p]) / len(masks) for p, s in evaluate.counters.seconds.items()}
    first = next(iter(ours.values()))
    truth = [] if test is None else [accuracy(first, m, test, args.test_images) for m in masks]
    return {
        "arms": summary(seconds, scores, phases, truth),
        "seconds of what should cost nothing": small_change(bench, first, masks[0]),
        "flops kept": [dp.flops(bench.space, m) / bench.space.flops for m in masks],
        "test accuracy": truth,
        "images": {"validation": len(bench.validation[0]), "bn": len(bench.calibration[0]), "test": args.test_images},
    }


def accuracy(evaluate: dp.Evaluator, masks: dp.Masks, test: tuple[Tensor, Tensor], count: int) -> float:
    """On test images, of the network that our evaluator returns."""
    x, y = (t[:count].to(evaluate.device) for t in test)
    return top1(evaluate.slim(masks), (x, y))


def summary(
    seconds: dict[str, list[tuple[float, float]]],
    scores: dict[str, list[float]],
    phases: dict[str, dict[str, float]],
    truth: list[float],
) -> dict[str, dict[str, Any]]:
    """For each arm: median seconds, R, seconds over those of our evaluator, tau and phases."""
    arms: dict[str, dict[str, Any]] = {}
    ours = seconds[OURS]
    for name, times in seconds.items():
        ratios = np.array([np.divide(t, d) for t, d in zip(times, seconds["dense"], strict=False)])
        against = [t[0] / o[0] for t, o in zip(times, ours, strict=False)]
        r, wall = np.median(ratios, axis=0).tolist()
        median = statistics.median(t[0] for t in times)
        arms[name] = {
            "seconds": median,
            "R": r,
            "R wall": wall,
            "times ours": statistics.median(against),
            "n": len(times),
        }
        if name in phases:
            arms[name]["phases"] = phases[name]
        if truth and len(scores.get(name, ())) > 2:
            tau = float(kendalltau(scores[name], truth[: len(scores[name])]).statistic)
            arms[name]["tau"] = None if np.isnan(tau) else tau
    return arms


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10_resnet56")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", type=Path, help="folder with cifar10_train.npz, cifar10_test.npz, ...")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="bf16 too, where the processor computes in it")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--published", type=int, default=3, help="candidates of the protocols as published; 0: none")
    parser.add_argument("--images", type=int, default=1000, help="validation images")
    parser.add_argument("--bn-images", type=int, default=250)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="250 images, published budgets at 2 %%, three candidates")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if args.quick:
        args.candidates, args.published, args.images, args.test_images = 3, 1, 250, 500
    return args


def main() -> None:
    """Run all arms and write the results."""
    args = arguments()
    report = run(args)
    report |= {
        "network": args.network,
        "random weights": not args.weights,
        "quick": args.quick,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()}, CPU",
    }
    name = f"speed-{args.network}-{args.device}{'-quick' if args.quick else ''}.json"
    path = args.out or Path(__file__).parent / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{'arm':60} {'seconds':>8} {'R':>7} {'R wall':>7} {'x ours':>7} {'tau':>6}  phases")
    for arm, row in report["arms"].items():
        tau = "" if row.get("tau") is None else f"{row['tau']:.2f}"
        text = ", ".join(f"{k} {v:.3f}" for k, v in row.get("phases", {}).items())
        figures = f"{row['seconds']:8.3f} {row['R']:7.2f} {row['R wall']:7.2f} {row['times ours']:7.1f}"
        print(f"{arm:60} {figures} {tau:>6}  {text}")
    print(json.dumps(report["seconds of what should cost nothing"]), path, sep="\n")


if __name__ == "__main__":
    main()
