r"""What closed-form compensation and sequential refinement give back, without training.

Question: of the accuracy that half of the inner filters' removal costs, how much do BN statistics, compensation in
closed form and sequential refinement return; how long do they take; and does the closed-form reconstruction error rank
candidates as their true loss does, and closed-form BN as the data pass does?
Method: ResNet-56, the inner filters of every block with the smallest L2 norm removed, uniform widths. Arms: as pruned;
BN re-estimated on 500 images; compensation (500 images) with stale, closed-form and re-estimated BN, full and by
channel; refinement. CIFAR-100 with 1x1 shortcuts, CIFAR-10 with padded ones. Ranks: random masks of half the inner
filters of a ResNet-20, each compensated; Kendall tau with the cross-entropy on other training images.
Test images are for the figures alone; nothing is chosen on them. Seconds are medians of paired runs in one process.
Output: a JSON file in benchmarks/results, and a table.

    python benchmarks/compensation.py --data DIR --weights DIR [--quick]

DIR of the data holds cifar10_test.npz and so on (images uint8 NHWC, labels); DIR of the weights the state dicts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import Tensor, nn

import deap_prune as dp
from deap_prune import zoo
from deap_prune.batches import default_forward, to_batches
from deap_prune.fitness.recalibrate import recalibrate_bn
from deap_prune.reconstruction import collect_grams, compensate, propagate_bn, reconstruction_error, refine

Data = tuple[Tensor, Tensor]
CASES: dict[str, dict[str, Any]] = {
    "cifar100": {
        "file": "cifar100_resnet56_optB.pth",
        "make": lambda: zoo.cifar_resnet(56, 100, "B"),
        "mean": (0.5070, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2761),
    },
    "cifar10": {
        "file": "cifar10_resnet56.pth",
        "make": lambda: zoo.cifar_resnet(56, 10, "A"),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
}
RANKED = {**CASES["cifar10"], "file": "cifar10_resnet20.pth", "make": lambda: zoo.cifar_resnet(20, 10, "A")}


def load(case: dict[str, Any], folder: Path, split: str, start: int, count: int, name: str) -> Data:
    """Normalised images and labels."""
    with np.load(folder / f"{name}_{split}.npz") as stored:
        images, labels = stored["images"][start : start + count], stored["labels"][start : start + count]
    mean, std = (torch.tensor(case[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return x.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)


def network(case: dict[str, Any], folder: Path) -> nn.Module:
    """The trained network."""
    model: nn.Module = case["make"]()
    model.load_state_dict(torch.load(folder / case["file"], weights_only=True))
    return model.eval()


def smallest_norms(model: nn.Module, space: dp.PruningSpace, keep: float) -> dp.Masks:
    """The inner filters of every block with the largest L2 norms."""
    found = {}
    for group in space.groups:
        if group.name.endswith(".conv1"):
            norms = model.get_submodule(group.name).weight.detach().flatten(1).norm(dim=1).numpy()
            found[group.name] = norms.argsort().argsort() >= group.size - max(1, round(keep * group.size))
    return dp.Masks(found)


def accuracy(model: nn.Module, data: Data) -> float:
    """Top-1 in percent."""
    return 100 * dp.accuracy(model, data, device="cpu")


def cross_entropy(model: nn.Module, data: Data) -> float:
    """Mean over the data, in nats."""
    with torch.no_grad():
        parts = [
            F.cross_entropy(model(x), y, reduction="sum") for x, y in zip(*(d.split(250) for d in data), strict=True)
        ]
    return float(torch.stack(parts).sum()) / len(data[0])


def median_seconds(times: int, *arms: Callable[[], Any]) -> list[float]:
    """Median seconds of each arm, run in turn."""
    seconds: list[list[float]] = [[] for _ in arms]
    for _ in range(times):
        for arm, taken in zip(arms, seconds, strict=True):
            start = time.perf_counter()
            arm()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def quality(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy and seconds of every arm on one network."""
    case = CASES[name]
    model = network(case, args.weights)
    test = load(case, args.data, "test", 0, args.test_images, name)
    train = load(case, args.data, "train", 0, 1000, name)
    space = dp.trace(model, test[0][:1])
    masks = smallest_norms(model, space, 0.5)
    batches = to_batches((train[0][:500], train[1][:500]), name="calibration", device=torch.device("cpu"))

    def from_data(small: nn.Module) -> nn.Module:
        recalibrate_bn(small, batches, forward=default_forward)
        return small

    small = dp.slim(model, space, masks)
    found = {
        "dense": accuracy(model, test),
        "slim": accuracy(small, test),
        "slim, BN data": accuracy(from_data(small), test),
    }
    seconds: dict[str, float] = {}
    for mode in ("full", "channel"):
        start = time.perf_counter()
        grams = collect_grams(model, space, batches, mode=mode)
        seconds[f"collect, {mode}"] = time.perf_counter() - start
        plain, stale, closed = (dp.slim(model, space, masks) for _ in range(3))
        propagate_bn(plain, space, masks, grams)
        compensate(stale, space, masks, grams)
        compensate(closed, space, masks, grams, statistics=True)
        found[f"slim, BN closed, {mode}"] = accuracy(plain, test)
        found[f"compensated, {mode}"] = accuracy(stale, test)
        found[f"compensated, BN closed, {mode}"] = accuracy(closed, test)
        found[f"compensated, BN data, {mode}"] = accuracy(from_data(stale), test)
        copies = [dp.slim(model, space, masks) for _ in range(args.repeats)]
        taken = median_seconds(
            args.repeats,
            lambda: compensate(copies.pop(), space, masks, grams, statistics=True),  # noqa: B023
            lambda: reconstruction_error(space, masks, grams),  # noqa: B023
        )
        seconds |= {f"compensate, {mode}": taken[0], f"error, {mode}": taken[1]}
        if mode == "full":
            begin = closed

    def dense() -> None:
        with torch.no_grad():
            for part in train[0].split(250):
                model(part)

    refined: list[nn.Module] = []
    seconds["dense, 1000 images"], seconds["refine"] = median_seconds(
        1 if args.quick else 3, dense, lambda: refined.append(refine(model, space, masks, train, start=begin))
    )
    found["refined"] = accuracy(refined[-1], test)
    found["refined, from slim"] = accuracy(refine(model, space, masks, train), test)
    share = dp.flops(space, masks) / space.flops
    return {"flops": share, "test_images": len(test[0]), "accuracy": found, "seconds": seconds}


