"""Another task than classification: a network that estimates the width of a bright square, with a loss of its own."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp


def squares(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images of one bright square each, and its width as a share of the image's, shape (count, 1)."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(count, 1, 16, 16, generator=generator)
    widths = torch.randint(2, 13, (count,), generator=generator)
    for image, width in zip(images, widths.tolist(), strict=True):
        top, left = torch.randint(0, 17 - width, (2,), generator=generator).tolist()
        image[:, top : top + width, left : left + width] += 1
    return images, widths.unsqueeze(1) / 16


@torch.no_grad()
def error(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Mean squared error."""
    return float(F.mse_loss(model(data[0]), data[1]))


def main() -> None:
    """Train, search for the smallest error at 40 % of the FLOPs, train again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    training_options = {
        "epochs": args.epochs,
        "recipe": dp.Recipe(optimizer="adamw", lr=1e-2, batch_size=32),
        "loss": F.mse_loss,
    }
    torch.manual_seed(0)
    widths = [(1, 16), (16, 32), (32, 32)]
    blocks = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in widths]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1))
    training, validation, test = squares(1000, 0), squares(400, 1), squares(400, 2)
    dp.finetune(model, training, **training_options)

    result = dp.search(
        model,
        training[0],
        calibration=training,
        validation=validation,
        objectives=("loss",),
        loss=F.mse_loss,  # of (outputs, targets): the mean over a batch, or one value per sample
        max_flops=0.4,
        population=12,
        generations=args.generations,
    )
    small = result.slim(result.best)
    print(f"mean squared error on new images: dense {error(model, test):.5f}, pruned {error(small, test):.5f}")
    dp.finetune(small, training, teacher=model, **training_options)
    print(f"trained again: {error(small, test):.5f}, with {result.best.flops / result.space.flops:.0%} of the FLOPs")


if __name__ == "__main__":
    main()
