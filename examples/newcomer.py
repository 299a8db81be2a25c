"""What a newcomer tries: a torchvision network, a network of one's own, a budget, a resume, a report, an export."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet18

import deap_prune as dp


def images(n: int, size: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise in place of your images: nothing here is about accuracy."""
    return torch.randn(n, 3, size, size), torch.randint(classes, (n,))


def torchvision_network(folder: Path) -> None:
    """A front of a torchvision network, and its cheapest solution as a network."""
    data = {"calibration": images(8, 64, 1000), "validation": images(8, 64, 1000)}
    model = resnet18().eval()  # weights="DEFAULT" for trained ones
    options = {"criteria": ("l1", "fpgm", "bn_scale"), "population": 4, "generations": 1, "refine": False}
    result = dp.search(model, torch.zeros(1, 3, 64, 64), **data, **options, out=folder)
    small = result.slim(result.front[0])
    size = sum(p.numel() for p in small.parameters())
    print(f"resnet18: {len(result.front)} solutions; {size:,} parameters in the cheapest")


class Own(nn.Module):
    """A network of one's own: nothing to declare."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.a, self.b = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images (N, 3, height, width)."""
        x = self.stem(x)
        return self.head((x + self.b(self.a(x).relu())).mean((2, 3)))


def own_network(folder: Path) -> None:
    """Half the FLOPs, stopped after a generation, gone on with, looked at, exported."""
    model, example = Own().eval(), torch.zeros(1, 3, 16, 16)
    data = {"calibration": images(64, 16, 5), "validation": images(64, 16, 5)}
    dp.search(model, example, **data, objectives=("loss",), max_flops=0.5, population=6, generations=1, out=folder)
    result = dp.resume(folder, model, example, generations=2, **data)
    print(f"own network: {result.best}")
    print(f"report: {dp.report(folder, result=result)}")
    small = result.slim(result.best)
    found = dp.export(small, data["validation"][0][:8], folder / "export", masks=result.best.masks, dense=model)
    print(found)


def main() -> None:
    """Both, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args()
    torch.manual_seed(0)
    own_network(args.runs / "own")
    torchvision_network(args.runs / "resnet18")


if __name__ == "__main__":
    main()
