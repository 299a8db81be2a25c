"""Pruning without a grid: digits as sets of points, classified by parametric continuous convolutions.

The layer is in deap_prune/zoo/continuous.py, with the lines that describe it to deap_prune below it. Inputs are a pair
(features, coordinates); everything else is as for images.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import PointClassifier, brightest_points

Batch = tuple[tuple[Tensor, Tensor], Tensor]


def as_points(pair: tuple[Tensor, Tensor]) -> list[Batch]:
    """Batches ((features, coordinates), labels) of the 24 brightest pixels of each image; a DataLoader works too."""
    images, labels = pair
    features, points = brightest_points(images, 24)
    parts = (values.split(64) for values in (features, points, labels))
    return [((f, p), y) for f, p, y in zip(*parts, strict=True)]


def main() -> None:
    """Train, search at half the FLOPs, fine-tune."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(0)
    data = load_data(format="digits")
    train, validation, test = as_points(data.train), as_points(data.validation), as_points(data.test)
    model = PointClassifier()
    dp.finetune(model, train, epochs=args.epochs, recipe=dp.Recipe(lr=0.1), progress=False)
    result = dp.search(
        model,
        brightest_points(data.calibration[0][:1], 24),
        calibration=as_points(data.calibration),
        validation=validation,
        objectives=("accuracy",),
        max_flops=0.5,
        population=8,
        generations=args.generations,
        progress=False,
    )
    print(result.space)
    small = result.slim(result.best)
    pruned = dp.accuracy(small, test)
    recipe = dp.Recipe(lr=0.02)
    dp.finetune(small, train, epochs=-(-args.epochs // 2), recipe=recipe, teacher=model, progress=False)
    share = result.best.flops / result.space.flops
    dense, tuned = dp.accuracy(model, test), dp.accuracy(small, test)
    print(f"{share:.1%} of the FLOPs; test accuracy: dense {dense:.1%}, pruned {pruned:.1%}, fine-tuned {tuned:.1%}")


if __name__ == "__main__":
    main()