def ranks(args: argparse.Namespace) -> dict[str, Any]:
    """Kendall tau of closed forms with the loss by data, over random candidates of one budget."""
    model = network(RANKED, args.weights)
    calibration = load(RANKED, args.data, "train", 0, 500, "cifar10")
    judged = load(RANKED, args.data, "train", 2000, 500 if args.quick else 1000, "cifar10")
    space = dp.trace(model, calibration[0][:1])
    batches = to_batches(calibration, name="calibration", device=torch.device("cpu"))
    inner = [g.name for g in space.groups if g.name.endswith(".conv1")]
    rows: dict[str, list[float]] = {"data": [], "closed": [], "stale": []}
    errors: dict[str, list[float]] = {"full": [], "channel": []}
    grams = {mode: collect_grams(model, space, batches, mode=mode) for mode in ("full", "channel")}
    for seed in range(args.candidates):
        drawn = dp.Masks.random(space, keep=0.5, seed=seed)
        masks = dp.Masks({name: drawn[name] for name in inner})
        for mode, found in errors.items():
            found.append(reconstruction_error(space, masks, grams[mode]))
        small = dp.slim(model, space, masks)
        compensate(small, space, masks, grams["full"])
        rows["stale"].append(cross_entropy(small, judged))
        propagate_bn(small, space, masks, grams["full"])
        rows["closed"].append(cross_entropy(small, judged))
        recalibrate_bn(small, batches, forward=default_forward)
        rows["data"].append(cross_entropy(small, judged))
    taus = {f"error, {mode}, to loss with BN {bn}": _tau(e, rows[bn]) for mode, e in errors.items() for bn in rows}
    taus |= {f"loss with BN {bn} to BN data": _tau(rows[bn], rows["data"]) for bn in ("closed", "stale")}
    return {"candidates": args.candidates, "judged_images": len(judged[0]), "tau": taus, "loss": rows, "error": errors}


def _tau(a: list[float], b: list[float]) -> float:
    return float(kendalltau(a, b).statistic)


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", default=[*CASES, "ranks"], choices=[*CASES, "ranks"])
    parser.add_argument("--quick", action="store_true", help="2,000 test images, 12 candidates, few repeats")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "compensation.json")
    args = parser.parse_args()
    args.test_images, args.candidates, args.repeats = (2000, 12, 3) if args.quick else (10_000, 60, 21)
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, CPU",
    }
    for name in args.cases:
        report[name] = ranks(args) if name == "ranks" else quality(name, args)
        shown = {k: v for k, v in report[name].items() if k not in ("loss", "error")}
        print(name, json.dumps(shown, indent=1), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
