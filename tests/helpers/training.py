"""Small networks for the tests of training, and a short training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.training import EpochRecord, finetune

Pair = tuple[Tensor, Tensor]


def make_classifier() -> nn.Sequential:
    """A network for images of 4x4 pixels and two classes, always with the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(64, 2),
    )


def make_regressor(seed: int = 0) -> nn.Sequential:
    """A network for images of 4x4 pixels and one number."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))


def train_briefly(model: nn.Module, train: Any, validation: Any = None, **options: Any) -> list[EpochRecord]:
    """Two epochs on the CPU, without a bar."""
    return finetune(model, train, validation, **{"epochs": 2, "progress": False, "device": "cpu", **options})


def equal_states(a: nn.Module, b: nn.Module) -> bool:
    """Whether all weights and buffers are equal."""
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
