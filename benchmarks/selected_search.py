"""A search whose candidates are drafts with selected filters: half of the FLOPs, evolved widths, 120 evaluations.

Question: how accurate is the network that a search with sequential selection ends with, refined on all calibration
images, and after label-free recovery on the same images? A tenth of them ends it; refinement does not see these then.
``--select null`` is the same search without selection.
Method: the pair's config (objective, layers that stay dense, pre-screening), 20 individuals, 4 generations of 20
children, drafts on 250 images: 100 evaluations. At the end about ten networks are refined on all images
(``--finalists``), and validation images choose one. The test images are evaluated once.
Output: results/selected_search.json: one row for each pair, seed and arm, with masks.

    OMP_NUM_THREADS=1 python benchmarks/selected_search.py --data DIR --weights DIR --pairs cifar100-resnet20
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from pairs import Setup, device_name, open_config
from selection import commit

import deap_prune as dp

Row = dict[str, Any]
KEY = ("pair", "seed", "select", "images", "commit")


def row_of(setup: Setup, args: argparse.Namespace) -> Row:
    """Search, refine and recover on one pair with one seed."""
    options = setup.config.search
    begun = time.process_time()
    data = {"calibration": setup.data.calibration, "validation": setup.data.validation}
    result = dp.search(
        setup.model,
        setup.data.calibration[0][:1],
        **data,
        criteria=options.criteria,
        ignore=options.ignore,
        objectives=options.objectives,
        augment=options.augment,
        max_flops=0.5,
        compare="drafts",
        prescreen=options.prescreen,
        indpb=options.indpb,
        sigma=options.sigma,
        population=20,
        generations=4,
        refine_images=len(data["calibration"][0]),
        finalists=args.finalists,
        select=None if args.select == "null" else args.select,
        seed=setup.seed,
    )
    small = result.slim(result.best)
    row: Row = {
        "flops": result.best.flops / result.space.flops,
        "evaluations": result.evaluations,
        "validation": dict(result.best.values),
        "refined": setup.test_accuracy(small),
        "search cpu seconds": time.process_time() - begun,
    }
    return row | {"masks": json.loads(result.best.masks.to_json()), "individual": list(result.best.individual)}


def recovered(setup: Setup, masks: dp.Masks, steps: int) -> Row:
    """Refine and recover a network, as the end of a search with ``recover`` does."""
    begun = time.process_time()
    images = len(setup.data.calibration[0])
    evaluator = setup.evaluator("compensated").with_settings(refine=True, refine_images=images, recover=steps)
    row = {"recovered": setup.test_accuracy(evaluator.slim(masks)), "recover of": steps}
    return row | {"recover cpu seconds": time.process_time() - begun, "recover commit": commit()}


def write(path: Path, row: Row) -> None:
    """Add a row to a file, in the place of one of the same pair, seed, kind, images and commit."""
    rows = json.loads(path.read_text()) if path.is_file() else []
    others = [other for other in rows if any(other[name] != row[name] for name in KEY)]
    path.write_text(json.dumps([*others, row], indent=1))


def main() -> None:
    """Measure what the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--pairs", nargs="*", default=["cifar100-resnet20"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--select", choices=("sequential", "null"), default="sequential")
    parser.add_argument("--images", dest="calibration", type=int, default=2000)
    parser.add_argument("--validation", type=int, default=1000)
    parser.add_argument("--finalists", type=int, default=1, help="of each kind; 0: the best candidate alone")
    parser.add_argument("--recover", type=int, default=1500, help="gradient steps; 0: none")
    parser.add_argument("--set", nargs="*", default=[])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "selected_search.json"
    for seed in args.seeds:
        for pair in args.pairs:
            rows: list[Row] = json.loads(path.read_text()) if path.is_file() else []
            facts: Row = {"pair": pair, "seed": seed, "select": args.select, "images": args.calibration}
            row = next((r for r in reversed(rows) if all(r[name] == fact for name, fact in facts.items())), None)
            if row is not None and ("recovered" in row or not args.recover):
                continue
            setup = Setup(open_config(pair, seed, args), seed)
            if row is None:
                facts |= {"commit": commit(), "python": platform.python_version(), "torch": torch.__version__}
                row = facts | {"device": device_name()} | row_of(setup, args)
                write(path, row)
            if args.recover:
                row |= recovered(setup, dp.Masks.from_json(json.dumps(row["masks"])), args.recover)
                write(path, row)
            print({name: value for name, value in row.items() if name not in ("masks", "individual")}, flush=True)


if __name__ == "__main__":
    main()
