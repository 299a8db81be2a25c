r"""Does a searched blend choose better filters than its parts, and than related methods, at equal cost?

Question: at the same FLOPs, the same number of evaluations and the same protocol, on images that chose nothing: is a
blend better than the best single criterion (uniform widths), and with evolved widths better than LeGR's learned global
ranking? Can a blend be used on another network or at another budget?
Method: a cell is a pair (network and images), a kept share of the FLOPs and a seed, which draws calibration and
validation images, clusters and searches. Protocols are in pairs.py, methods in methods.py. Every (cell, protocol,
method) is a step with a file of its own in --out, so a stopped run goes on where it was, and runs may share a folder.
Output: ``run`` writes the steps; ``gather`` puts them into results/compare_methods.json (then: ``make results``).

    python benchmarks/compare_methods.py run --data DIR --weights DIR
    python benchmarks/compare_methods.py gather
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from methods import COMPENSATED, DRAFTS, FRONTS, METHODS, PLAIN, transferred
from pairs import PAIRS, PROTOCOLS, Row, Setup, open_config, train_digits
from provenance import packed

import deap_prune as dp
from deap_prune.files import write_text

BUDGETS = (0.5, 0.7, 0.3)
DEEP = {"cifar10-resnet56": "cifar10-resnet20", "cifar100-resnet56": "cifar100-resnet20"}
NOT_STORED = ("individual", "blend")  # only transfers read them; the masks are stored in a compact form


@dataclass(frozen=True)
class Step:
    """One method in one cell.

    Attributes:
        pair: Name of network and images.
        budget: Kept share of the FLOPs; None for the dense network and fronts.
        seed: Seed of images, clusters and search.
        protocol: A name of ``PROTOCOLS``.
        kind: dense, arm (a method at a budget), front or transfer.
        arm: Name of the method.
    """

    pair: str
    budget: float | None
    seed: int
    protocol: str
    kind: str
    arm: str

    def path(self, out: Path) -> Path:
        """The file of its row."""
        slug = re.sub(r"[^a-z0-9]+", "-", f"{self.kind} {self.arm}".lower()).strip("-")
        return out / self.pair / f"{self.budget or 'free'}" / f"{self.protocol}-{self.seed}-{slug}.json"


def plan(args: argparse.Namespace) -> list[Step]:
    """All requested steps: half of the FLOPs before other budgets, compensated before plain."""
    seeds, pairs = range(args.seeds), [p for p in PAIRS if "imagenet" not in p or p in (args.pairs or ())]
    steps = [Step(pair, None, 0, "plain", "dense", "dense") for pair in pairs]
    steps += [step for budget in BUDGETS for step in cells(["digits"], budget, seeds)]
    steps += cells(pairs[1:], 0.5, seeds)
    for protocol in ("compensated", "drafts"):
        steps += [Step(p, None, s, protocol, "front", name) for p in pairs for s in seeds for name in FRONTS]
    others = [pair for pair in pairs[1:] if pair not in DEEP or args.full]
    steps += [step for budget in BUDGETS[1:] for step in cells(others, budget, seeds)]
    requested = {
        "pair": args.pairs,
        "budget": args.budgets,
        "protocol": args.protocols,
        "kind": args.kinds,
        "arm": args.methods,
    }
    return [s for s in steps if all(not values or getattr(s, name) in values for name, values in requested.items())]


def cells(pairs: Sequence[str], budget: float, seeds: range) -> list[Step]:
    """The methods at a budget, protocol by protocol, and the transfers."""
    steps = []
    for protocol, methods in (("compensated", COMPENSATED), ("drafts", DRAFTS), ("plain", PLAIN)):
        for pair in pairs:
            for seed in seeds:
                steps += [Step(pair, budget, seed, protocol, "arm", name) for name in methods]
                if protocol != "drafts":
                    steps += [Step(pair, budget, seed, protocol, "transfer", name) for name in origins(pair, budget)]
    return steps


def origins(pair: str, budget: float) -> Iterator[str]:
    """Where the blends of a cell's transfers come from: another depth, or half of the FLOPs."""
    widths = ("uniform widths", "evolved widths")
    if pair in DEEP and budget == 0.5:
        yield from (f"from {DEEP[pair]}, {w}" for w in widths)
    if budget != 0.5:
        yield from (f"from 0.5, {w}" for w in widths)


# ------------------------------------------------------------------ running
def run_step(step: Step, setup: Setup, out: Path) -> Row:
    """The row of a step."""
    if step.kind == "dense":
        return {"test accuracy": dp.accuracy(setup.model, setup.data.test), "multiply-adds": setup.space.flops}
    if step.kind == "front":
        return FRONTS[step.arm](setup, step.protocol)
    if step.kind == "transfer":
        origin, widths = step.arm.removeprefix("from ").split(", ")
        pair, budget = (step.pair, float(origin)) if origin[0].isdigit() else (origin, step.budget)
        source = Step(pair, budget, step.seed, step.protocol, "arm", f"ours, {widths}").path(out)
        return transferred(setup, step.budget, step.protocol, source=json.loads(source.read_text()))
    return METHODS[step.arm](setup, step.budget, step.protocol)


