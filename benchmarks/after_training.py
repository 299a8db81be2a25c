r"""How far apart are differently pruned networks after training, and how far below the dense network?

Question: at equal FLOPs, refined and then trained by one recipe, where do random filters, the best single criterion,
one threshold, LeGR's genome and the searched network end, beside the dense network trained on as long and a small
dense network of equal FLOPs from scratch?
Method: ``choose`` picks the filters of every arm and seed (searches compare drafts, with equal evaluations, by
validation images) and refines the network on the calibration images. ``train`` trains it on the training images, which
are shifted and mirrored, with the dense network as teacher. The weights of the last epoch are tested; no test image
chooses anything. A seed draws images, search and training. The searched network is that of selected_search.json if it
has the pair, seed and number of calibration images; else it is searched here.
Output: every step has a file in --out, an epoch included, so a stopped run goes on where it was; ``gather`` puts the
rows, with masks, into results/after_training.json. With a CUDA device several networks are trained at once.

    python benchmarks/after_training.py choose --data DIR --weights DIR
    python benchmarks/after_training.py train --data DIR --weights DIR
    python benchmarks/after_training.py gather
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from methods import METHODS
from pairs import PAIRS, Row, Setup, open_config, train_digits
from provenance import origin, packed, unpacked
from selected_search import row_of
from table_format import RESULTS
from torch import nn

import deap_prune as dp
from deap_prune.blending.baselines import AffineGenome
from deap_prune.files import write_text
from deap_prune.weights import load_weights, save_weights

Chosen = dict[str, Any]
"""``masks``, and facts on the choice. Without masks the network is dense."""


# ------------------------------------------------------------------ arms
def by_method(setup: Setup, args: argparse.Namespace, *, name: str) -> Chosen:
    """The filters that a method of methods.py chooses, compared as drafts."""
    row = METHODS[name](setup, args.budget, "drafts")
    facts = {key: row[key] for key in ("criterion", "evaluations") if key in row}
    return {"masks": dp.Masks.from_json(json.dumps(row["masks"])), **facts}


def one_threshold(setup: Setup, args: argparse.Namespace) -> Chosen:
    """The filters of all layers ranked together by their L2 norms; no evaluation."""
    genome = setup.genome(args.budget, kind=AffineGenome, criterion="l2")
    return {"masks": genome.decode(genome.single("l2")), "evaluations": 0}


def searched(setup: Setup, args: argparse.Namespace) -> Chosen:
    """The search with sequential selection: a stored row of it, or a new one."""
    path = RESULTS / "selected_search.json"
    rows = json.loads(path.read_text()) if path.is_file() else []
    facts = {"pair": args.pair, "seed": setup.seed, "images": args.calibration, "select": "sequential"}
    stored = [row for row in rows if all(row.get(key) == value for key, value in facts.items())]
    if args.budget != 0.5 or not stored:
        options = argparse.Namespace(select="sequential", finalists=1)
        if args.budget != 0.5:
            raise SystemExit("selected_search.py searches at half of the FLOPs; give --budget 0.5")
        stored = [row_of(setup, options)]
    masks = dp.Masks.from_json(json.dumps(stored[-1]["masks"]))
    return {"masks": masks, "evaluations": stored[-1]["evaluations"]}


def dense(setup: Setup, args: argparse.Namespace) -> Chosen:
    """The dense network."""
    return {"masks": None}


def narrow(setup: Setup, args: argparse.Namespace) -> Chosen:
    """Random filters at one width for all layers, residual streams too: the shape of a small dense network."""
    space = dp.trace(setup.model, setup.data.calibration[0][:1])
    scores = dp.score(setup.model, space, criteria=("random",), seed=setup.seed)
    clusters = dp.cluster(scores, n_clusters=1)
    genome = dp.Genome(space, scores, clusters, allocation="uniform", max_flops=args.budget)
    return {"masks": genome.decode(genome.single("random"))}


FROM_SCRATCH = "dense of equal FLOPs, from scratch"
ARMS: dict[str, Callable[[Setup, argparse.Namespace], Chosen]] = {
    "search with selection": searched,
    "one threshold, L2": one_threshold,
    "best single criterion, uniform widths": partial(by_method, name="best single"),
    "LeGR's genome": partial(by_method, name="LeGR"),
    "random filters, uniform widths": partial(by_method, name="random"),
    "dense, trained on": dense,
    FROM_SCRATCH: narrow,
}
"""Name to the function that chooses the filters."""


# ------------------------------------------------------------------ steps
def path_of(args: argparse.Namespace, arm: str, seed: int, content: str) -> Path:
    """The file of a step."""
    slug = "-".join("".join(c if c.isalnum() else " " for c in arm.lower()).split())
    return args.out / f"{args.pair}-{args.budget}" / f"{slug}-{seed}.{content}"


def steps(args: argparse.Namespace) -> list[tuple[str, int]]:
    """Arms and seeds."""
    return [(arm, seed) for seed in args.seeds for arm in args.arms]


def plan(args: argparse.Namespace) -> str:
    """Name of the trained file: epochs, images and learning rate."""
    return f"{args.epochs}-{args.images or 'all'}-{args.lr}"


def choose(args: argparse.Namespace, setup: Callable[[int], Setup]) -> None:
    """Choose the filters of every arm and seed that has none yet, and save the refined network's weights."""
    for arm, seed in steps(args):
        path, weights = (path_of(args, arm, seed, f"chosen.{kind}") for kind in ("json", "safetensors"))
        if not path.is_file():
            chosen = ARMS[arm](setup(seed), args)
            masks = chosen.pop("masks")
            chosen["masks"] = None if masks is None else packed(masks)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"arm": arm, "seed": seed, **chosen}))
            print(f"{arm}, seed {seed}: chosen", flush=True)
        masks = json.loads(path.read_text())["masks"]
        if not weights.is_file() and masks is not None and arm != FROM_SCRATCH:
            network = refining(setup(seed)).slim(unpacked(masks))
            save_weights(network, weights)


