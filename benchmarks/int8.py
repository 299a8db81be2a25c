r"""What do eight bits cost a pruned network, beside the dense one?

Question: accuracy, size and latency of the dense and the pruned network, in fp32 and in eight bits.
Method: half of the FLOPs with widths by one threshold on a criterion, refined on calibration images with sequential
selection (or compensated in closed form alone: ``--no-refine``), no training. ONNX Runtime's static quantisation with
the calibration images; test images for the accuracies; one sample on one thread, median of its processor time.
Output: one row per network in a JSON file of benchmarks/results; a row of the same network is replaced.

    python benchmarks/int8.py configs/cifar10-resnet56.yaml --set data.calibration=500
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from selection import commit
from torch import nn

import deap_prune as dp
from deap_prune.config import load_config
from deap_prune.int8 import export_int8
from deap_prune.search.from_config import OpenedConfig, open_config


def pruned(opened: OpenedConfig, criterion: str, share: float, refine: bool) -> nn.Module:
    """The network at a share of the FLOPs: one threshold over the scores of all groups, refined or compensated."""
    task = opened.task
    space = dp.trace(task.model, task.example_inputs, ignore=opened.config.search.ignore)
    scores = dp.score(task.model, space, task.calibration, criteria=(criterion,))
    genome = dp.Genome(space, scores, dp.cluster(scores, n_clusters=1), allocation="global", max_flops=share)
    images = {"calibration": task.calibration, "validation": task.validation}
    how = {"refine": refine, "refine_images": len(opened.splits.calibration[0]), "batch_size": 50}
    evaluator = dp.Evaluator(task.model, space, **images, objectives=("accuracy",), **how)
    masks = genome.decode(genome.single(criterion))
    return evaluator.slim(evaluator.selected(masks) if refine else masks)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--criterion", default="l2")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--refine", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the config")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "int8.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    opened = open_config(load_config(args.config, args.set))
    small = pruned(opened, args.criterion, args.share, args.refine)
    test, images = opened.splits.test, opened.splits.calibration
    assert test is not None
    with TemporaryDirectory() as folder:
        dense = opened.task.model
        done = export_int8(small, test[0][:2], folder, calibration=images, test=test, dense=dense, repeats=100)
    print(done)
    row = {
        "network": args.config.stem,
        "commit": commit(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "criterion": args.criterion,
        "flops": args.share,
        "refined": args.refine,
        "calibration images": len(images[0]),
        "test images": len(test[0]),
        "variants": [asdict(variant) for variant in done.variants],
    }
    rows = json.loads(args.out.read_text(encoding="utf-8"))["rows"] if args.out.is_file() else []
    rows = [*(r for r in rows if r["network"] != row["network"]), row]
    args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
