"""MobileNetV2 on ImageNet images without labels: what compensation, refinement, selection and recovery keep.

Question: at 70 and 50 % of the FLOPs, how accurate is torchvision's MobileNetV2 after each stage?
Method: no search. For each budget and kind of widths (uniform, balanced, one threshold) the best of the criteria is
chosen by the loss of its compensated network on the validation images, and refined on all calibration images. The
widths whose refined network has the smallest such loss go on: with sequential selection, and recovered after that.
Nothing is chosen by the test images; every network is evaluated on them once.
Output: results/imagenet.json: one row for each budget, kind of widths and stage, and one for the dense network.

    OMP_NUM_THREADS=1 python benchmarks/imagenet.py --data DIR --weights DIR [--budgets 0.7 0.5] [--recover 100]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from methods import single_masks
from pairs import Row, Setup, by_name, device_name, open_config
from selection import commit

import deap_prune as dp

PAIR = "imagenet-mobilenetv2"
WIDTHS = ("uniform", "balanced", "threshold")


class Measured:
    """The rows of results, kept in a file; a row that is there is not measured again.

    Args:
        path: The file.
        setup: Network, data and space.
        facts: What all rows have in common.
    """

    def __init__(self, path: Path, setup: Setup, facts: Row) -> None:
        self.path, self.setup, self.facts = path, setup, facts

    @property
    def rows(self) -> list[Row]:
        """All rows of the file."""
        return json.loads(self.path.read_text()) if self.path.is_file() else []

    def row(self, key: Row) -> Row | None:
        """The row with these values, or None."""
        facts = self.facts | key
        names = ("pair", "seed", "images", "validation images", *key)
        return next((row for row in self.rows if all(row.get(name) == facts[name] for name in names)), None)

    def add(self, key: Row, evaluator: dp.Evaluator, masks: dp.Masks, network: Any, seconds: float, **more: Any) -> Row:
        """Evaluate a network on validation and test images, and keep its row."""
        row = self.facts | key | {"cpu seconds": seconds, **more}
        row["validation"] = by_name(evaluator, evaluator.measure(network, masks))
        row["test accuracy"] = self.setup.test_accuracy(network)
        row["masks"] = json.loads(masks.to_json())
        self.path.write_text(json.dumps([*self.rows, row], indent=1))
        shown = {name: f"{value:.4f}" for name, value in row["validation"].items()}
        print(key, shown, f"test {row['test accuracy']:.4f}, {seconds:.0f} CPU s", flush=True)
        return row


def best_masks(setup: Setup, evaluator: dp.Evaluator, budget: float, widths: str) -> tuple[str, dp.Masks, Row]:
    """The best single criterion on validation images, its masks, and the losses of all."""
    genome = setup.genome(budget, allocation="uniform" if widths == "uniform" else "evolved")
    masks = single_masks(genome, evaluator, widths, refined=True)
    losses = {name: evaluator(candidate)[0] for name, candidate in masks.items()}
    best = min(losses, key=losses.__getitem__)
    return best, masks[best], losses


def measured_stage(measured: Measured, refining: dp.Evaluator, first: Row, stage: str, **settings: Any) -> Row:
    """The row of a network that is refined from the masks of a row."""
    key = {name: first[name] for name in ("budget", "widths", "criterion")} | {"stage": stage}
    row = measured.row(key)
    if row is None:
        masks = dp.Masks.from_json(json.dumps(first["masks"]))
        begun, arm = time.process_time(), refining.with_settings(**settings)
        built = arm.slim(masks)
        row = measured.add(key, refining, masks, built, time.process_time() - begun, **settings)
    return row


def main() -> None:
    """Measure what the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="with the folders sample and flickr")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.7, 0.5])
    parser.add_argument("--images", dest="calibration", type=int, default=500)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--recover", type=int, default=0)
    parser.add_argument("--widths", nargs="*", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--criteria", nargs="*", default=["l1", "elimination"])
    parser.add_argument("--set", nargs="*", default=[])
    args = parser.parse_args()
    args.set = [f"search.criteria=[{', '.join(args.criteria)}]", *args.set]
    setup = Setup(open_config(PAIR, 0, args), 0)
    facts = {
        "pair": PAIR,
        "seed": 0,
        "images": args.calibration,
        "validation images": args.validation,
        "commit": commit(),
        "device": device_name(),
    }
    facts |= {"deap-prune": version("deap-prune"), "python": platform.python_version(), "torch": torch.__version__}
    measured = Measured(args.out / "imagenet.json", setup, facts)
    # The statistics of depthwise layers' norms do not follow from moments: auto re-estimates them on images.
    evaluator = setup.evaluator("compensated", objectives=("loss", "accuracy", "flops"), recalibrate="auto")
    refining = evaluator.with_settings(refine=True, refine_images=args.calibration)
    for budget in args.budgets:
        refined: list[tuple[Row, Row]] = []
        for widths in args.widths:
            key = {"budget": budget, "widths": widths, "stage": "compensated"}
            row = measured.row(key)
            if row is None:
                begun = time.process_time()
                criterion, masks, losses = best_masks(setup, evaluator, budget, widths)
                key |= {"criterion": criterion}
                seconds = time.process_time() - begun
                row = measured.add(key, evaluator, masks, evaluator.slim(masks), seconds, losses=losses)
            refined.append((measured_stage(measured, refining, row, "refined"), row))
        best = min(refined, key=lambda pair: pair[0]["validation"]["loss"])[1]
        measured_stage(measured, refining, best, "selected", select=True)
        if args.recover:
            measured_stage(measured, refining, best, "recovered", select=True, recover=args.recover)
    if measured.row({"stage": "dense"}) is None:
        measured.add({"stage": "dense"}, evaluator, dp.Masks({}), evaluator.network, 0.0)


if __name__ == "__main__":
    main()
