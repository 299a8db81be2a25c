"""Prune a network of your own: nothing to declare."""

from torch import Tensor, nn

import deap_prune as dp
from deap_prune.data import load_data


class Own(nn.Module):
    """A stem, a residual block, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.a, self.b = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (N, 1, height, width)."""
        x = self.stem(x)
        return self.head((x + self.b(self.a(x).relu())).mean((2, 3)))


data, model = load_data(format="digits"), Own()
dp.finetune(model, data.train, epochs=10, recipe=dp.Recipe(lr=0.05, batch_size=64))
print(dp.trace(model, data.calibration[0]))  # groups that can be pruned, and refusals with reasons
result = dp.search(
    model, data.calibration[0], calibration=data.calibration, validation=data.validation, population=8, generations=2
)
print(result.front)
print(result.slim(result.front.knee()))
