"""A criterion of your own in five lines, in the pool of a search."""

from __future__ import annotations

import argparse

import torch

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet


@dp.register_criterion("linf", needs="weight")
def linf(weight: torch.Tensor) -> torch.Tensor:
    """Largest absolute weight of the filter; ``weight`` is (filters, everything else)."""
    return weight.abs().amax(dim=1)


def main() -> None:
    """Train briefly, and see with which criteria the new one clusters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    data, model = load_data(format="digits"), digits_resnet()
    dp.finetune(model, data.train, epochs=args.epochs, recipe=dp.Recipe(lr=0.1, batch_size=64))
    space = dp.trace(model, data.calibration[0])
    scores = dp.score(model, space, data.calibration, criteria=("linf", "l2", "bn_scale", "taylor_gate", "apoz"))
    print(dp.cluster(scores, n_clusters=3))


if __name__ == "__main__":
    main()
