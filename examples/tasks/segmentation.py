"""A U-Net that marks bright squares, pruned by its mean intersection over union."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Two steps down, two steps up, and a skip connection at each."""

    def __init__(self, classes: int = 2, width: int = 8) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = block(1, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.up2, self.up1 = block(6 * width, 2 * width), block(3 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of every pixel, shape (N, classes, height, width)."""
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = F.interpolate(self.bottom(F.max_pool2d(two, 2)), scale_factor=2)
        x = F.interpolate(self.up2(torch.cat([x, two], 1)), scale_factor=2)
        return self.head(self.up1(torch.cat([x, one], 1)))


def squares(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images (N, 1, 16, 16) and their maps of labels (N, 16, 16); label 255 is ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(count, 16, 16, dtype=torch.int64)
    for labels_of_one in labels:
        top, left, size = (int(torch.randint(2, 8, (1,), generator=generator)) for _ in range(3))
        labels_of_one[top : top + size, left : left + size] = 1
    return labels.unsqueeze(1) + 0.5 * torch.randn(count, 1, 16, 16, generator=generator), labels


torch.manual_seed(0)
training, validation, test = squares(256, 0), squares(64, 1), squares(64, 2)
model = UNet()
dp.finetune(model, training, epochs=8, recipe=dp.Recipe(optimizer="adamw", lr=1e-2, batch_size=32))
result = dp.search(
    model,
    training[0][:1],
    calibration=(training[0][:64], training[1][:64]),
    validation=validation,
    objectives=("miou", "flops"),
    criteria=("l1", "fpgm", "taylor_gate"),
    population=8,
    generations=1,
    finalists=0,
)
print(result.front)
