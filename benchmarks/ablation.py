r"""What clusters, factors, evolution and evolved widths bring if filters are selected inside refinement.

Question: with sequential selection the individual decides the widths, and the blend is a preference only. Which part of
the search still brings accuracy?
Method: half of the FLOPs, candidates compared as drafts with selected filters, the same number of evaluations for all
arms that search, by the loss on validation images. Every arm changes one option of the base arm. The best candidate is
refined on all calibration images and tested once.
Output: results/ablation.json: one row for each pair, seed and arm, with masks. Rows that exist are not made again.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py --data DIR --weights DIR [--pairs cifar100-resnet20 ...]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from pairs import PAIRS, Row, Setup, open_config, train_digits
from provenance import searched
from table_format import RESULTS

import deap_prune as dp
from deap_prune.files import write_text

BASE = "the search"
ARMS: dict[str, dict[str, Any]] = {
    BASE: {},
    "uniform widths, L2, no search": {"allocation": "uniform", "criteria": ("l2",), "n_clusters": 1, "prescreen": 1},
    "one criterion (L2), evolved widths": {"criteria": ("l2",), "n_clusters": 1},
    "one cluster": {"n_clusters": 1},
    "a cluster for every criterion": {"n_clusters": 9},
    "random search": {"algorithm": "random", "prescreen": 1},
    "no pre-screening": {"prescreen": 1},
    "blend decides the filters, no selection": {"select": None},
}
"""Name to the options that differ from the base arm."""


def row_of(setup: Setup, arm: str, args: argparse.Namespace) -> Row:
    """Search, refine and test."""
    options, begun = setup.config.search, time.process_time()
    images = setup.data.calibration
    shared: dict[str, Any] = {
        "calibration": images,
        "validation": setup.data.validation,
        "criteria": options.criteria,
        "ignore": options.ignore,
        "objectives": ("loss",),
        "max_flops": args.budget,
        "compare": "drafts",
        "prescreen": 8,
        "indpb": 0.02,
        "sigma": 0.2,
        "population": args.population,
        "generations": 0 if "no search" in arm else args.generations,
        "refine_images": len(images[0]),
        "finalists": 0,
        "select": "sequential",
        "seed": setup.seed,
        "progress": False,
    }
    result = dp.search(setup.model, images[0][:1], **{**shared, **ARMS[arm]})
    return searched(result, setup.test_accuracy, len(images[0]), begun)


def main() -> None:
    """Make the rows that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=[pair for pair in PAIRS if "imagenet" not in pair])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--budget", type=float, default=0.5, help="kept share of the FLOPs")
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--calibration", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path(".cache"), help="folder of the digits network")
    parser.add_argument("--results", type=Path, default=RESULTS / "ablation.json")
    args = parser.parse_args()
    if "digits" in args.pairs and not (args.out / PAIRS["digits"]).is_file():
        train_digits(args.out / PAIRS["digits"])
    for seed in args.seeds:
        for pair in args.pairs:
            setup = Setup(open_config(pair, seed, args), seed)
            for arm in args.arms:
                facts: Row = {"pair": pair, "seed": seed, "budget": args.budget, "arm": arm}
                facts |= {"population": args.population, "generations": args.generations}
                rows = json.loads(args.results.read_text()) if args.results.is_file() else []
                if any(all(row[key] == value for key, value in facts.items()) for row in rows):
                    continue
                row = facts | row_of(setup, arm, args)
                write_text(args.results, json.dumps([*rows, row], indent=1) + "\n")
                print(pair, seed, arm, row["evaluations"], f"{row['test accuracy']:.4f}", row["validation"], flush=True)


if __name__ == "__main__":
    main()
