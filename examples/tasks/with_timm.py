"""A network of timm, with timm's own preprocessing."""

import timm
import torch

import deap_prune as dp

model = timm.create_model("lcnet_050", pretrained=False).eval()  # pretrained=True for trained weights
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))  # for a dataset of your images
images, labels = torch.randn(16, 3, 64, 64), torch.randint(1000, (16,))  # stand for your images

space = dp.trace(model, images[:1])
print(f"half of every layer's filters: {space.half_flops / space.flops:.0%} of the multiply-adds")
result = dp.search(
    model,
    images[:1],
    calibration=(images[:8], labels[:8]),
    validation=(images[8:], labels[8:]),
    criteria=("l1", "bn_scale"),
    objectives=("agreement",),  # with the dense network: needs no labels
    labels=False,
    max_flops=0.6,
    population=4,
    generations=1,
    refine=False,  # leave it out: refinement re-fits the front layer by layer
)
small = result.slim(result.best)
print(f"{result.best.params:,} of {space.params:,} parameters, outputs {tuple(small(images).shape)}")
