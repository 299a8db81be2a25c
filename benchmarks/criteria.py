r"""What does it cost to score all filters, and which criteria rank alike?

Questions: (1) how long does collecting take, against one plain forward and backward pass over the same images? (2) does
the mean Spearman correlation over a network's layers reproduce known values (L1, L2 and FPGM at least 0.95; BN scale
to L2 0.6 to 0.7)?
Method: a trained ResNet-56 (option A) and training images. Every repetition times the plain pass, a pool of twelve and
the whole pool (without hrank, chip, thinet, kl, oracle, attention), one after the other; the medians of the ratios are
given. The correlations are those of one scoring by the whole pool, over the groups of a single layer, and over all.
Output: a JSON file in benchmarks/results, and the heat map beside it.

    python benchmarks/criteria.py --data cifar10_train.npz --weights cifar10_resnet56.pth
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from deap_prune import zoo
from deap_prune.data import load_data
from deap_prune.plot import plot_agreement
from deap_prune.weights import load_weights

TWELVE = (
    *("l1", "l2", "fpgm", "out_l1", "bn_scale", "bn_shift", "mean_activation", "apoz", "entropy"),
    *("taylor_activation", "taylor_weight", "taylor_gate"),
)
SLOW = {"hrank", "chip", "thinet", "kl", "oracle", "attention"}


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def plain(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """One forward and backward pass, in the batches that collecting takes."""
    for x, y in zip(images.split(250), labels.split(250), strict=True):
        F.cross_entropy(model(x), y).backward()
    model.zero_grad(set_to_none=True)


def agreement(scores: dp.ScoreTable, space: dp.PruningSpace, *, single: bool) -> dict:
    """Mean Spearman over the groups: among L1, L2 and FPGM (the least), and of the BN scale with L2."""
    chosen = {g.name: scores[g.name] for g in space.groups if not single or len(g.layers("filter")) == 1}
    names, rho = dp.cluster(dp.ScoreTable(chosen)).correlation()
    at = {name: i for i, name in enumerate(names)}
    norms = [at["l1"], at["l2"], at["fpgm"]]
    return {
        "groups": len(chosen),
        "least of l1, l2, fpgm": float(rho[np.ix_(norms, norms)].min()),
        "bn_scale to l2": float(rho[at["bn_scale"], at["l2"]]),
        "criteria": names,
        "spearman": np.round(rho, 4).tolist(),
    }


def main() -> None:
    """Time, correlate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10 training images, .npz (images, labels)")
    parser.add_argument("--weights", required=True, help="state dict of the option-A ResNet-56")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "criteria-cifar10-resnet56.json"
    )
    args = parser.parse_args()
    model = zoo.cifar10_resnet56().eval()
    load_weights(model, args.weights)
    statistics_of = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    data = load_data(
        format="npz", train=args.data, test=args.data, calibration=args.images, validation=100, **statistics_of
    )
    images, labels = (part.contiguous() for part in data.calibration)
    space = dp.trace(model, images[:1])
    whole = tuple(name for name in dp.criteria() if name not in SLOW)
    pools = {"twelve": TWELVE, "whole": whole}
    plain(model, images, labels)
    rows = []
    for _ in range(args.repeats):
        row = {"plain": seconds(lambda: plain(model, images, labels))}
        for name, pool in pools.items():
            row[name] = seconds(lambda pool=pool: dp.score(model, space, (images, labels), criteria=pool))
        rows.append(row)
        print({k: round(v, 2) for k, v in row.items()}, flush=True)
    scores = dp.score(model, space, (images, labels), criteria=whole)
    report = {
        "network": "ResNet-56 (option A), CIFAR-10",
        "images": len(images),
        "pools": {name: list(pool) for name, pool in pools.items()},
        "seconds": rows,
        "ratio to plain, median": {p: statistics.median(r[p] / r["plain"] for r in rows) for p in pools},
        "single layers": agreement(scores, space, single=True),
        "all groups": agreement(scores, space, single=False),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, CPU",
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    plot_agreement(dp.cluster(scores), args.out.with_suffix(".png"), title="ResNet-56, CIFAR-10")
    print(report["ratio to plain, median"])
    for where in ("single layers", "all groups"):
        print(where, {k: v for k, v in report[where].items() if not isinstance(v, (list, tuple))})
    print(args.out)


if __name__ == "__main__":
    main()
