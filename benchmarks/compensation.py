r"""What closed-form compensation and sequential refinement give back, without training.

Question: of the accuracy that half of the inner filters' removal costs, how much do BN statistics, compensation in
closed form and sequential refinement return; how long do they take; does the closed-form reconstruction error rank
candidates as their true loss does, and closed-form BN as the data pass does; and which ridge should the fits have?
Method: the inner filters of every block with the smallest L2 norm removed, half of them, uniform widths. Arms: as
pruned; BN re-estimated on 500 images; compensation (500 images) with stale, closed-form and re-estimated BN, full and
by channel; refinement (1,000 images). Cases:
- cifar100, cifar10: ResNet-56 with 1x1 and with padded shortcuts;
- digits-vgg, digits-mobile: a plain network, and one of MobileNetV2's depthwise blocks, trained here on scikit-learn's
  digits (every group of the first, the expansions of the second);
- ranks: random masks of half the inner filters of a ResNet-20, each compensated; Kendall tau with the cross-entropy on
  other training images;
- streams: ResNet-20 and ResNet-56 with padded shortcuts, every group narrower, residual streams too: with and
  without making up for what the shortcuts lose; and how the error ranks random filters of the same widths;
- ridges: refinement with the smallest ridge that helps on held-out rows (the library's) and with the one that helps
  most; compensation with several ridges, by how many rows the moments are of; top-1 and cross-entropy on 2,000 training
  images that nothing was fitted to, so that the rules were not chosen on test images.
Test images are for the figures alone; nothing is chosen on them. Seconds are medians of paired runs in one process, in
CPU time of the process (one thread), so that other work on the machine hardly counts.
Output: a JSON file in benchmarks/results, and a table.

    OMP_NUM_THREADS=1 python benchmarks/compensation.py --data DIR --weights DIR [--cases cifar10 ...] [--quick]

Cases that are run later are added to the file. DIR of the data holds cifar10_test.npz and so on (images uint8 NHWC,
labels); DIR of the weights the state dicts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

import deap_prune as dp
from deap_prune import zoo
from deap_prune.data import load_data
from deap_prune.data.batches import default_forward, to_batches
from deap_prune.fitness.recalibrate import recalibrate_bn
from deap_prune.reconstruction import Grams, collect_grams, compensate, fit, propagate_bn, reconstruction_error, refine

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


def vgg() -> nn.Module:
    """Six 3x3 convolutions with batch norm, for 8x8 images of one channel."""
    layers: list[nn.Module] = []
    channels = 1
    for width, pool in ((32, False), (32, True), (64, False), (64, True), (128, False), (128, False)):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * pool
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def mobile() -> nn.Module:
    """MobileNetV2's blocks (expansion 4, depthwise 3x3, linear bottleneck) for 8x8 images of one channel."""
    stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
    blocks = [InvertedResidual(i, o, s, 4) for i, o, s in ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2))]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def smallest_norms(model: nn.Module, space: dp.PruningSpace, keep: float, inner: str = ".conv1") -> dp.Masks:
    """The filters with the largest L2 norms, of every group whose name ends so."""
    found = {}
    for group in space.groups:
        if group.name.endswith(inner):
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
            start = time.process_time()
            arm()
            taken.append(time.process_time() - start)
    return [statistics.median(taken) for taken in seconds]


