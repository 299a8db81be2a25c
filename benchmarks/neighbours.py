r"""Do related methods work here? Five of them, each on real data, one case each.

compensation     Pruning with compensation (Xie et al. 2021): criterion "compensation", allocation "binary", re-fitting
                 in the place of training. ResNet-20, CIFAR-100, inner filters, half the FLOPs.
uniform          Uniform channel pruning (Chang, Lu, Xue 2020): squeeze-and-excitation gates, one rate a stage, training
                 from scratch. ResNet-20, CIFAR-100, all groups, half the FLOPs; with ``--network vgg19`` the paper's
                 own test: 38 % of VGG-19's FLOPs; the dense network is trained here, as long (on a CUDA device).
self_supervised  Pruning networks that learned without labels (Caron et al. 2020): self_supervised.py
polyphase        Adaptive polyphase sampling (Chaman, Dokmanic 2021), dense and pruned: polyphase.py
points           Parametric continuous convolution (Wang et al. 2018) on digits as sets of points, dense and pruned.

Filters and widths are chosen on training images; the test images give one figure per arm, at the end.
Output: the case's part of benchmarks/results/neighbours.json, and a table (mean and standard deviation over seeds).

    python benchmarks/neighbours.py CASE --data DIR --weights DIR --seeds 0 1 2
    python benchmarks/neighbours.py uniform --network vgg19 --data DIR --epochs 160 --images 48500
    python benchmarks/neighbours.py CASE --quick      # the digits, seconds, no files; nothing is written

DIR of the data holds cifar10_test.npz and so on (images uint8 NHWC, labels); DIR of the weights the state dicts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from images import Images, Pair, cifar, digits
from pairs import device_name
from polyphase import polyphase
from self_supervised import masks_by, self_supervised
from torch import nn
from torch.utils.data import DataLoader

import deap_prune as dp
from deap_prune import zoo
from deap_prune.data import augment

Rows = list[dict[str, Any]]
BUDGETS = {"resnet20": 0.5, "vgg19": 0.38}  # kept FLOPs of "uniform"; the latter cut is the paper's
EXTRA = ("linear probe", "transfer", "trained on labels", "kept by both", "shift", "front")


def trained(args: argparse.Namespace, seed: int) -> tuple[nn.Module, Images]:
    """ResNet-20 with published weights, or VGG-19 trained here; and CIFAR-100. Quick: a network of the digits."""
    torch.manual_seed(seed)
    if args.quick:
        images, model = digits(), zoo.digits_resnet(width=8)
        dp.finetune(model, images.split(0)[2], epochs=2, recipe=dp.Recipe(lr=0.1, batch_size=64), progress=False)
    elif args.network == "vgg19":
        images, model = cifar(args.data, "cifar100", test=args.test, held=1500), zoo.vgg19(100)
        train(args, model, images.split(seed)[2], 0.1, seed)
    else:
        images, model = cifar(args.data, "cifar100", train=12_000, test=args.test, held=1500), zoo.cifar100_resnet20()
        model.load_state_dict(torch.load(args.weights / "cifar100_resnet20_optB.pth", weights_only=True))
    return model.eval(), images


def train(args: argparse.Namespace, model: nn.Module, pair: Pair, lr: float, seed: int, **options: Any) -> None:
    """Train on the first images, shifted and mirrored; on CUDA in bf16."""
    recipe = dp.Recipe(lr=lr, precision="bf16" if torch.cuda.is_available() else "fp32")
    some = (pair[0][: args.images], pair[1][: args.images])
    options |= {"epochs": args.epochs, "augment": augment, "seed": seed}
    dp.finetune(model, some, recipe=recipe, progress=False, **options)


def compensation(args: argparse.Namespace, seed: int) -> Rows:
    """Two criteria, two allocations, with BN statistics alone and re-fitted; a seed draws the 750 training images."""
    model, images = trained(args, seed)
    calibration, _, _ = images.split(seed)
    streams = [g.name for g in dp.trace(model, calibration[0][:1]).groups if not g.name.endswith(".conv1")]
    space = dp.trace(model, calibration[0][:1], ignore=streams)
    rows: Rows = [{"arm": "dense", "flops": 1.0, "test": dp.accuracy(model, images.test)}]
    for criterion in ("l2", "compensation"):
        scores = dp.score(model, space, calibration, criteria=(criterion,), seed=seed)
        for allocation in ("uniform", "binary"):
            masks = masks_by(dp.Genome(space, scores, dp.cluster(scores), allocation=allocation, max_flops=0.5))
            for treatment, mode in (("BN alone", None), ("compensated", "full")):
                evaluator = dp.Evaluator(model, space, calibration=calibration, objectives=("flops",), compensate=mode)
                arm, share = f"{criterion}, {allocation} widths, {treatment}", dp.flops(space, masks) / space.flops
                rows.append({"arm": arm, "flops": share, "test": dp.accuracy(evaluator.slim(masks), images.test)})
    return rows


def uniform(args: argparse.Namespace, seed: int) -> Rows:
    """Gates' scores and one rate a stage, equal and searched; then from scratch and fine-tuned, as many epochs."""
    model, images = trained(args, seed)
    budget = BUDGETS["resnet20" if args.quick else args.network]
    calibration, validation, rest = images.split(seed)
    space = dp.trace(model, calibration[0][:1])
    evaluator = dp.Evaluator(model, space, calibration=calibration, objectives=("flops",))
    rows: Rows = []

    def row(arm: str, network: nn.Module, masks: dp.Masks) -> None:
        share, widths = dp.flops(space, masks) / space.flops, space.kept_counts(masks).tolist()
        rows.append({"arm": arm, "flops": share, "test": dp.accuracy(network, images.test), "widths": widths})

    row("dense", model, dp.Masks({}))
    for criterion in ("l2", "attention"):
        scores = dp.score(model, space, calibration, criteria=(criterion,), seed=seed)
        masks = masks_by(dp.Genome(space, scores, dp.cluster(scores), allocation="stage", max_flops=budget))
        row(f"{criterion}, equal rates, compensated", evaluator.slim(masks), masks)
    options = {"criteria": ("attention",), "allocation": "stage", "objectives": ("loss",), "max_flops": budget}
    sizes = {"population": 4, "generations": 1} if args.quick else {"population": 8, "generations": 2}
    searched = dp.search(
        model,
        calibration[0][:1],
        calibration=calibration,
        validation=validation,
        seed=seed,
        refine=False,
        progress=False,
        **options,
        **sizes,
    ).best.masks
    row("attention, searched rates, compensated", evaluator.slim(searched), searched)
    fresh, tuned = dp.slim(model, space, searched), evaluator.slim(searched)
    train(args, tuned, rest, 0.01, seed)
    row(f"attention, searched rates, fine-tuned {args.epochs} epochs", tuned, searched)
    train(args, fresh, rest, 0.1, seed, from_scratch=True)
    row(f"attention, searched rates, from scratch {args.epochs} epochs", fresh, searched)
    return rows


