r"""Does a searched blend choose better filters than its parts, and than its neighbours, at equal cost?

Question: at the same FLOPs, the same number of evaluations and the same protocol, on images that nothing was chosen by:
is a blend better than the best single criterion (uniform widths: which filters), and with evolved widths better than
LeGR's learned global ranking? Does a blend carry over to another depth or budget? Which of its parts matter?
Method: cells are network and images x kept FLOPs x seed; a seed draws calibration and validation images, clusters and
searches. Protocols are in ground.py, arms in arms.py. Every (cell, protocol, arm) is a step with a file of its own in
--out: a run that was stopped goes on where it was, and runs may share a folder.
Output: ``run`` writes the steps; ``table`` gathers them into one JSON file, tables and a figure.

    python benchmarks/quality.py run --data DIR --weights DIR
    python benchmarks/quality.py run --data DIR --weights DIR --ablation
    python benchmarks/quality.py table
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from arms import ABLATIONS, ARMS, COMPENSATED, DRAFTS, FRONTS, PLAIN, transferred
from ground import PROTOCOLS, Ground
from quality_tables import write_tables

import deap_prune as dp
from deap_prune.config import Config, load_config
from deap_prune.data import load_data
from deap_prune.files import write_text
from deap_prune.weights import save_weights
from deap_prune.zoo import digits_resnet

PAIRS = {
    "digits": "digits_resnet.safetensors",
    "cifar10-resnet20": "cifar10_resnet20.pth",
    "cifar100-resnet20": "cifar100_resnet20_optB.pth",
    "cifar10-resnet56": "cifar10_resnet56.pth",
    "cifar100-resnet56": "cifar100_resnet56_optB.pth",
    "imagenet-resnet50": None,
}
BUDGETS = (0.5, 0.7, 0.3)
DEEP = {"cifar10-resnet56": "cifar10-resnet20", "cifar100-resnet56": "cifar100-resnet20"}
ABLATED = ("digits", "cifar10-resnet20")


@dataclass(frozen=True)
class Step:
    """One arm of one cell.

    Attributes:
        budget: Kept share of the FLOPs; None for the dense network and fronts.
        kind: dense, arm, front, transfer or ablation.
    """

    pair: str
    budget: float | None
    seed: int
    protocol: str
    kind: str
    arm: str

    def path(self, out: Path) -> Path:
        """Where its row is written."""
        slug = re.sub(r"[^a-z0-9]+", "-", f"{self.kind} {self.arm}".lower()).strip("-")
        return out / self.pair / f"{self.budget or 'free'}" / f"{self.protocol}-{self.seed}-{slug}.json"


def plan(args: argparse.Namespace) -> list[Step]:
    """All steps that are asked for: half the FLOPs before other budgets, compensated before plain."""
    seeds, pairs = range(args.seeds), [p for p in PAIRS if p != "imagenet-resnet50" or p in (args.pairs or ())]
    if args.ablation:
        steps = [Step(p, 0.5, s, "plain", "ablation", arm) for p in ABLATED for s in seeds for arm in ABLATIONS]
    else:
        steps = [Step(p, None, 0, "plain", "dense", "dense") for p in pairs]
        steps += [s for b in BUDGETS for s in cells(["digits"], b, seeds)]
        steps += cells(pairs[1:], 0.5, seeds)
        for by in ("compensated", "drafts"):
            steps += [Step(p, None, s, by, "front", arm) for p in pairs for s in seeds for arm in FRONTS]
        others = [p for p in pairs[1:] if p not in DEEP or args.full]
        steps += [s for b in BUDGETS[1:] for s in cells(others, b, seeds)]
    asked = {
        "pair": args.pairs,
        "budget": args.budgets,
        "protocol": args.protocols,
        "kind": args.kinds,
        "arm": args.arms,
    }
    return [s for s in steps if all(not values or getattr(s, name) in values for name, values in asked.items())]


def cells(pairs: list[str], budget: float, seeds: range) -> list[Step]:
    """The arms at a budget, protocol by protocol, and the transfers."""
    steps = []
    for protocol, arms in (("compensated", COMPENSATED), ("drafts", DRAFTS), ("plain", PLAIN)):
        for pair in pairs:
            for seed in seeds:
                steps += [Step(pair, budget, seed, protocol, "arm", arm) for arm in arms]
                if protocol != "drafts":
                    steps += [Step(pair, budget, seed, protocol, "transfer", name) for name in sources(pair, budget)]
    return steps


def sources(pair: str, budget: float) -> Iterator[str]:
    """What is carried over to a cell: a blend from another depth, or from half the FLOPs."""
    widths = ("uniform widths", "evolved widths")
    if pair in DEEP and budget == 0.5:
        yield from (f"from {DEEP[pair]}, {w}" for w in widths)
    if budget != 0.5:
        yield from (f"from 0.5, {w}" for w in widths)


# ------------------------------------------------------------------ running
def open_config(pair: str, seed: int, args: argparse.Namespace) -> Config:
    """A pair's config, with the paths of this machine, the images of this seed and their numbers."""
    path = Path(__file__).parent.parent / "configs" / f"{pair}.yaml"
    config, weights = load_config(path), PAIRS[pair]
    changes = [f"data.seed={seed}", *args.set]
    if weights:
        changes.append(f"model.weights={(args.out if pair == 'digits' else args.weights) / weights}")
    if config.data.format != "digits":
        changes += [f"data.{s}={args.data / Path(getattr(config.data, s)).name}" for s in ("train", "test")]
        changes += [f"data.calibration={args.calibration}", f"data.validation={args.validation}"]
    return load_config(path, changes)