def restored(model: nn.Module, test: Data, train: Data, inner: str, args: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy and seconds of every arm on one network."""
    space = dp.trace(model, test[0][:1])
    masks = smallest_norms(model, space, 0.5, inner)
    batches = to_batches((train[0][:500], train[1][:500]), name="calibration", device=torch.device("cpu"))

    def from_data(small: nn.Module) -> nn.Module:
        recalibrate_bn(small, batches, forward=default_forward)
        return small

    small = dp.slim(model, space, masks)
    found = {"dense": accuracy(model, test), "slim": accuracy(small, test)}
    found["slim, BN data"] = accuracy(from_data(small), test)
    seconds: dict[str, float] = {}
    starts: dict[str, nn.Module] = {}
    for mode in ("full", "channel"):
        start = time.process_time()
        grams = collect_grams(model, space, batches, mode=mode)
        seconds[f"collect, {mode}"] = time.process_time() - start
        plain, stale, closed = (dp.slim(model, space, masks) for _ in range(3))
        propagate_bn(plain, space, masks, grams)
        compensate(stale, space, masks, grams)
        compensate(closed, space, masks, grams, statistics=True)
        found[f"slim, BN closed, {mode}"] = accuracy(plain, test)
        found[f"compensated, {mode}"] = accuracy(stale, test)
        found[f"compensated, BN closed, {mode}"] = accuracy(closed, test)
        found[f"compensated, BN data, {mode}"] = accuracy(from_data(stale), test)
        seconds |= closed_form_seconds(model, space, masks, grams, mode, args.repeats)
        starts[mode] = closed
    refined: list[nn.Module] = []
    seconds["dense, all training images"], seconds["refine"] = median_seconds(
        1 if args.quick else 3,
        lambda: cross_entropy(model, train),
        lambda: refined.append(refine(model, space, masks, train, start=starts["full"])),
    )
    found["refined"] = accuracy(refined[-1], test)
    found["refined, from slim"] = accuracy(refine(model, space, masks, train), test)
    images = {"train": len(train[0]), "test": len(test[0])}
    return {"flops": dp.flops(space, masks) / space.flops, "images": images, "accuracy": found, "seconds": seconds}


def closed_form_seconds(
    model: nn.Module, space: dp.PruningSpace, masks: dp.Masks, grams: Grams, mode: str, repeats: int
) -> dict[str, float]:
    """Of compensating, BN statistics included, and of the reconstruction error."""
    copies = [dp.slim(model, space, masks) for _ in range(repeats)]
    taken = median_seconds(
        repeats,
        lambda: compensate(copies.pop(), space, masks, grams, statistics=True),
        lambda: reconstruction_error(space, masks, grams),
    )
    return {f"compensate, {mode}": taken[0], f"error, {mode}": taken[1]}


def quality(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A ResNet-56 on CIFAR."""
    case = CASES[name]
    test = load(case, args.data, "test", 0, args.test_images, name)
    return restored(network(case, args.weights), test, load(case, args.data, "train", 0, 1000, name), ".conv1", args)


def digits(make: Callable[[], nn.Module], inner: str, args: argparse.Namespace) -> dict[str, Any]:
    """A network that is trained here, on 8x8 images of digits."""
    torch.manual_seed(0)
    model, splits = make(), load_data(format="digits")
    recipe = dp.Recipe(lr=0.1, batch_size=64)
    dp.finetune(model, splits.train, epochs=3 if args.quick else 30, recipe=recipe, device="cpu", progress=False)
    return restored(model.eval(), splits.test, splits.train, inner, args)


def helps_most(errors: Iterable[tuple[float, float]], as_is: float) -> float | None:
    """The other rule for refinement's ridge: the smallest error on held-out rows."""
    error, ridge = min((error, ridge) for ridge, error in errors)
    return ridge if error < as_is else None


def ridges(args: argparse.Namespace) -> dict[str, Any]:
    """Both choices of a ridge, judged on training images that nothing was fitted to."""
    found: dict[str, Any] = {"refined": {}, "compensated": {}}
    for name, case in (("cifar100", CASES["cifar100"]), ("cifar10", RANKED)):
        model, train = network(case, args.weights), load(case, args.data, "train", 0, 1000, name)
        judged = load(case, args.data, "train", 2000, 250 if args.quick else 2000, name)
        space = dp.trace(model, train[0][:1])
        masks = smallest_norms(model, space, 0.5)
        for rule, choose in (("smallest that helps", fit.choose), ("helps most", helps_most)):
            with mock.patch.object(fit, "choose", choose):
                refined = refine(model, space, masks, train)
            found["refined"][f"{case['file']}, {rule}"] = accuracy(refined, judged)
    batches = to_batches((train[0][:500], train[1][:500]), name="calibration", device=torch.device("cpu"))
    for rows in (1, 20) if args.quick else (0.25, 0.5, 1, 2, 4, 20):
        for mode, each in (("full", rows), ("channel", 9 * rows)):  # the same positions
            grams = collect_grams(model, space, batches, mode=mode, rows=each)
            for ridge in (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0) if mode == "full" else (1e-3,):
                small = dp.slim(model, space, masks)
                scarcity = max(gram.scarcity for gram in grams.layers.values())  # all layers' alike
                compensate(small, space, masks, grams, statistics=True, ridge=ridge / scarcity)
                key = f"{mode}, {rows} positions for each feature, ridge {ridge}"
                found["compensated"][key] = (accuracy(small, judged), cross_entropy(small, judged))
    return found


def streams(args: argparse.Namespace) -> dict[str, Any]:
    """Residual streams narrower, too: what layers that meet shortcuts make up for, and whether the error sees it."""
    found: dict[str, Any] = {}
    for name, case in (("ResNet-20", RANKED), ("ResNet-56", CASES["cifar10"])):
        model, train = network(case, args.weights), load(case, args.data, "train", 0, 1000, "cifar10")
        test = load(case, args.data, "test", 0, args.test_images, "cifar10")
        judged = load(case, args.data, "train", 2000, 500, "cifar10")
        space = dp.trace(model, test[0][:1])
        batches = to_batches((train[0][:500], train[1][:500]), name="calibration", device=torch.device("cpu"))
        grams = collect_grams(model, space, batches)
        layers = {layer: replace(gram, shortcut=None) for layer, gram in grams.layers.items()}
        arms = {"shortcuts left alone": Grams(layers), "shortcuts made up for": grams}
        for keep in (0.84, 0.71, 0.55):
            masks = smallest_norms(model, space, keep, "")
            row = {"flops": dp.flops(space, masks) / space.flops}
            for arm, known in arms.items():
                small = dp.slim(model, space, masks)
                compensate(small, space, masks, known, statistics=True)
                row[arm] = accuracy(small, test)
                row[f"{arm}, refined"] = accuracy(refine(model, space, masks, train, start=small), test)
            found[f"{name}, {keep} of every group"] = row
        drawn = [dp.Masks.random(space, keep=0.71, seed=seed) for seed in range(args.candidates)]
        for arm, known in arms.items():
            losses = []
            for masks in drawn:
                small = dp.slim(model, space, masks)
                compensate(small, space, masks, known, statistics=True)
                losses.append(cross_entropy(small, judged))
            tau = _tau([reconstruction_error(space, masks, known) for masks in drawn], losses)
            found[f"{name}, random filters, {arm}"] = {"tau": tau, "mean loss": statistics.mean(losses)}
    return found


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
    cases: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        **{name: partial(quality, name) for name in CASES},
        "digits-vgg": partial(digits, vgg, ""),
        "digits-mobile": partial(digits, mobile, ".conv.0.0"),
        "streams": streams,
        "ranks": ranks,
        "ridges": ridges,
    }
    parser.add_argument("--cases", nargs="*", default=list(cases), choices=list(cases))
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
        report[name] = cases[name](args)
        shown = {k: v for k, v in report[name].items() if k not in ("loss", "error")}
        print(name, json.dumps(shown, indent=1), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    args.out.write_text(json.dumps(before | report, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
