r"""Does training keep what refinement rebuilt? Recipes by length, from a refined and from a raw pruned network.

Question: at which learning rate, with or without warm-up, is a refined network better after 1 and after 3 epochs than
before, and does a raw one need another recipe?
Method: ResNet-20 on CIFAR-100 with the masks of the stored search. It is trained on the first training images, with the
dense network as teacher. Accuracy is of the last training images, which no arm trains on; the dense network was trained
on them, so the figures are optimistic, for all arms alike.
Output: results/recipes.json: one row for each start, recipe and length, with masks. Rows are not made again.

    OMP_NUM_THREADS=1 python benchmarks/recipes.py --data DIR --weights DIR
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import asdict
from pathlib import Path

from pairs import PAIRS, Row, Setup, open_config
from provenance import origin, packed
from table_format import RESULTS

import deap_prune as dp
from deap_prune.files import write_text

RECIPES = {
    "from 0.001": dp.Recipe(lr=0.001, warmup_epochs=0),
    "from 0.003": dp.Recipe(lr=0.003, warmup_epochs=0),
    "from 0.01": dp.Recipe(lr=0.01, warmup_epochs=0),
    "from 0.01, warm-up of 0.9 epochs": dp.Recipe(lr=0.01, warmup_epochs=0.9),
    "from 0.05": dp.Recipe(lr=0.05, warmup_epochs=0),
    "from 0.05, warm-up of 0.9 epochs": dp.Recipe(lr=0.05, warmup_epochs=0.9),
}
STARTS = ("refined", "raw")


def main() -> None:
    """Make the rows that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=PAIRS, default="cifar100-resnet20")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--epochs", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--images", type=int, default=40_000, help="training images, the first ones")
    parser.add_argument("--held", type=int, default=2000, help="last training images, for the accuracy")
    parser.add_argument("--calibration", type=int, default=2000)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path(".cache"), help="folder of the digits network")
    parser.add_argument("--results", type=Path, default=RESULTS / "recipes.json")
    args = parser.parse_args()
    setup = Setup(open_config(args.pair, 0, args), 0)
    stored = json.loads((RESULTS / "selected_search.json").read_text())
    masks = next(dp.Masks.from_json(json.dumps(row["masks"])) for row in stored if row["pair"] == args.pair)
    images, labels = setup.data.train
    train = images[: args.images], labels[: args.images]
    held = images[-args.held :], labels[-args.held :]
    refining = setup.evaluator("compensated", refine=True, refine_images=args.calibration)
    networks = {"refined": refining.slim(masks), "raw": dp.slim(setup.model, setup.space, masks)}
    for epochs in args.epochs:
        for start in args.starts:
            for name in args.recipes:
                facts: Row = {"pair": args.pair, "start": start, "recipe": name, "epochs": epochs}
                facts["images"] = len(train[0])
                rows = json.loads(args.results.read_text()) if args.results.is_file() else []
                if any(all(row[key] == value for key, value in facts.items()) for row in rows):
                    continue
                network = copy.deepcopy(networks[start])
                facts["before"] = dp.accuracy(network, held)
                options = {"epochs": epochs, "augment": True, "progress": False, "teacher": copy.deepcopy(setup.model)}
                records = dp.finetune(network, train, recipe=RECIPES[name], **options)
                facts |= {"accuracy": dp.accuracy(network, held), "losses": [r.train_loss for r in records]}
                facts |= {"held images": args.held, "seed": 0, "settings": asdict(RECIPES[name])}
                row = facts | origin() | {"masks": packed(masks)}
                write_text(args.results, json.dumps([*rows, row], indent=1) + "\n")
                print(start, name, epochs, facts["before"], facts["accuracy"], flush=True)


if __name__ == "__main__":
    main()
