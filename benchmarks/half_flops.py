r"""Does a searched blend beat the best single criterion, at the same FLOPs and without training?

Question: on a trained network, is the blend that a search finds on training images better, on the test images, than the
single criterion that is best on the same validation images?
Method: every single criterion prunes the groups to uniform widths at the budget; BN statistics are re-estimated on the
same calibration images for all arms; the criterion with the best validation figure is chosen. The search gets the
config's evaluations. A second control, "all groups", prunes the residual streams as well, at one uniform rate.
The network that each arm chose, and the dense one, are measured on the test images, once a run; no other is.
Output: a JSON file in benchmarks/results, and a table.

    python benchmarks/half_flops.py configs/cifar100-resnet56.yaml --set data.train=... --set data.test=... \
        --set model.weights=...
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

import deap_prune as dp
from deap_prune.config import Config, SearchConfig, load_config
from deap_prune.search import prepare
from deap_prune.workspace import Workspace


def singles(work: Workspace, options: SearchConfig) -> tuple[dict, dict]:
    """Every single criterion at uniform widths: validation figures, and the best one with its test accuracy."""
    options = options.model_copy(update={"allocation": "uniform"})
    genome, evaluate, _ = prepare(work.model, work.example, work.calibration, work.validation, options)
    masks = {name: genome.decode(genome.single(name)) for name in options.criteria}
    rows = {name: dict(zip(evaluate.names, evaluate(m), strict=True)) for name, m in masks.items()}
    sign = evaluate.weights[0]
    best = max(rows, key=lambda name: sign * rows[name][evaluate.names[0]])
    test = dp.accuracy(evaluate.slim(masks[best]), work.splits.test)
    share = dp.flops(genome.space, masks[best]) / genome.space.flops
    return rows, {"criterion": best, "flops": share, "test_accuracy": test}


def main() -> None:
    """Run all arms and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="JSON file; benchmarks/results/half_flops-CONFIG.json if left out",
    )
    args = parser.parse_args()
    config: Config = load_config(args.config, args.set)
    work = Workspace.open(config)
    options = config.search.model_copy(update={"objectives": (*config.search.objectives, "accuracy")})
    start = time.perf_counter()
    rows, best = singles(work, options)
    _, everything = singles(work, options.model_copy(update={"ignore": ()}))
    seconds = {"singles": time.perf_counter() - start}
    print(json.dumps({"singles": rows, "best": best, "best, all groups": everything}, indent=1), flush=True)
    start = time.perf_counter()
    result = dp.search(
        work.model,
        work.example,
        calibration=work.calibration,
        validation=work.validation,
        config=config,
        out=config.out,
    )
    seconds["search"] = time.perf_counter() - start
    found = result.best
    ours = {
        "validation": dict(found.values),
        "flops": found.flops / result.space.flops,
        "test_accuracy": dp.accuracy(result.slim(found), work.splits.test),
        "evaluations": result.evaluations,
    }
    dense = {"test_accuracy": dp.accuracy(work.model, work.splits.test), "flops": result.space.flops}
    report = {
        "config": config.model_dump(mode="json", exclude={"model", "data", "out"}),
        "dense": dense,
        "singles (validation)": rows,
        "best single, uniform widths": best,
        "best single, uniform widths, all groups": everything,
        "blend, evolved widths": ours,
        "history": list(result.logbook),
        "seconds": seconds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, CPU",
    }
    path = args.out or Path(__file__).parent / "results" / f"half_flops-{Path(args.config).stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"dense {dense['test_accuracy']:.4f} on test")
    print(f"best single ({best['criterion']}): {best['test_accuracy']:.4f} at {best['flops']:.4f} of the flops")
    print(f"blend, {ours['evaluations']} evaluations: {ours['test_accuracy']:.4f} at {ours['flops']:.4f} of the flops")
    print(path)


if __name__ == "__main__":
    main()
