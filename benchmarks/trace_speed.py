r"""How long does tracing take, proof included?

Question: is a network traced, its couplings proven and its cost checked in a moment?
Method: torchvision's ResNet-50 and DenseNet-121 (random weights), one image of 64 x 64 pixels. In turn, in one process:
``dp.trace`` (labels, groups, proof by three masks, fvcore's count) and Torch-Pruning's dependency graph alone with its
groups listed (no proof, no cost). Medians of the repeats after one warm-up of each.
Output: a JSON file in benchmarks/results, and a table.

    python benchmarks/trace_speed.py --repeats 7
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning
import torchvision
from torch import nn

import deap_prune as dp

NETWORKS = ("resnet50", "densenet121")


def ours(model: nn.Module, image: torch.Tensor) -> None:
    """Groups, proven."""
    dp.trace(model, image)


def graph_alone(model: nn.Module, image: torch.Tensor) -> None:
    """Torch-Pruning's groups, unproven."""
    graph = torch_pruning.DependencyGraph().build_dependency(model, (image,))
    list(graph.get_all_groups())


def seconds(call: Callable[[nn.Module, torch.Tensor], None], model: nn.Module, image: torch.Tensor) -> float:
    """Of one call."""
    start = time.perf_counter()
    call(model, image)
    return time.perf_counter() - start


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trace_speed.json")
    args = parser.parse_args()
    rows: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "repeats": args.repeats}
    for name in NETWORKS:
        model = torchvision.models.get_model(name, weights=None).eval()
        image = torch.randn(1, 3, 64, 64)
        arms = {"dp.trace": ours, "torch-pruning, graph alone": graph_alone}
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for repeat in range(args.repeats + 1):
            for arm, call in arms.items():
                spent = seconds(call, model, image)
                if repeat:  # the first is the warm-up
                    times[arm].append(spent)
        rows[name] = {arm: {"median": statistics.median(t), "min": min(t), "max": max(t)} for arm, t in times.items()}
        print(name, json.dumps(rows[name]), flush=True)
    args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
