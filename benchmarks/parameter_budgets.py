r"""Training-free accuracy of ResNet-56 on CIFAR-10 at budgets of parameters, the axis of published figures.

Question: at a half, a quarter and an eighth of the parameters, without training, how accurate is the network? Published
for such networks (El Halabi et al., NeurIPS 2022, arXiv 2203.04940, read off figure 2): about 85.5, 50 and 25 percent
from a dense network of about 92.3.
Method: the pair's config (objective, layers that stay dense), evolved widths under ``max_params``, candidates compared
as drafts with selected filters; the best candidate is refined on all calibration images. The test images are evaluated
once.
Output: results/parameter_budgets.json: one row for each pair, budget and seed, with masks.

    OMP_NUM_THREADS=1 python benchmarks/parameter_budgets.py --data DIR --weights DIR
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from pairs import PAIRS, Row, Setup, open_config
from provenance import searched
from table_format import RESULTS

import deap_prune as dp
from deap_prune.files import write_text


def row_of(setup: Setup, budget: float, args: argparse.Namespace) -> Row:
    """Search under a budget of parameters, refine, and test."""
    options, begun = setup.config.search, time.process_time()
    images = setup.data.calibration
    result = dp.search(
        setup.model,
        images[0][:1],
        calibration=images,
        validation=setup.data.validation,
        criteria=options.criteria,
        ignore=options.ignore,
        objectives=options.objectives,
        augment=options.augment,
        max_params=budget,
        compare="drafts",
        prescreen=options.prescreen,
        indpb=options.indpb,
        sigma=options.sigma,
        population=args.population,
        generations=args.generations,
        refine_images=len(images[0]),
        finalists=0,
        select="sequential",
        seed=setup.seed,
        progress=False,
    )
    return searched(result, setup.test_accuracy, len(images[0]), begun)


def main() -> None:
    """Make the rows that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=["cifar10-resnet56"])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.25, 0.125], help="kept shares")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--calibration", type=int, default=2000)
    parser.add_argument("--validation", type=int, default=1000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path(".cache"), help="folder of the digits network")
    parser.add_argument("--results", type=Path, default=RESULTS / "parameter_budgets.json")
    args = parser.parse_args()
    for seed in args.seeds:
        for pair in args.pairs:
            setup = Setup(open_config(pair, seed, args), seed)
            for budget in args.budgets:
                facts: Row = {"pair": pair, "seed": seed, "budget": budget, "population": args.population}
                facts["generations"] = args.generations
                rows = json.loads(args.results.read_text()) if args.results.is_file() else []
                if any(all(row[key] == value for key, value in facts.items()) for row in rows):
                    continue
                row = facts | row_of(setup, budget, args)
                write_text(args.results, json.dumps([*rows, row], indent=1) + "\n")
                print(pair, seed, budget, *(row[key] for key in ("params", "flops", "test accuracy")), flush=True)


if __name__ == "__main__":
    main()
