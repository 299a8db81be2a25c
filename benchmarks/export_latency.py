r"""Is half of the multiply-adds half of the time, and do round widths help?

Question: how much faster is a network with half of its multiply-adds on this CPU, and does ``round_to`` pay?
Method: L2, uniform widths, at most half of the FLOPs; any widths, or multiples of 8 or 16 (``round_to``;
left out where no such widths reach half of the FLOPs). ResNet-56 (CIFAR, layers 16 to 64 wide; residual streams dense,
as in configs/) and torchvision's ResNet-50 (64 to 2048 wide), with random weights: time does not depend on them. Each
is exported by ``dp.export``, which checks the outputs. Then dense and slim run in turn, in torch (eager) and in ONNX
Runtime, after a warm-up; the speed-up is the median of dense by slim over the turns.
Output: a JSON file in benchmarks/results, and a table.

    python benchmarks/export_latency.py --repeats 50
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision
from torch import nn

import deap_prune as dp
from deap_prune.zoo import cifar10_resnet56

ROUNDED = (1, 8, 16)
BATCHES = (1, 32)
STREAMS = ("conv1", "layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2")
NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], int, tuple[str, ...]]] = {
    "resnet56": (cifar10_resnet56, 32, STREAMS),
    "resnet50": (lambda: torchvision.models.resnet50(weights=None), 224, ()),
}
"""Name to the function that makes the network, the side of its images, and the layers that stay dense."""


def arms_of(model: nn.Module, image: torch.Tensor, ignore: tuple[str, ...]) -> dict[str, tuple[nn.Module, float]]:
    """The dense network and the slim ones, each with its share of the multiply-adds."""
    space = dp.trace(model, image, ignore=ignore)
    scores = dp.score(model, space, criteria=("l2",))
    arms: dict[str, tuple[nn.Module, float]] = {"dense": (model, 1.0)}
    clusters = dp.cluster(scores, n_clusters=1)
    for width in ROUNDED:
        try:
            genome = dp.Genome(space, scores, clusters, allocation="uniform", max_flops=0.5, round_to=width)
        except dp.errors.BudgetError:
            continue
        masks = genome.decode(genome.single("l2"))
        arms[f"multiples of {width}"] = dp.slim(model, space, masks), dp.flops(space, masks) / space.flops
    return arms


def session_of(network: nn.Module, image: torch.Tensor, threads: int) -> Callable[[np.ndarray], Any]:
    """ONNX Runtime on the exported, checked network."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        dp.export(network, image, folder, formats=("onnx",), repeats=0)
        session = onnxruntime.InferenceSession(
            Path(folder) / "network.onnx", options, providers=["CPUExecutionProvider"]
        )
    (name,) = (entry.name for entry in session.get_inputs())
    return lambda x: session.run(None, {name: x})


def in_turn(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each, one after the other in every turn, after three turns of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 3):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= 3:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def measure(name: str, threads: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each backend, batch and arm."""
    make, side, ignore = NETWORKS[name]
    torch.manual_seed(0)
    model, image = make().eval(), torch.randn(2, 3, side, side)
    arms = arms_of(model, image, ignore)
    sessions = {arm: session_of(network, image, threads) for arm, (network, _) in arms.items()}
    rows = []
    for batch in BATCHES:
        x = torch.randn(batch, 3, side, side)
        eager = {arm: partial(network, x) for arm, (network, _) in arms.items()}
        fixed = {arm: partial(session, x.numpy()) for arm, session in sessions.items()}
        for backend, runs in (("torch", eager), ("ONNX Runtime", fixed)):
            with torch.no_grad():
                times = in_turn(runs, repeats)
            for arm, milliseconds in times.items():
                speedup = statistics.median(d / t for d, t in zip(times["dense"], milliseconds, strict=True))
                row = {"network": name, "backend": backend, "batch": batch, "widths": arm, "flops": arms[arm][1]}
                quartiles = statistics.quantiles(milliseconds, n=4)
                rows.append({**row, "ms": statistics.median(milliseconds), "quartiles": quartiles, "speed-up": speedup})
                print(f"{name} {backend} batch {batch:2d} {arm:15s} {arms[arm][1]:.3f} of the FLOPs", end=" ")
                print(f"{rows[-1]['ms']:9.2f} ms  {speedup:.2f} x", flush=True)
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "export_latency.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for name in args.networks for row in measure(name, args.threads, args.repeats)]
    about = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "threads": args.threads}
    about |= {"repeats": args.repeats, "processor": torch.backends.cpu.get_cpu_capability()}
    args.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