def points(args: argparse.Namespace, seed: int) -> Rows:
    """Digits as sets of points: trained, searched at half the FLOPs, fine-tuned."""

    def batches(pair: Pair, *, shuffle: bool = False) -> DataLoader[Any]:
        features, places = zoo.brightest_points(pair[0], 32)
        samples = [((f, p), y) for f, p, y in zip(features, places, pair[1], strict=True)]
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(samples, batch_size=64, shuffle=shuffle, generator=generator)

    images = digits()
    calibration, validation, rest = images.split(seed)
    train, test, epochs = batches(rest, shuffle=True), batches(images.test), args.epochs
    torch.manual_seed(seed)
    model = zoo.PointClassifier()
    dp.finetune(model, train, epochs=epochs, recipe=dp.Recipe(lr=0.1), seed=seed, progress=False)
    rows: Rows = [{"arm": "dense", "flops": 1.0, "test": dp.accuracy(model, test)}]
    result = dp.search(
        model,
        zoo.brightest_points(calibration[0][:1], 32),
        calibration=batches(calibration),
        validation=batches(validation),
        objectives=("loss",),
        max_flops=0.5,
        population=8,
        generations=1 if args.quick else 6,
        seed=seed,
        progress=False,
    )
    small, share = result.slim(result.best), result.best.flops / result.space.flops
    rows.append({"arm": "pruned", "flops": share, "test": dp.accuracy(small, test)})
    tune = dp.Recipe(lr=0.02)
    dp.finetune(small, train, epochs=-(-epochs // 2), recipe=tune, teacher=model, seed=seed, progress=False)
    return [*rows, {"arm": "fine-tuned", "flops": share, "test": dp.accuracy(small, test)}]


def run_self_supervised(args: argparse.Namespace, seed: int) -> Rows:
    """CIFAR-10 at half its size, transfer to CIFAR-100; quick: digits below 5, transfer to the others."""
    if args.quick:
        own, other = digits(range(5)), digits(range(5, 10))
    else:
        own, other = (
            cifar(args.data, name, train=10_000, test=args.test, half=True) for name in ("cifar10", "cifar100")
        )
    return self_supervised(own, other, seed=seed, epochs=args.epochs, generations=1 if args.quick else 4)


def run_polyphase(args: argparse.Namespace, seed: int) -> Rows:
    """CIFAR-10 at half its size; quick: the digits."""
    images = digits() if args.quick else cifar(args.data, "cifar10", train=10_000, test=args.test, half=True)
    return polyphase(images, seed=seed, epochs=args.epochs, generations=1 if args.quick else 5)


CASES = {
    "compensation": (compensation, 0),
    "uniform": (uniform, 3),
    "self_supervised": (run_self_supervised, 4),
    "polyphase": (run_polyphase, 8),
    "points": (points, 8),
}


def table(rows: Rows) -> str:
    """Markdown: a line an arm, mean (standard deviation) over the seeds, shares in percent."""
    names = ["flops", *(["test"] if "test" in rows[0] else []), *(n for n in EXTRA if any(n in r for r in rows))]
    lines = ["| arm | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = [arm]
        for name in names:
            values = [row[name] for row in rows if row["arm"] == arm and name in row]
            scale = 1 if name in ("flops", "front") else 100
            shown = f"{scale * statistics.mean(values):.{3 if name == 'flops' else 2}f}" if values else ""
            spread = f" ({scale * statistics.stdev(values):.2f})" if len(values) > 1 and name != "flops" else ""
            cells.append(shown + spread)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run a case and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--network", choices=BUDGETS, default="resnet20", help="of 'uniform'")
    parser.add_argument("--epochs", type=int, default=None, help="of every training")
    parser.add_argument("--images", type=int, default=8000, help="of 'uniform', to train on")
    parser.add_argument("--test", type=int, default=10_000, help="CIFAR test images, the first so many")
    parser.add_argument("--quick", action="store_true", help="digits, one epoch, nothing written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "neighbours.json")
    args = parser.parse_args()
    if args.network != "resnet20" and args.case != "uniform":
        parser.error(f"--network {args.network} is for 'uniform'; leave it out for '{args.case}'")
    case, epochs = CASES[args.case]
    name = args.case if args.network == "resnet20" else f"{args.case}, {args.network}"
    args.epochs = args.epochs or (1 if args.quick else epochs)
    about = {
        "settings": {"epochs": args.epochs, "images": args.images, "test": args.test},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": device_name(),
    }
    report = json.loads(args.out.read_text()) if args.out.is_file() and not args.quick else {}
    before = report.get(name, {})
    rows = before["rows"] if before and before["settings"] == about["settings"] else []
    for seed in args.seeds:
        start = time.perf_counter()
        rows = [*(row for row in rows if row["seed"] != seed), *({"seed": seed, **row} for row in case(args, seed))]
        print(f"seed {seed}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        if not args.quick:  # a seed is done: it need not be done again
            report[name] = {**about, "rows": rows}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