def train_digits(path: Path) -> None:
    """The digits network, as the demo trains it."""
    torch.manual_seed(0)
    model, data = digits_resnet(), load_data(format="digits")
    dp.finetune(model, data.train, epochs=15, recipe=dp.Recipe(lr=0.1, batch_size=64))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(model, path)


def run_step(step: Step, ground: Ground, out: Path) -> dict[str, Any]:
    """The row of a step."""
    if step.kind == "dense":
        test = dp.accuracy(ground.work.model, ground.work.splits.test)
        return {"test accuracy": test, "multiply-adds": ground.space.flops}
    if step.kind == "front":
        return FRONTS[step.arm](ground, step.protocol)
    if step.kind == "transfer":
        origin, widths = step.arm.removeprefix("from ").split(", ")
        pair, budget = (step.pair, float(origin)) if origin[0].isdigit() else (origin, step.budget)
        source = Step(pair, budget, step.seed, step.protocol, "arm", f"ours, {widths}").path(out)
        return transferred(ground, step.budget, step.protocol, source=json.loads(source.read_text()))
    return (ARMS if step.kind == "arm" else ABLATIONS)[step.arm](ground, step.budget, step.protocol)


def fingerprint(ground: Ground) -> str:
    """The network's weights in twelve digits: rows of one pair are of one network."""
    weights = ground.config.model.weights if ground.config.model else None
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:12] if weights else ""


def run(args: argparse.Namespace) -> None:
    """All steps that have no file yet, one after the other."""

    @lru_cache(maxsize=1)
    def ground(pair: str, seed: int) -> Ground:
        return Ground(open_config(pair, seed, args), seed, args.evaluations, args.images)

    steps = plan(args)
    if not (weights := args.out / PAIRS["digits"]).is_file() and any(step.pair == "digits" for step in steps):
        if any((args.out / "digits").rglob("*.json")):
            raise SystemExit(
                f"{args.out} has rows of a digits network that is not there: bring {weights}, or begin anew"
            )
        train_digits(weights)
    for number, step in enumerate(steps):
        path = step.path(args.out)
        if path.is_file():
            continue
        start = time.perf_counter()
        row = run_step(step, ground(step.pair, step.seed), args.out)
        seconds = time.perf_counter() - start
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
        machine["weights"] = fingerprint(ground(step.pair, step.seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({**vars(step), **row, "seconds": seconds, **machine}))
        test = row.get("test accuracy", row.get("hypervolume"))
        print(f"{time.strftime('%H:%M:%S')} {number + 1}/{len(steps)} {step}: {test} in {seconds:.0f} s", flush=True)


def main() -> None:
    """Run, or gather."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    parser_run = commands.add_parser("run", help="all steps that have no file yet")
    parser_run.add_argument("--data", type=Path, default=Path("data"), help="folder of cifar10_train.npz, ...")
    parser_run.add_argument("--weights", type=Path, default=Path("weights"), help="folder of cifar10_resnet20.pth, ...")
    parser_run.add_argument("--pairs", nargs="+", choices=PAIRS, help="all but imagenet-resnet50 if left out")
    parser_run.add_argument("--budgets", nargs="+", type=float)
    parser_run.add_argument("--seeds", type=int, default=3, help="how many")
    parser_run.add_argument("--protocols", nargs="+", choices=PROTOCOLS)
    parser_run.add_argument("--kinds", nargs="+", choices=("dense", "arm", "front", "transfer"))
    parser_run.add_argument("--arms", nargs="+")
    parser_run.add_argument("--full", action="store_true", help="ResNet-56 at the other budgets too")
    parser_run.add_argument("--ablation", action="store_true", help="the ablations, and nothing else")
    parser_run.add_argument("--evaluations", type=int, default=120, help="of every arm that searches")
    parser_run.add_argument("--calibration", type=int, default=1000, help="moments, refinement")
    parser_run.add_argument("--images", type=int, default=250, help="of those: criteria, plain BN statistics")
    parser_run.add_argument("--validation", type=int, default=500)
    parser_run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser_table = commands.add_parser("table", help="gather the steps")
    for each in (parser_run, parser_table):
        each.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser_table.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser_table.add_argument("--report", type=Path, help="RESULTS.md, where the tables stand between marks")
    args = parser.parse_args()
    if args.command == "run":
        run(args)
    else:
        write_tables(args.out, args.results, args.report, tuple(PAIRS))


if __name__ == "__main__":
    main()
