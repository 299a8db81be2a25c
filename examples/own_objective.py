"""An objective of your own: the confidence of wrong predictions, with accuracy and FLOPs."""

from __future__ import annotations

import argparse

import torch

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet


@dp.register_objective("wrong_and_sure", maximise=False, worst=1.0)
def wrong_and_sure(outputs: torch.Tensor, targets: torch.Tensor, dense_outputs: None) -> torch.Tensor:
    """Probability of a wrong prediction, 0 for a right one; one value per sample, of which the mean is taken."""
    sure, predicted = outputs.softmax(1).max(1)
    return sure * (predicted != targets)


def main() -> None:
    """Train briefly, and search a front of three objectives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    data, model = load_data(format="digits"), digits_resnet(width=8)
    dp.finetune(model, data.train, epochs=args.epochs, recipe=dp.Recipe(lr=0.1, batch_size=64))
    result = dp.search(
        model,
        data.calibration[0],
        calibration=data.calibration,
        validation=data.validation,
        objectives=("accuracy", "wrong_and_sure", "flops"),
        population=12,
        generations=args.generations,
    )
    print(result.front)
    print("least sure of its errors:", result.front.best(by="wrong_and_sure"))


if __name__ == "__main__":
    main()
