"""Prune a network of torchvision: a front of smaller ones."""

import torch
from torchvision.models import mobilenet_v3_small

import deap_prune as dp

model = mobilenet_v3_small(weights=None).eval()  # weights="DEFAULT" for trained ones
images, labels = torch.randn(16, 3, 64, 64), torch.randint(1000, (16,))  # use your own: larger, and more of them
data = {"calibration": (images[:8], labels[:8]), "validation": (images[8:], labels[8:])}
options = {
    "criteria": ("l1", "fpgm", "bn_scale"),
    "objectives": ("agreement", "flops"),
    "population": 4,
    "generations": 1,
}
result = dp.search(model, images[:1], **data, **options)  # agreement with the dense network: labels are noise here
small = result.slim(result.front[0])  # the cheapest: a plain, smaller MobileNetV3
print(result.front)
print(f"{sum(p.numel() for p in small.parameters()):,} of {result.space.params:,} parameters")
