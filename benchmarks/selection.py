"""Which filters stay at equal widths: elimination and sequential selection against single criteria, without a search.

Question: with half of every block's inner filters, how accurate is the network if its filters are chosen by the L2
norm, by elimination on the dense network's moments, or one reader after the other inside refinement?
Method: no search and no training. ``--widths balanced`` keeps half of the FLOPs instead, with widths that balance the
groups' errors, anchored to the outputs. The calibration images (``--images``) are drawn from the training
images by the seed. Compensated: layers re-fitted in closed form; refined: layer by layer on all calibration images;
selected: refined, with the filters chosen on the way; recovered: label-free recovery after that (``--recover`` steps).
Nothing is chosen by the test images; every network is evaluated on them once.
Output: results/selection.json: one row for each pair, seed, criterion and stage, with masks.

    OMP_NUM_THREADS=1 python benchmarks/selection.py --data DIR --weights DIR [--pairs cifar100-resnet20 ...]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pairs import PAIRS, Setup, device_name, open_config

import deap_prune as dp

Row = dict[str, Any]
CRITERIA = ("l2", "elimination")
WIDTHS = ("uniform", "balanced")
KEY = ("pair", "seed", "widths", "images")


def commit() -> str:
    """The commit of the code that measures."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def half(setup: Setup, criterion: str) -> dp.Masks:
    """The masks that keep the better half of every group by a criterion."""
    scores = dp.score(setup.model, setup.space, setup.data.calibration, criteria=(criterion,), seed=setup.seed)
    ranks = {name: table[criterion].argsort().argsort() for name, table in scores.scores.items()}
    return dp.Masks({name: rank >= len(rank) - len(rank) // 2 for name, rank in ranks.items()})


def balanced(setup: Setup, evaluator: dp.Evaluator, criterion: str) -> dp.Masks:
    """The masks of half of the FLOPs with balanced widths, anchored to the outputs."""
    scores = dp.score(setup.model, setup.space, setup.data.calibration, criteria=(criterion,), seed=setup.seed)
    genome = dp.Genome(setup.space, scores, dp.cluster(scores, n_clusters=1), max_flops=0.5)
    curves = genome.width_curves(criterion, evaluator.surrogate, anchor=evaluator.output_distance)
    return genome.decode(genome.balanced(criterion, curves))


class Measured:
    """The rows of a file; a row that is there is not measured again.

    Args:
        path: The file.
        setup: Network, data and space.
        facts: What the rows of one pair, seed and kind of widths have in common.
    """

    def __init__(self, path: Path, setup: Setup, facts: Row) -> None:
        self.path, self.setup, self.facts = path, setup, facts

    def masks(self, criterion: str, stage: str) -> dp.Masks | None:
        """The masks of a row, or None if it is not measured yet."""
        facts = {name: self.facts[name] for name in KEY} | {"criterion": criterion, "stage": stage}
        for row in rows_in(self.path):
            if all(row[name] == fact for name, fact in facts.items()):
                return dp.Masks.from_json(json.dumps(row["masks"]))
        return None

    def add(self, criterion: str, stage: str, evaluator: dp.Evaluator, masks: dp.Masks, begun: float) -> None:
        """Build a network, evaluate it on validation and test images, and keep its row."""
        if self.masks(criterion, stage) is not None:
            return
        network = evaluator.slim(masks)
        seconds = time.process_time() - begun
        values = dict(zip(evaluator.names, evaluator.measure(network, masks), strict=True))
        accuracy = self.setup.test_accuracy(network)
        row = {"criterion": criterion, "stage": stage, "test accuracy": accuracy, "validation": values}
        row |= {"cpu seconds": seconds, "masks": json.loads(masks.to_json())}
        self.path.write_text(json.dumps([*rows_in(self.path), self.facts | row], indent=1))
        print(self.facts["pair"], self.facts["seed"], criterion, stage, f"{accuracy:.4f} {seconds:.0f} s", flush=True)


def rows_in(path: Path) -> list[Row]:
    """The rows of a file; none if it does not exist."""
    return json.loads(path.read_text()) if path.is_file() else []


def measure(measured: Measured, criterion: str, recover: int) -> None:
    """Add the rows of a criterion, stage by stage."""
    setup = measured.setup
    compensated = setup.evaluator("compensated", objectives=("loss", "flops"))
    refined = compensated.with_settings(refine=True, refine_images=len(setup.data.calibration[0]))
    begun = time.process_time()
    masks = measured.masks(criterion, "compensated")
    if masks is None:
        uniform = measured.facts["widths"] == "uniform"
        masks = half(setup, criterion) if uniform else balanced(setup, compensated, criterion)
    measured.add(criterion, "compensated", compensated, masks, begun)
    measured.add(criterion, "refined", refined, masks, begun)
    begun = time.process_time()
    selected = measured.masks(criterion, "selected") or refined.selected(masks)
    measured.add(criterion, "selected", refined, selected, begun)
    if recover:
        measured.add(criterion, "recovered", refined.with_settings(recover=recover), selected, begun)


def main() -> None:
    """Measure what the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--pairs", nargs="*", default=[p for p in PAIRS if p.startswith("cifar")])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--widths", choices=WIDTHS, default=WIDTHS[0])
    parser.add_argument("--criteria", nargs="*", choices=CRITERIA, default=CRITERIA)
    parser.add_argument("--images", dest="calibration", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=1000)
    parser.add_argument("--recover", type=int, default=0, help="gradient steps of label-free recovery; 0: none")
    parser.add_argument("--set", nargs="*", default=[])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for seed in args.seeds:
        for pair in args.pairs:
            setup = Setup(open_config(pair, seed, args), seed)
            facts: Row = {"pair": pair, "seed": seed, "widths": args.widths, "images": args.calibration}
            facts |= {"commit": commit(), "deap-prune": version("deap-prune"), **versions, "device": device_name()}
            measured = Measured(args.out / "selection.json", setup, facts)
            for criterion in args.criteria:
                measure(measured, criterion, args.recover)


if __name__ == "__main__":
    main()
