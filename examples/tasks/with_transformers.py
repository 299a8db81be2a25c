"""A network of Hugging Face, with batches that are dicts."""

import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

import deap_prune as dp

sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
model = ResNetForImageClassification(ResNetConfig(num_labels=10, **sizes)).eval()  # or .from_pretrained(NAME)
Batch = dict[str, Tensor]


def batches(count: int) -> list[Batch]:
    """Stands for a DataLoader whose batches are dicts."""
    return [{"pixel_values": torch.randn(8, 3, 32, 32), "labels": torch.randint(10, (8,))} for _ in range(count)]


def forward(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits and labels of a batch."""
    return model(pixel_values=batch["pixel_values"]).logits, batch["labels"]


calibration, validation = batches(2), batches(2)
result = dp.search(
    model,
    {"pixel_values": calibration[0]["pixel_values"][:1]},
    calibration=calibration,
    validation=validation,
    forward=forward,
    criteria=("l1", "taylor_gate"),
    population=4,
    generations=1,
    refine=False,  # leave it out: refinement re-fits the front layer by layer
)
small = result.slim(result.front.best(max_flops=0.5))
print(result.front)
dp.finetune(small, calibration, epochs=1, forward=forward)
print(f"{dp.accuracy(small, validation, forward=forward):.2f} accurate, {small.num_parameters():,} parameters")
