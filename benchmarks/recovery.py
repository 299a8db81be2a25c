r"""Which loss, layers, rate and number of steps recover a refined network best without labels?

Question: ``dp.recover`` trains a refined network on calibration images alone, towards the dense network. Which part of
its loss matters (outputs, features, which features), at which learning rate, for how many steps, and should scale and
shift of batch norms train?
Method: ResNet-20 on CIFAR-100, half of every block's inner filters by their L2 norm, compensated and refined on nine
tenths of the calibration images; the loss on the last tenth ends recovery. In rows of commits before 6d9a026
refinement saw these images too, and batch norms used the statistics of each batch. Each arm starts from a copy of that
network and changes one option of the base arm. Accuracy and cross-entropy are measured on validation images: training
images that are neither calibration nor test images. The network was trained on them once, so they are optimistic, for
all arms alike. A seed draws the images. Seconds are CPU time of the process.
Output: a JSON file with one row for each arm and seed, and a table. An arm that has a row is not run again.

    OMP_NUM_THREADS=1 python benchmarks/recovery.py --data DIR --weights DIR --seeds 100 101
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import deap_prune as dp
from deap_prune.data import Splits, load_data
from deap_prune.files import write_text
from deap_prune.training.evaluation import loss_and_accuracy
from deap_prune.weights import load_weights
from deap_prune.zoo import cifar100_resnet20

IGNORE = ("conv1", "layer2.0.downsample", "layer3.0.downsample")
BLOCKS = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2))
FROZEN = "frozen batch norms"
ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "outputs alone": {"layers": ()},
    "features alone": {"output_weight": 0.0},
    "lr 1e-4": {"lr": 1e-4},
    "lr 5e-4": {"lr": 5e-4},
    "lr 1e-3": {"lr": 1e-3},
    FROZEN: {},
    f"{FROZEN}, lr 1e-4": {"lr": 1e-4},
    "last features alone (MiR)": {"layers": ("layer3",), "output_weight": 0.0},
    "last features and outputs": {"layers": ("layer3",)},
    "500 steps": {"steps": 500},
    "500 steps, outputs alone": {"steps": 500, "layers": ()},
    "500 steps, lr 5e-4": {"steps": 500, "lr": 5e-4},
    "1500 steps": {"steps": 1500},
    "without augmentation": {"augment": False},
    "features of all blocks": {"layers": BLOCKS},
    "500 steps, features alone": {"steps": 500, "output_weight": 0.0},
    "1500 steps, lr 5e-4": {"steps": 1500, "lr": 5e-4},
}
BASE = {"steps": 200, "lr": 2e-4}


def parts(splits: Splits) -> tuple[Any, Any]:
    """The calibration images to fit on, and those held out."""
    images, labels = splits.calibration
    count = round(0.9 * len(images))
    return (images[:count], labels[:count]), (images[count:], labels[count:])


def refined(model: nn.Module, splits: Splits) -> nn.Module:
    """The network that every arm starts from."""
    calibration, _ = parts(splits)
    space = dp.trace(model, splits.calibration[0][:1], ignore=IGNORE)
    keep = {}
    for group in space.groups:
        norms = model.get_submodule(group.name).weight.detach().flatten(1).norm(dim=1)
        keep[group.name] = (norms > norms.median()).numpy()
    masks = dp.Masks(keep)
    data = {"calibration": calibration, "validation": splits.validation}
    evaluate = dp.Evaluator(model, space, **data, recalibrate="closed_form", compensate="auto", device="cpu")
    return dp.refine(model, space, masks, calibration, start=evaluate.slim(masks), images=len(calibration[1]))


def measured(network: nn.Module, splits: Splits) -> dict[str, float]:
    """Cross-entropy and accuracy on the validation images."""
    loss, accuracy = loss_and_accuracy(network, splits.validation, device="cpu")
    return {"validation loss": round(loss, 5), "validation accuracy": round(accuracy or 0.0, 5)}


def row(model: nn.Module, start: nn.Module, splits: Splits, arm: str, seed: int) -> dict[str, Any]:
    """One arm."""
    small, begin = copy.deepcopy(start), time.process_time()
    if arm.startswith(FROZEN):
        for layer in small.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.requires_grad_(False)
    options = {**BASE, **ARMS[arm]}
    calibration, held_out = parts(splits)
    how = {**options, "validation": held_out, "seed": seed, "device": "cpu", "progress": False}
    record = dp.recover(small, model, calibration, **how)
    seconds = time.process_time() - begin
    held_out = {"held-out loss before": record.before, "held-out loss after": record.after}
    held_out = {name: round(value, 5) for name, value in held_out.items()}
    return {**measured(small, splits), **held_out, "best step": record.steps, "steps run": record.steps_run} | {
        "CPU seconds": round(seconds, 1)
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, in Markdown."""
    lines = ["| arm | n | validation accuracy, % | cross-entropy | CPU seconds |", "|---|---|---|---|---|"]
    for arm in dict.fromkeys(r["arm"] for r in rows):
        part = [r for r in rows if r["arm"] == arm]
        accuracy, loss = (statistics.mean(r[f"validation {name}"] for r in part) for name in ("accuracy", "loss"))
        seconds = [r["CPU seconds"] for r in part if "CPU seconds" in r]
        time_taken = f"{statistics.mean(seconds):.0f}" if seconds else ""
        lines.append(f"| {arm} | {len(part)} | {100 * accuracy:.2f} | {loss:.3f} | {time_taken} |")
    return "\n".join(lines)


def main() -> None:
    """Run every arm that has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with cifar100_train.npz")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="folder with cifar100_resnet20_optB.pth")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "recovery.json")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[100])
    parser.add_argument("--calibration", type=int, default=2000)
    parser.add_argument("--validation", type=int, default=2000)
    args = parser.parse_args()
    report = json.loads(args.out.read_text()) if args.out.is_file() else {"rows": []}
    rows = report["rows"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = {"deap_prune": dp.__version__, "torch": torch.__version__, "commit": commit}
    report["images"] = {"calibration": args.calibration, "validation": args.validation}
    model = cifar100_resnet20()
    load_weights(model, args.weights / "cifar100_resnet20_optB.pth")
    model.eval()
    for seed in args.seeds:
        statistics_of_pixels = {"mean": [0.5070, 0.4865, 0.4409], "std": [0.2673, 0.2564, 0.2761]}
        counts = {"calibration": args.calibration, "validation": args.validation}
        train = str(args.data / "cifar100_train.npz")
        splits = load_data(format="npz", train=train, seed=seed, **counts, **statistics_of_pixels)
        start = None
        for arm in ("dense", "refined", *args.arms):
            if any(r["arm"] == arm and r["seed"] == seed for r in rows):
                continue
            start = start or refined(model, splits)
            networks = {"dense": model, "refined": start}
            facts = measured(networks[arm], splits) if arm in networks else row(model, start, splits, arm, seed)
            rows.append({"arm": arm, "seed": seed, **facts, **versions, "threads": torch.get_num_threads()})
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_text(args.out, json.dumps(report, indent=1) + "\n")
            print(rows[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