def refining(setup: Setup) -> dp.Evaluator:
    """The evaluator that refines on all calibration images."""
    images = len(setup.data.calibration[0])
    return setup.evaluator("compensated", objectives=("loss", "flops"), refine=True, refine_images=images)


def start(args: argparse.Namespace, setup: Setup, arm: str, seed: int) -> tuple[nn.Module, Row]:
    """The network that is trained, and its row of ``choose``."""
    chosen = json.loads(path_of(args, arm, seed, "chosen.json").read_text())
    model = copy.deepcopy(setup.model)
    if chosen["masks"] is None:
        return model, chosen | {"flops": 1.0}
    masks = unpacked(chosen["masks"])
    space = dp.trace(model, setup.data.calibration[0][:1]) if arm == FROM_SCRATCH else setup.space
    small = dp.slim(model, space, masks)
    if arm != FROM_SCRATCH:
        load_weights(small, path_of(args, arm, seed, "chosen.safetensors"))
    return small, chosen | {"flops": dp.flops(space, masks) / space.flops}


def train(args: argparse.Namespace, setup: Callable[[int], Setup]) -> None:
    """Train the networks that are not trained yet, several at a time: small networks leave a GPU idle."""
    todo = [step for step in steps(args) if not path_of(args, *step, f"trained-{plan(args)}.json").is_file()]
    if missing := [step for step in todo if not path_of(args, *step, "chosen.json").is_file()]:
        raise SystemExit(f"not chosen yet: {missing}; run `choose` first")
    for seed in {seed for _, seed in todo}:
        _ = setup(seed).space, setup(seed).data  # made here, once for all threads
    torch.backends.cudnn.benchmark = True
    with ThreadPoolExecutor(args.together) as pool:
        for row in pool.map(lambda step: trained(args, setup(step[1]), *step), todo):
            print(f"{row['arm']}, seed {row['seed']}: {row['test accuracy']:.4f}", flush=True)


def trained(args: argparse.Namespace, setup: Setup, arm: str, seed: int) -> Row:
    """The row of one network's training, on a stream of its own where there is a CUDA device."""
    network, chosen = start(args, setup, arm, seed)
    teacher = copy.deepcopy(setup.model)  # its own: training moves it to the device and back
    cuda = torch.cuda.is_available()
    recipe = dp.Recipe(lr=args.lr, batch_size=args.batch_size, precision="bf16" if cuda else "fp32")
    images, labels = setup.data.train
    with torch.cuda.stream(torch.cuda.Stream() if cuda else None):
        before = None if arm == FROM_SCRATCH else setup.test_accuracy(network)
        records = dp.finetune(
            network.to(memory_format=torch.contiguous_format),
            (images[: args.images], labels[: args.images]),
            epochs=args.epochs,
            recipe=recipe,
            teacher=teacher.to(memory_format=torch.channels_last) if cuda else teacher,
            augment=setup.config.finetune.augment,
            from_scratch=arm == FROM_SCRATCH,
            seed=seed,
            state=path_of(args, arm, seed, f"state-{plan(args)}.safetensors"),
            progress=args.together == 1,
        )
        accuracy = setup.test_accuracy(network)
    row = {
        **{key: value for key, value in chosen.items() if key != "masks"},
        "before training": before,
        "test accuracy": accuracy,
        "losses": [record.train_loss for record in records],
        "recipe": asdict(recipe),
        "epochs": args.epochs,
        "images": len(labels[: args.images]),
        "calibration images": len(setup.data.calibration[0]),
        **origin(),
        "masks": chosen["masks"],
    }
    write_text(path_of(args, arm, seed, f"trained-{plan(args)}.json"), json.dumps(row))
    return row


def plan_of(row: Row) -> tuple[int, int, float]:
    """Epochs, images and learning rate of a row: rows of one plan are compared."""
    return row["epochs"], row["images"], row["recipe"]["lr"]


def gather(args: argparse.Namespace) -> None:
    """Put the trained networks into the file of results."""
    results = json.loads(args.results.read_text()) if args.results.is_file() else {}
    for folder in sorted(path for path in args.out.glob("*") if path.is_dir()):
        rows = results.get(folder.name, [])
        rows += [json.loads(path.read_text()) for path in folder.glob("*.trained-*.json")]
        by_key = {(*plan_of(row), list(ARMS).index(row["arm"]), row["seed"]): row for row in rows}
        results[folder.name] = [by_key[key] for key in sorted(by_key)]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(results, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("choose", "train", "gather"))
    parser.add_argument("--pair", choices=PAIRS, default="cifar100-resnet20")
    parser.add_argument("--budget", type=float, default=0.5, help="kept share of the FLOPs")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=120, help="of LeGR's genome")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images", type=int, help="training images, the first ones; all if left out")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--together", type=int, default=1, help="networks trained at once")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--calibration", type=int, default=2000)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/after_training"))
    parser.add_argument("--results", type=Path, default=RESULTS / "after_training.json")
    return parser.parse_args()


def main() -> None:
    """Choose, train, or gather."""
    args = arguments()

    @lru_cache
    def setup(seed: int) -> Setup:
        return Setup(open_config(args.pair, seed, args), seed, args.evaluations)

    if args.command == "gather":
        gather(args)
        return
    if args.pair == "digits" and not (args.out / PAIRS["digits"]).is_file():
        train_digits(args.out / PAIRS["digits"])
    commands: dict[str, Callable[..., Any]] = {"choose": choose, "train": train}
    commands[args.command](args, setup)


if __name__ == "__main__":
    main()
