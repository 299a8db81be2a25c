r"""How far apart are differently pruned networks after training on all training images?

Question: at the same FLOPs, refined and then trained alike, how far below the dense network does a searched blend end,
and how far the best single criterion with uniform widths, random filters and LeGR's ranking?
Method: the methods of methods.py choose filters (protocol drafts: equal evaluations, by validation images). Each
network is refined, then trained on all training images (CIFAR's shifted and mirrored) with the dense network as
teacher. The weights of the last epoch are tested; no test image chooses anything. A seed draws images, search and
training.
Output: a part of results/training.json, and a table. ``choose`` takes minutes a network on a CPU core; ``train`` needs
a CUDA device, or days, and trains several networks at once. A stopped ``choose`` or ``train`` goes on where it was.

    python benchmarks/training.py choose --data DIR --weights DIR
    python benchmarks/training.py train --data DIR --weights DIR --together 4
    python benchmarks/training.py table
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from methods import METHODS
from pairs import PAIRS, Row, Setup, device_name, open_config, train_digits
from table_format import markdown, spread

import deap_prune as dp
from deap_prune.files import write_text
from deap_prune.weights import load_weights, save_weights

TRAINED = ("ours, evolved widths, pre-screened", "best single", "LeGR", "random")
PROTOCOL = "drafts"


def path_of(args: argparse.Namespace, arm: str, seed: int, content: str) -> Path:
    """The file of a step."""
    slug = "-".join("".join(c if c.isalnum() else " " for c in arm.lower()).split())
    return args.out / f"{args.pair}-{args.budget}" / f"{slug}-{seed}.{content}"


def steps(args: argparse.Namespace) -> list[tuple[str, int]]:
    """Methods and seeds."""
    return [(arm, seed) for seed in args.seeds for arm in args.methods]


def choose(args: argparse.Namespace, setup: Callable[[int], Setup]) -> None:
    """Choose the filters of every method and seed that has none yet, and save the refined network's weights."""
    for arm, seed in steps(args):
        path, weights = (path_of(args, arm, seed, f"chosen.{kind}") for kind in ("json", "safetensors"))
        if not path.is_file():
            row = METHODS[arm](setup(seed), args.budget, PROTOCOL)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"arm": arm, "seed": seed, **row}))
            print(f"{arm}, seed {seed}: {row['test accuracy']:.4f}", flush=True)
        if not weights.is_file():
            masks = dp.Masks.from_json(json.dumps(json.loads(path.read_text())["masks"]))
            save_weights(setup(seed).evaluator("compensated", refine=True).slim(masks), weights)


def train(args: argparse.Namespace, setup: Callable[[int], Setup]) -> None:
    """Train the chosen networks that are not trained yet, several at a time: small networks leave a GPU idle."""
    todo = [step for step in steps(args) if not path_of(args, *step, f"trained-{args.epochs}.json").is_file()]
    if missing := [step for step in todo if not path_of(args, *step, "chosen.safetensors").is_file()]:
        raise SystemExit(f"not chosen yet: {missing}; run `choose` first")
    for seed in {seed for _, seed in todo}:
        _ = setup(seed).space, setup(seed).data  # made here, once for all threads
    torch.backends.cudnn.benchmark = True
    with ThreadPoolExecutor(args.together) as pool:
        for row in pool.map(lambda step: trained(args, setup(step[1]), *step), todo):
            print(f"{row['arm']}, seed {row['seed']}: {row['test accuracy']:.4f}", flush=True)


