r"""What is left, after training on all training images, of the distance between networks that were chosen differently?

Question: at the same FLOPs, refined and then trained alike, how far below the dense network does a searched blend end,
and how far the best single criterion with uniform widths, random filters and LeGR's ranking?
Method: the arms of quality.py choose filters (protocol drafts: at equal evaluations, by validation images); each
network is refined, then trained on all training images (CIFAR's shifted and mirrored), the dense network its teacher.
The weights of the last epoch are tested; no test image chooses anything. A seed draws the images, searches and trains.
Output: a part of benchmarks/results/training.json, and a table. ``choose`` takes minutes a network on a CPU core;
``train`` takes a CUDA device, or days, and trains several networks at once. Either goes on where it was stopped.

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
from arms import ARMS
from ground import Ground
from quality import PAIRS, open_config, train_digits
from quality_tables import markdown, spread
from torch import nn

import deap_prune as dp
from deap_prune.data.batches import name_of, resolve_device
from deap_prune.files import write_text
from deap_prune.fitness.fold import fold
from deap_prune.structure.layers import describe_layer
from deap_prune.weights import load_weights, save_weights

CHOSEN = ("ours, evolved widths, pre-screened", "best single", "LeGR", "random")
PROTOCOL = "drafts"


def place(args: argparse.Namespace, arm: str, seed: int, what: str) -> Path:
    """The file of a step."""
    slug = "-".join("".join(c if c.isalnum() else " " for c in arm.lower()).split())
    return args.out / f"{args.pair}-{args.budget}" / f"{slug}-{seed}.{what}"


def steps(args: argparse.Namespace) -> list[tuple[str, int]]:
    """Arms and seeds."""
    return [(arm, seed) for seed in args.seeds for arm in args.arms]


def choose(args: argparse.Namespace, ground: Callable[[int], Ground]) -> None:
    """Filters of every arm and seed that has none yet, and the refined network's weights."""
    for arm, seed in steps(args):
        path, weights = (place(args, arm, seed, f"chosen.{kind}") for kind in ("json", "safetensors"))
        if not path.is_file():
            row = ARMS[arm](ground(seed), args.budget, PROTOCOL)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"arm": arm, "seed": seed, **row}))
            print(f"{arm}, seed {seed}: {row['test accuracy']:.4f}", flush=True)
        if not weights.is_file():
            masks = dp.Masks.from_json(json.dumps(json.loads(path.read_text())["masks"]))
            save_weights(ground(seed).evaluator(PROTOCOL).in_full(refine=True).slim(masks), weights)


def train(args: argparse.Namespace, ground: Callable[[int], Ground]) -> None:
    """Train what was chosen and is not trained yet, some at a time: small networks leave a GPU idle."""
    todo = [step for step in steps(args) if not place(args, *step, f"trained-{args.epochs}.json").is_file()]
    if missing := [step for step in todo if not place(args, *step, "chosen.safetensors").is_file()]:
        raise SystemExit(f"not chosen yet: {missing}; run `choose` first")
    for seed in {seed for _, seed in todo}:
        _ = ground(seed).space, ground(seed).pairs, ground(seed).work.splits.train  # made here, once for all threads
    torch.backends.cudnn.benchmark = True
    with ThreadPoolExecutor(args.together) as pool:
        for row in pool.map(lambda step: trained(args, ground(step[1]), *step), todo):
            print(f"{row['arm']}, seed {row['seed']}: {row['test accuracy']:.4f}", flush=True)


def trained(args: argparse.Namespace, ground: Ground, arm: str, seed: int) -> dict[str, Any]:
    """One network's training, on a stream of its own where there is a CUDA device."""
    chosen = json.loads(place(args, arm, seed, "chosen.json").read_text())
    masks = dp.Masks.from_json(json.dumps(chosen["masks"]))
    small = dp.slim(ground.work.model, ground.space, masks)
    load_weights(small, place(args, arm, seed, "chosen.safetensors"))
    teacher = copy.deepcopy(ground.work.model)  # its own: training brings it to the device and home again
    fold(teacher, ground.pairs)
    cuda = torch.cuda.is_available()
    recipe = dp.Recipe(lr=args.lr, batch_size=args.batch_size, precision="bf16" if cuda else "fp32")
    with torch.cuda.stream(torch.cuda.Stream() if cuda else None):
        refined = dp.accuracy(small, ground.work.splits.test)
        if args.full_width:
            small = at_full_width(ground, masks, small)
        records = dp.finetune(
            small,
            ground.work.splits.train,
            epochs=args.epochs,
            recipe=recipe,
            teacher=teacher.to(memory_format=torch.channels_last) if cuda else teacher,
            augment=ground.config.finetune.augment,
            seed=seed,
            state=place(args, arm, seed, f"state-{args.epochs}.safetensors"),
            progress=args.together == 1,
        )
        if args.full_width:
            small = dp.slim(small, ground.space, masks)
        tested = dp.accuracy(small, ground.work.splits.test)
    row = {
        "arm": arm,
        "seed": seed,
        "flops": chosen["validation"]["flops"],
        "refined": refined,
        "test accuracy": tested,
        "losses": [record.train_loss for record in records],
        "recipe": asdict(recipe),
        "epochs": args.epochs,
        "images": len(ground.work.splits.train[1]),
        "device": name_of(resolve_device("auto")),
        "torch": torch.__version__,
    }
    write_text(place(args, arm, seed, f"trained-{args.epochs}.json"), json.dumps(row))
    return row


