"""Images in folders, read by DataLoaders: one sub-folder for each class."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, random_split
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.utils import save_image

import deap_prune as dp

for number in range(32):  # stands for your images
    Path(f"images/class{number % 2}").mkdir(parents=True, exist_ok=True)
    save_image(torch.rand(3, 40, 40), f"images/class{number % 2}/{number:03d}.png")
body = (nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU())
model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)).eval()  # stands for your network

steps = [v2.ToImage(), v2.Resize(40), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)]
images = ImageFolder("images", v2.Compose([*steps, v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]))
parts = random_split(images, [0.5, 0.5], torch.Generator().manual_seed(0))  # the same parts in a resumed run
calibration, validation = (DataLoader(part, batch_size=8) for part in parts)

result = dp.search(
    model,
    next(iter(calibration))[0][:1],
    calibration=calibration,  # a few hundred images, augmentation off
    validation=validation,
    criteria=("l1", "fpgm", "bn_scale"),
    objectives=("loss",),
    max_flops=0.5,
    population=4,  # 20 and 8 generations for a real network
    generations=1,
)
small = result.slim(result.best)
print(f"{result.best.flops / result.space.flops:.1%} of the multiply-adds, {result.best.params:,} parameters")