def trained(args: argparse.Namespace, setup: Setup, arm: str, seed: int) -> Row:
    """The row of one network's training, on a stream of its own where there is a CUDA device."""
    chosen = json.loads(path_of(args, arm, seed, "chosen.json").read_text())
    masks = dp.Masks.from_json(json.dumps(chosen["masks"]))
    small = dp.slim(setup.model, setup.space, masks)
    load_weights(small, path_of(args, arm, seed, "chosen.safetensors"))
    teacher = copy.deepcopy(setup.model)  # its own: training moves it to the device and back
    cuda = torch.cuda.is_available()
    recipe = dp.Recipe(lr=args.lr, batch_size=args.batch_size, precision="bf16" if cuda else "fp32")
    with torch.cuda.stream(torch.cuda.Stream() if cuda else None):
        refined = dp.accuracy(small, setup.data.test)
        records = dp.finetune(
            small,
            setup.data.train,
            epochs=args.epochs,
            recipe=recipe,
            teacher=teacher.to(memory_format=torch.channels_last) if cuda else teacher,
            augment=setup.config.finetune.augment,
            seed=seed,
            state=path_of(args, arm, seed, f"state-{args.epochs}.safetensors"),
            progress=args.together == 1,
        )
        accuracy = dp.accuracy(small, setup.data.test)
    row = {
        "arm": arm,
        "seed": seed,
        "flops": chosen["validation"]["flops"],
        "refined": refined,
        "test accuracy": accuracy,
        "losses": [record.train_loss for record in records],
        "recipe": asdict(recipe),
        "epochs": args.epochs,
        "images": len(setup.data.train[1]),
        "device": device_name(),
        "torch": torch.__version__,
    }
    write_text(path_of(args, arm, seed, f"trained-{args.epochs}.json"), json.dumps(row))
    return row


def untrained(chosen: Row) -> Row:
    """The row of a chosen network before training."""
    facts = {key: chosen[key] for key in ("arm", "seed", "criterion", "evaluations", "device") if key in chosen}
    return {**facts, "flops": chosen["validation"]["flops"], "refined": chosen["test accuracy"], "epochs": 0}


def table(args: argparse.Namespace) -> None:
    """Gather the chosen (0 epochs) and the trained networks."""
    results = json.loads(args.results.read_text()) if args.results.is_file() else {}
    for folder in sorted(path for path in args.out.glob("*") if path.is_dir()):
        rows = results.get(folder.name, [])
        rows += [untrained(json.loads(path.read_text())) for path in folder.glob("*.chosen.json")]
        rows += [json.loads(path.read_text()) for path in folder.glob("*.trained-*.json")]
        by_key = {(row["epochs"], TRAINED.index(row["arm"]), row["seed"]): row for row in rows}
        results[folder.name] = [by_key[key] for key in sorted(by_key)]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(results, indent=1) + "\n")
    for name, rows in results.items():
        print(f"{name}\n" + markdown(["method", "epochs", "FLOPs kept", "as refined", "trained"], lines_of(rows)))


def lines_of(rows: list[Row]) -> list[list[str]]:
    """A line of the table for each number of epochs and method."""
    lines = []
    for epochs, arm in dict.fromkeys((row["epochs"], row["arm"]) for row in rows):
        here = [row for row in rows if (row["epochs"], row["arm"]) == (epochs, arm)]
        share = statistics.mean(row["flops"] for row in here)
        figures = (spread([100 * row[key] for row in here if key in row]) for key in ("refined", "test accuracy"))
        lines.append([arm, str(epochs), f"{share:.4f}", *figures])
    return lines


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("choose", "train", "table"))
    parser.add_argument("--pair", choices=PAIRS, default="cifar100-resnet56")
    parser.add_argument("--budget", type=float, default=0.48, help="kept share of the FLOPs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=TRAINED)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=250, help="one that divides the images is captured once")
    parser.add_argument("--together", type=int, default=1, help="networks trained at a time")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--calibration", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/training"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "training.json")
    return parser.parse_args()


def main() -> None:
    """Choose, train, or gather."""
    args = arguments()

    @lru_cache
    def setup(seed: int) -> Setup:
        return Setup(open_config(args.pair, seed, args), seed, args.evaluations)

    if args.command == "table":
        table(args)
        return
    if args.pair == "digits" and not (args.out / PAIRS["digits"]).is_file():
        train_digits(args.out / PAIRS["digits"])
    commands: dict[str, Callable[..., Any]] = {"choose": choose, "train": train}
    commands[args.command](args, setup)


if __name__ == "__main__":
    main()
