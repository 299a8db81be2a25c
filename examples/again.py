"""Prune, fine-tune, prune again: the second search begins from the first one's front, on the fine-tuned network."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet


def main() -> None:
    """Train briefly, then go down to half and to a quarter of the FLOPs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    torch.manual_seed(0)
    data, dense = load_data(format="digits"), digits_resnet()
    images = {"calibration": data.calibration, "validation": data.validation}
    dp.finetune(dense, data.train, epochs=args.epochs, recipe=dp.Recipe(lr=0.1, batch_size=64))
    network, earlier, cost = dense, None, None
    for step, share in enumerate((0.5, 0.25)):
        space = dp.trace(network, data.calibration[0])
        cost = cost or space.flops
        folder = args.runs / f"step-{step}"
        result = dp.search(
            network,
            data.calibration[0],
            **images,
            objectives=("loss",),
            max_flops=share * cost / space.flops,  # of this network, which is smaller already
            n_clusters=1,  # the same genes for both networks, whichever criteria agree on each
            population=12,
            generations=args.generations,
            warm_start=earlier,
            out=folder,
        )
        network, earlier = result.slim(result.best), folder
        dp.finetune(network, data.train, epochs=args.epochs, recipe=dp.Recipe(lr=0.02, batch_size=64), teacher=dense)
        print(f"{result.best.flops / cost:.3f} of the FLOPs: {dp.accuracy(network, data.validation):.4f} on validation")


if __name__ == "__main__":
    main()
