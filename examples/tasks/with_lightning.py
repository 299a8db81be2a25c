"""A LightningModule: prune it, and hand the smaller one to the same Trainer."""

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import deap_prune as dp
from deap_prune.data import load_data


class Digits(lightning.LightningModule):
    """A small network for 8x8 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (N, 1, 8, 8)."""
        return self.head(self.body(x))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Cross-entropy of a batch."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


data = load_data(format="digits")
loader = DataLoader(TensorDataset(*data.train), batch_size=64, shuffle=True)
quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
model = Digits()
lightning.Trainer(max_epochs=2, **quiet).fit(model, loader)

images = {"calibration": data.calibration, "validation": data.validation}
options = {"criteria": ("l1", "fpgm"), "objectives": ("loss",), "max_flops": 0.5, "finalists": 0}
result = dp.search(model, data.calibration[0][:1], **images, **options, population=4, generations=1)
small = result.slim(result.best)  # a Digits again, with fewer filters
lightning.Trainer(max_epochs=1, **quiet).fit(small, loader)
print(f"test accuracy: dense {dp.accuracy(model, data.test):.3f}, slim {dp.accuracy(small.eval(), data.test):.3f}")