def fingerprint(setup: Setup) -> str:
    """Twelve digits of the hash of the network's weights: the rows of a pair are of one network."""
    weights = setup.config.model.weights if setup.config.model else None
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:12] if weights else ""


def run(args: argparse.Namespace) -> None:
    """Run all steps that have no file yet, one after the other."""

    @lru_cache(maxsize=1)
    def setup(pair: str, seed: int) -> Setup:
        return Setup(open_config(pair, seed, args), seed, args.evaluations, args.images)

    steps, weights = plan(args), args.out / PAIRS["digits"]
    if not weights.is_file() and any(step.pair == "digits" for step in steps):
        if any((args.out / "digits").rglob("*.json")):
            raise SystemExit(f"{args.out} has rows of a digits network that is gone: restore {weights}, or start anew")
        train_digits(weights)
    for number, step in enumerate(steps):
        path = step.path(args.out)
        if path.is_file():
            continue
        start = time.perf_counter()
        row: dict[str, Any] = run_step(step, setup(step.pair, step.seed), args.out)
        seconds = time.perf_counter() - start
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
        machine["weights"] = fingerprint(setup(step.pair, step.seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({**vars(step), **row, "seconds": seconds, **machine}))
        test = row.get("test accuracy", row.get("hypervolume"))
        print(f"{time.strftime('%H:%M:%S')} {number + 1}/{len(steps)} {step}: {test} in {seconds:.0f} s", flush=True)


def gather(out: Path, results: Path) -> None:
    """Put the rows of all steps into one JSON file, in order.

    Raises:
        SystemExit: If the rows of a pair are of several networks.
    """
    names = [*PAIRS, *METHODS, *FRONTS]
    rows = [json.loads(path.read_text()) for path in sorted(out.glob("*/*/*.json"))]
    rows = [{key: value for key, value in row.items() if key not in NOT_STORED} for row in rows]
    for row in rows:
        if "masks" in row:
            row["masks"] = packed(dp.Masks.from_json(json.dumps(row["masks"])))
    for pair in PAIRS:
        networks = {row["weights"] for row in rows if row["pair"] == pair and "weights" in row}
        if len(networks) > 1:
            raise SystemExit(f"the rows of {pair} in {out} are of several networks: {', '.join(sorted(networks))}")

    def order(row: Row) -> tuple[Any, ...]:
        arm = names.index(row["arm"]) if row["arm"] in names else -1
        return names.index(row["pair"]), -(row["budget"] or 0), row["protocol"], arm, row["seed"]

    results.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in sorted(rows, key=order))
    results.write_text(f"[\n{lines}\n]\n")
    print(f"{len(rows)} rows in {results}")


def main() -> None:
    """Run, or gather."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    parser_run = commands.add_parser("run", help="run all steps that have no file yet")
    parser_run.add_argument("--data", type=Path, default=Path("data"), help="folder of cifar10_train.npz, ...")
    parser_run.add_argument("--weights", type=Path, default=Path("weights"), help="folder of cifar10_resnet20.pth, ...")
    parser_run.add_argument("--pairs", nargs="+", choices=PAIRS, help="all but those of ImageNet if left out")
    parser_run.add_argument("--budgets", nargs="+", type=float)
    parser_run.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser_run.add_argument("--protocols", nargs="+", choices=PROTOCOLS)
    parser_run.add_argument("--kinds", nargs="+", choices=("dense", "arm", "front", "transfer"))
    parser_run.add_argument("--methods", nargs="+", help="names of methods or fronts")
    parser_run.add_argument("--full", action="store_true", help="ResNet-56 at the other budgets too")
    parser_run.add_argument("--evaluations", type=int, default=120, help="evaluations of every search")
    parser_run.add_argument("--calibration", type=int, default=1000, help="images for moments and refinement")
    parser_run.add_argument("--images", type=int, default=250, help="of those: criteria, plain BN statistics")
    parser_run.add_argument("--validation", type=int, default=500, help="images that the loss is measured on")
    parser_run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser_gather = commands.add_parser("gather", help="put all rows into one file")
    results = Path(__file__).parent / "results" / "compare_methods.json"
    parser_gather.add_argument("--results", type=Path, default=results)
    for command in (parser_run, parser_gather):
        command.add_argument("--out", type=Path, default=Path("runs/compare_methods"))
    args = parser.parse_args()
    if args.command == "run":
        run(args)
    else:
        gather(args.out, args.results)


if __name__ == "__main__":
    main()
