r"""What closed-form compensation and refinement restore, without training.

Question: of the accuracy lost with half of the inner filters, how much do BN statistics, compensation in closed form
and refinement layer by layer restore, and how long do they take?
Method: in every block the half of the inner filters with the smallest L2 norm is removed, so widths are uniform. The
arms are settings of one evaluator: as pruned; BN statistics from 500 images or in closed form; compensated (500
images), full and channel by channel; refined (1,000 images). Cases:
- cifar100, cifar10: ResNet-56 with 1x1 and with parameter-free shortcuts;
- digits-vgg, digits-mobile: a plain network, and one of MobileNetV2's depthwise blocks, trained here on scikit-learn's
  digits (every group of the first, the expansions of the second).
Test images give the figures alone; nothing is chosen by them. Seconds are CPU time of one thread.
Output: results/compensation-*.json, one file for each data set.

    OMP_NUM_THREADS=1 python benchmarks/compensation.py --data DIR --weights DIR [--cases cifar10 ...]

DIR of the data holds cifar10_test.npz and so on, DIR of the weights the state dicts; see configs/.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pairs import Setup, open_config
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

import deap_prune as dp
from deap_prune.data import load_data

Pair = tuple[Tensor, Tensor]

ARMS: dict[str, dict[str, Any]] = {
    "slim": {"recalibrate": None, "compensate": None},
    "slim, BN data": {"recalibrate": "data", "compensate": None},
    "slim, BN closed, full": {"recalibrate": "closed_form", "compensate": None},
    "compensated, full": {"recalibrate": None, "compensate": "full"},
    "compensated, BN closed, full": {"recalibrate": "closed_form", "compensate": "full"},
    "compensated, BN data, full": {"recalibrate": "data", "compensate": "full"},
    "compensated, channel": {"recalibrate": None, "compensate": "channel"},
    "compensated, BN closed, channel": {"recalibrate": "closed_form", "compensate": "channel"},
    "compensated, BN data, channel": {"recalibrate": "data", "compensate": "channel"},
    "refined": {"recalibrate": "closed_form", "compensate": "full", "refine": True},
}
"""Name in the results to the options of the evaluator."""


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


def largest_norms(model: nn.Module, space: dp.PruningSpace, suffix: str) -> dp.Masks:
    """Keep the half of the filters with the largest L2 norms, in every group whose name ends with the suffix."""
    keep = {}
    for group in space.groups:
        if group.name.endswith(suffix):
            norms = model.get_submodule(group.name).weight.detach().flatten(1).norm(dim=1).numpy()
            keep[group.name] = norms.argsort().argsort() >= group.size - max(1, round(0.5 * group.size))
    return dp.Masks(keep)


def restored(model: nn.Module, test: Pair, train: Pair, suffix: str) -> dict[str, Any]:
    """Test accuracy in percent and seconds of every arm on one network."""
    space = dp.trace(model, test[0][:1])
    masks = largest_norms(model, space, suffix)
    accuracy = {"dense": 100 * dp.accuracy(model, test, device="cpu")}
    seconds: dict[str, float] = {}
    for name, options in ARMS.items():
        images = train if options.get("refine") else (train[0][:500], train[1][:500])
        start = time.process_time()
        evaluator = dp.Evaluator(model, space, calibration=images, objectives=("flops",), device="cpu", **options)
        network = evaluator.slim(masks)
        seconds[name] = time.process_time() - start
        accuracy[name] = 100 * dp.accuracy(network, test, device="cpu")
        print(f"{name:35} {accuracy[name]:6.2f} %  {seconds[name]:6.2f} s", flush=True)
    sizes = {"train": len(train[0]), "test": len(test[0])}
    share = dp.flops(space, masks) / space.flops
    return {"flops": share, "images": sizes, "accuracy": accuracy, "seconds": seconds}


def on_cifar(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """ResNet-56 on CIFAR-10 or CIFAR-100."""
    setup = Setup(open_config(f"{name}-resnet56", 0, args), 0)
    inputs, labels = setup.data.test
    test = inputs[: args.test_images], labels[: args.test_images]
    return restored(setup.model.eval(), test, setup.data.calibration, ".conv1")


def on_digits(make: Callable[[], nn.Module], suffix: str, args: argparse.Namespace) -> dict[str, Any]:
    """A network that is trained here, on 8x8 images of digits."""
    torch.manual_seed(0)
    model, data = make(), load_data(format="digits")
    recipe = dp.Recipe(lr=0.1, batch_size=64)
    dp.finetune(model, data.train, epochs=args.epochs, recipe=recipe, device="cpu", progress=False)
    return restored(model.eval(), data.test, data.train, suffix)


CASES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "cifar100": partial(on_cifar, "cifar100"),
    "cifar10": partial(on_cifar, "cifar10"),
    "digits-vgg": partial(on_digits, vgg, ""),
    "digits-mobile": partial(on_digits, mobile, ".conv.0.0"),
}


def main() -> None:
    """Run the cases and add them to the files of their data sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--calibration", type=int, default=1000, help="training images")
    parser.add_argument("--validation", type=int, default=500, help="not used")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=30, help="of the networks that are trained here")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.cases:
        path = args.out / f"compensation-{name.split('-')[0]}.json"
        report = json.loads(path.read_text()) if path.is_file() else {}
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        report |= {**machine, "machine": f"{platform.machine()}, CPU", name: CASES[name](args)}
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
