"""The training recipe: optimizer, schedule and distillation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deap_prune.arguments import Count, NotNegative, Positive, Share, check_fields
from deap_prune.errors import ConfigError

_SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "step": lambda share: 0.1 ** ((share >= 0.5) + (share >= 0.75)),
    "constant": lambda share: 1.0,
}
_OPTIMIZERS = ("sgd", "adam", "adamw")
_PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimizer, schedule, distillation and precision of :func:`deap_prune.finetune`.

    Attributes:
        lr: Highest learning rate.
        batch_size: Images a batch; batches of an iterable are used as they are.
        momentum: Momentum of SGD, in [0, 1); Nesterov's form if above 0.
        weight_decay: Weight decay of every parameter, at least 0.
        optimizer: "sgd", "adam" or "adamw".
        schedule: "cosine" down to 0 (Loshchilov and Hutter, ICLR 2017), "step" (a tenth after half and again
            after three quarters of the training; He et al., CVPR 2016) or "constant".
        warmup_epochs: Number of first epochs in which the learning rate rises linearly from 0.
        temperature: Softmax temperature of the distillation loss, above 0.
        distill: Weight of the distillation loss, in [0, 1]; the loss on the targets has the rest.
        precision: Precision of the forward pass: "fp32", or "bf16" by autocast (the weights stay fp32).
        ema: Decay of an exponential moving average of the weights, such as 0.999. Validation and the final network use
            the average. None for no average.
        patience: Number of epochs without a better validation accuracy after which training stops. With your own loss,
            or without one label a sample, the validation loss counts. The network keeps the last epoch's weights.

    Raises:
        ConfigError: If a value is out of range or a name is unknown.
    """

    lr: Positive = 0.01
    batch_size: Count = 128
    momentum: float = 0.9
    weight_decay: NotNegative = 5e-4
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: NotNegative = 0
    temperature: Positive = 4.0
    distill: Share = 0.5
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: float | None = None
    patience: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        legal = {
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "ema": (self.ema is None or 0 < self.ema < 1, "in (0, 1), or None"),
        }
        for name, (ok, rule) in legal.items():
            if not ok:
                raise ConfigError(f"{name}={getattr(self, name)} in the training recipe; give a number {rule}")

    def rate(self, epoch: float, epochs: int) -> float:
        """Learning rate at (fractional) ``epoch`` of ``epochs``."""
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        return self.lr * _SCHEDULES[self.schedule]((epoch - self.warmup_epochs) / (epochs - self.warmup_epochs))

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer for these parameters; on CUDA its step can be captured in a graph."""
        cuda = parameters[0].is_cuda
        lr: float | Tensor = torch.tensor(self.lr, device=parameters[0].device) if cuda else self.lr
        options: dict[str, Any] = {"weight_decay": self.weight_decay, **({"fused": True} if cuda else {})}
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr, self.momentum, nesterov=self.momentum > 0, **options)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, lr, capturable=cuda, **options)
