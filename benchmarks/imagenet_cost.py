"""What each step costs on networks of ImageNet's size: time in forward passes of the dense network, and peak memory.

Question: how long do tracing, scoring, moments, compensation, drafts, refinement (with and without selection),
evaluation and export take on MobileNetV2 and ResNet-50 at 224 pixels, and how much memory?
Method: random weights and random images (only time and memory count). Every step runs in a process of its own, after
the steps that it needs, which are not counted. The unit is the CPU time of one forward pass of the dense network over
the same images, in batches of 50, measured right before and after the step. Peak memory is that of the process; beyond
dense is what a process that only runs the dense network does not need. Refinement uses all images, a draft a quarter.
Output: results/imagenet_cost.json: one row for each network and step.

    OMP_NUM_THREADS=1 python benchmarks/imagenet_cost.py [--networks mobilenet_v2 resnet50] [--images 500]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from pairs import device_name
from selection import commit
from torch import nn

import deap_prune as dp
from deap_prune.options import DRAFT_ROWS, BlendOptions

STEPS = ("dense", "trace", "score", "moments", "compensate", "draft", "refine", "select", "evaluate", "export")
BATCH = 50


class Load:
    """A network with random weights on random images.

    Args:
        name: Of torchvision's network.
        images: Number of images.
    """

    def __init__(self, name: str, images: int) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = getattr(torchvision.models, name)().eval().to(memory_format=torch.channels_last)
        x = torch.randn(images, 3, 224, 224).contiguous(memory_format=torch.channels_last)
        self.data = list(zip(x.split(BATCH), torch.randint(1000, (images,)).split(BATCH), strict=True))
        self.images = images

    @torch.no_grad()
    def dense(self) -> None:
        """Run the dense network on all images."""
        for x, _ in self.data:
            self.model(x)

    @cached_property
    def space(self) -> dp.PruningSpace:
        """The prunable groups."""
        return dp.trace(self.model, self.data[0][0][:1])

    @cached_property
    def evaluator(self) -> dp.Evaluator:
        """Compensates with all images, and evaluates on them."""
        data: dict[str, Any] = {"calibration": self.data, "validation": self.data}
        return dp.Evaluator(self.model, self.space, **data, objectives=("loss", "flops"), device="cpu")

    @cached_property
    def masks(self) -> dp.Masks:
        """Random filters, 70 % of each group."""
        return dp.Masks.random(self.space, keep=0.7, seed=0)

    def prepare(self, step: str) -> Callable[[], Any]:
        """Do what a step needs, and return the step."""
        if step == "dense":
            return self.dense
        if step == "trace":
            return lambda: self.space
        space, masks = self.space, self.masks
        if step == "score":
            # `elimination` looks at moments, which have a row of their own.
            criteria = [name for name in BlendOptions().criteria if name != "elimination"]
            return lambda: dp.score(self.model, space, self.data, criteria=criteria)
        if step == "moments":
            return lambda: self.evaluator.surrogate(masks)
        self.evaluator.surrogate(masks)
        refining: dict[str, Any] = {
            "draft": {"refine_images": self.images // 4, "refine_rows": DRAFT_ROWS},
            "refine": {},
            "select": {"select": True},
        }
        if step in refining:
            images = {"refine_images": self.images}
            evaluator = self.evaluator.with_settings(refine=True, **{**images, **refining[step]})
            evaluator.slim(masks)  # the dense network's targets are noted once for all candidates
            return lambda: evaluator.slim(masks)
        small = self.evaluator.slim(masks)
        if step == "export":
            folder = tempfile.mkdtemp()
            return lambda: dp.export(small, self.data[0][0][:2], folder)
        return {
            "compensate": lambda: self.evaluator.slim(masks),
            "evaluate": lambda: self.evaluator.measure(small, masks),
        }[step]


def measure(network: str, step: str, images: int, repeat: int) -> dict[str, float]:
    """Medians of a step's time in dense passes, and the peak memory of this process in MB."""
    load = Load(network, images)
    run = load.prepare(step)
    passes, seconds = [], []
    for number in range(repeat if step != "trace" else 1):
        before = timed(load.dense)
        own = timed(run)
        after = timed(load.dense)
        seconds.append(own)
        if number or repeat == 1 or step == "trace":
            passes.append(2 * own / (before + after))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"dense passes": statistics.median(passes), "cpu seconds": statistics.median(seconds), "peak MB": peak}


def timed(run: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Measure every step in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=["mobilenet_v2", "resnet50"])
    parser.add_argument("--steps", nargs="*", default=list(STEPS))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "imagenet_cost.json")
    parser.add_argument("--only", action="store_true", help="measure one step in this process and print it")
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.networks[0], args.steps[0], args.images, args.repeat)))
        return
    rows: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.is_file() else []
    facts = {"commit": commit(), "deap-prune": version("deap-prune"), "python": platform.python_version()}
    facts |= {"torch": torch.__version__, "device": device_name(), "repetitions": args.repeat}
    for network in args.networks:
        for step in args.steps:
            key = {"network": network, "step": step, "images": args.images}
            if any(all(row[name] == value for name, value in key.items()) for row in rows):
                continue
            command = [sys.executable, __file__, "--only", "--networks", network, "--steps", step]
            command += ["--images", str(args.images), "--repeat", str(args.repeat)]
            cost = json.loads(
                subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
            )
            dense = next(
                (r["peak MB"] for r in rows if (r["network"], r["step"]) == (network, "dense")), cost["peak MB"]
            )
            rows.append(key | cost | {"MB beyond dense": cost["peak MB"] - dense} | facts)
            args.out.write_text(json.dumps(rows, indent=1))
            print(
                f"{network:12} {step:10} {cost['dense passes']:6.2f} passes {cost['peak MB']:7.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
