r"""At one measured latency: is a search under a latency budget better than one under a FLOPs budget?

Question: which network is more accurate at 60 % of the dense network's latency, one searched for under a budget of
milliseconds (with widths in the device's steps), or one searched for under a budget of FLOPs?
Method: the same search (one objective, compensated candidates, no training) with ``max_latency=0.6`` and
``round_to="auto"``, and with ``max_flops``: in any widths, and in multiples of 8. The best network is refined on the
calibration images with sequential selection. The share of the FLOPs is that at which
the table predicts the wanted latency on average for random individuals. The networks of all searches are timed in turn
with each other (see benchmarks/latency.py for how times are scaled). Values are of validation images.
Output: a JSON file of benchmarks/results, one row per search: budget, accuracy and loss as compared, accuracy after
refinement, FLOPs, predicted and measured share of the dense latency.

    python benchmarks/latency_search.py configs/cifar100-resnet56.yaml --table table.json --set data.calibration=500
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from selection import commit

import deap_prune as dp
from deap_prune.config import load_config
from deap_prune.costs import check_latency
from deap_prune.search.from_config import open_config

SHARE, POPULATION, GENERATIONS, SEED = 0.6, 10, 3, 0


def flops_share(space: dp.PruningSpace, scores: dp.ScoreTable, round_to: int) -> float:
    """The share of the FLOPs at which random individuals need the wanted latency on average, by bisection.

    If the narrowest network is slower, it is a share that the search refuses.
    """
    assert space.latency_of is not None
    dense, clusters = float(space.latency_of(space.sizes)), dp.cluster(scores, n_clusters=1)
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        try:
            genome = dp.Genome(space, scores, clusters, max_flops=middle, round_to=round_to)
        except dp.PruneError:  # below the reachable minimum
            low = middle
            continue
        rng = np.random.default_rng(SEED)
        masks = genome.decode_many(rng.uniform(0.2, 1.0, (20, len(genome.layout))).tolist())
        mean = float(np.mean(space.latency_of([space.kept_counts(one) for one in masks]))) / dense
        low, high = (middle, high) if mean < SHARE else (low, middle)
    return low


def main() -> None:
    """Search, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--table", type=Path, required=True, help="JSON file of the table; measured if it is not there")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the config")
    parser.add_argument("--runs", type=Path, default=Path("runs/latency_search"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "latency_search.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    opened = open_config(load_config(args.config, args.set))
    task, ignore = opened.task, opened.config.search.ignore
    plain = dp.trace(task.model, task.example_inputs, ignore=ignore)
    how: dict[str, Any] = {"runtime": "onnxruntime", "batch": 1, "threads": 1, "out": args.table}
    table = dp.latency_table(task.model, plain, task.example_inputs, **how)
    space = table.on(plain)
    scores = dp.score(task.model, space, task.calibration, criteria=("l2",))
    budgets: dict[str, dict[str, Any]] = {"latency": {"max_latency": SHARE, "round_to": "auto"}}
    for round_to in (1, 8):
        share = flops_share(space, scores, round_to)
        budgets[f"FLOPs, round_to={round_to}"] = {"max_flops": math.ceil(1e4 * share) / 1e4, "round_to": round_to}
    print(budgets, flush=True)
    rows, masks = list[dict[str, Any]](), list[dp.Masks]()
    for name, budget in budgets.items():
        folder = args.runs / name.split(",")[0] / str(budget["round_to"])
        options = {
            "objectives": ("loss",),
            "criteria": opened.config.search.criteria,
            "ignore": ignore,
            "population": POPULATION,
            "generations": GENERATIONS,
            "latency_table": args.table,
            "refine": False,
            "seed": SEED,
            **budget,
        }
        data = {"calibration": task.calibration, "validation": task.validation}
        again = (folder / "config.yaml").is_file()
        run = dp.resume(folder, task.model, task.example_inputs, **data) if again else None
        result = run or dp.search(task.model, task.example_inputs, **data, **options, out=folder)
        best, counts = result.best, space.kept_counts(result.best.masks)
        accurate = dp.Evaluator(task.model, space, **data, objectives=("accuracy",), batch_size=50)
        refined = accurate.with_settings(refine=True, refine_images=len(opened.splits.calibration[0]))
        masks.append(best.masks)
        rows.append(
            {
                "search": name,
                "budget": budget,
                "evaluations": result.evaluations,
                "loss": best.values["loss"],
                "accuracy": accurate(best.masks)[0],
                "refined": refined(refined.selected(best.masks))[0],
                "flops": best.flops / space.flops,
                "predicted": float(space.latency_of(counts) / space.latency_of(space.sizes)),  # type: ignore[misc]
            }
        )
        print(rows[-1], flush=True)
    networks = [dp.slim(task.model, space, one) for one in masks]
    check = check_latency(networks, masks, table, task.model, space, task.example_inputs, repeats=41)
    for row, faster in zip(rows, check.speedups["onnxruntime"], strict=True):
        row["measured"] = 1 / faster
        print(row["search"], row["accuracy"], row["refined"], row["measured"])
    content = {
        "network": args.config.stem,
        "commit": commit(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "seed": SEED,
        "images": {"calibration": len(opened.splits.calibration[0]), "validation": len(opened.splits.validation[0])},
        "rows": rows,
    }
    args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