@torch.no_grad()
def at_full_width(ground: Ground, masks: dp.Masks, small: nn.Module) -> nn.Module:
    """The masked network with its pruned filters set to 0: no gradient reaches them, nor what reads them."""
    with dp.masked(copy.deepcopy(ground.work.model), ground.space, masks, state=small) as network:
        full = copy.deepcopy(network)
    kept = ground.space.kept(masks)
    for entry in ground.space.layers:
        layer = full.get_submodule(entry.name)
        for name, dims in describe_layer(layer).tensors.items():
            if dims[0] == "out" and getattr(layer, name) is not None:
                getattr(layer, name)[torch.from_numpy(~kept[entry.outputs])] = 0
    return full


def untrained(chosen: dict[str, Any]) -> dict[str, Any]:
    """The row of what an arm chose, before it is trained."""
    facts = {key: chosen[key] for key in ("arm", "seed", "criterion", "evaluations", "device") if key in chosen}
    return {**facts, "flops": chosen["validation"]["flops"], "refined": chosen["test accuracy"], "epochs": 0}


def table(args: argparse.Namespace) -> None:
    """Gather what is chosen (0 epochs) and trained."""
    found = json.loads(args.results.read_text()) if args.results.is_file() else {}
    for folder in sorted(path for path in args.out.glob("*") if path.is_dir()):
        rows = found.get(folder.name, []) + [untrained(json.loads(p.read_text())) for p in folder.glob("*.chosen.json")]
        rows += [json.loads(p.read_text()) for p in folder.glob("*.trained-*.json")]
        rows = list({(r["epochs"], CHOSEN.index(r["arm"]), r["seed"]): r for r in rows}.items())
        found[folder.name] = [row for _, row in sorted(rows, key=lambda item: item[0])]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(found, indent=1) + "\n")
    for name, rows in found.items():
        lines = []
        for epochs, arm in dict.fromkeys((r["epochs"], r["arm"]) for r in rows):
            here = [r for r in rows if (r["epochs"], r["arm"]) == (epochs, arm)]
            share = statistics.mean(r["flops"] for r in here)
            figures = (spread([100 * r[key] for r in here if key in r]) for key in ("refined", "test accuracy"))
            lines.append([arm, str(epochs), f"{share:.4f}", *figures])
        print(f"{name}\n" + markdown(["arm", "epochs", "FLOPs kept", "as refined", "trained"], lines))


def main() -> None:
    """Choose, train, or gather."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("choose", "train", "table"))
    parser.add_argument("--pair", choices=PAIRS, default="cifar100-resnet56")
    parser.add_argument("--budget", type=float, default=0.48, help="kept share of the FLOPs")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=CHOSEN)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=250, help="one that divides the images is captured once")
    parser.add_argument(
        "--full-width",
        action="store_true",
        help="train the masked network: what is pruned stays 0, as it gets no gradient; for kernels that like eights",
    )
    parser.add_argument("--together", type=int, default=1, help="networks trained at a time")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--calibration", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/training"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "training.json")
    args = parser.parse_args()

    @lru_cache
    def ground(seed: int) -> Ground:
        return Ground(open_config(args.pair, seed, args), seed, args.evaluations)

    if args.pair == "digits" and args.command != "table" and not (args.out / PAIRS["digits"]).is_file():
        train_digits(args.out / PAIRS["digits"])
    if args.command == "table":
        table(args)
    else:
        {"choose": choose, "train": train}[args.command](args, ground)


if __name__ == "__main__":
    main()
