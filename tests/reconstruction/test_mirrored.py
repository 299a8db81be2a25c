"""Mirror images in refinement: where the dense network classifies them alike, and there are too few images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.data.batches import default_forward
from deap_prune.reconstruction.mirrored import with_mirrored
from deap_prune.reconstruction.refine import Refiner
from tests.helpers.networks import conv_bn


class Pooled(nn.Module):
    """Classifies by the mean of what its layers make; with ``side``, the left half of it alone."""

    def __init__(self, *, side: bool = False) -> None:
        super().__init__()
        self.side = side
        self.first, self.second, self.fc = conv_bn(1, 8), conv_bn(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        return self.fc((x[..., : x.shape[-1] // 2] if self.side else x).mean((2, 3)))


def symmetric() -> nn.Module:
    """A network that gives an image and its mirror image the same logits."""
    model = Pooled().double().eval()
    with torch.no_grad():
        for layer in (model.first[0], model.second[0]):
            layer.weight.add_(layer.weight.flip(-1).clone())
    return model


def lopsided() -> nn.Module:
    """A network that tells whether the brighter half of an image is the left one."""
    model = Pooled(side=True).double().eval()
    with torch.no_grad():
        for layer, kernel in ((model.first[0], 1.0), (model.second[0], 1.0)):
            layer.weight.zero_()[..., 1, 1] = kernel
        model.fc.weight.copy_(torch.tensor([[-1.0], [1.0]]).double().expand(2, 8))
        model.fc.bias.copy_(torch.tensor([4.5, -4.5]).double())
    return model


def halves(count: int = 40) -> Tensor:
    """Images of which every second one is bright on the left, the others on the right."""
    images = torch.zeros(count, 1, 6, 6, dtype=torch.float64)
    images[::2, ..., :3] = 1
    images[1::2, ..., 3:] = 1
    return images + 0.01 * torch.rand(images.shape, dtype=torch.float64)


@pytest.mark.parametrize("most", [40, 41, 60, 80, 1000])
def test_mirror_images_follow(most: int) -> None:
    x, y = halves(), torch.arange(40) % 2
    images, targets = with_mirrored(symmetric(), (x, y), most, forward=default_forward)
    extra = min(most, 80) - 40
    assert torch.equal(images[:40], x) and torch.equal(images[40:], x[:extra].flip(-1))
    assert torch.equal(targets, torch.cat([y, y[:extra]]))


def test_nested_batches_are_mirrored_alike() -> None:
    batch = {"left": halves(), "mask": torch.ones(40, 1, 6, 6, dtype=torch.bool), "labels": torch.arange(40) % 2}

    def forward(model: nn.Module, b: Any) -> tuple[Tensor, Tensor]:
        return model(b["left"]), b["labels"]

    doubled = with_mirrored(symmetric(), batch, 80, forward=forward)
    assert torch.equal(doubled["left"][40:], batch["left"].flip(-1)) and len(doubled["labels"]) == 80
    assert torch.equal(doubled["mask"][40:], batch["mask"])  # no image by its type


def test_a_network_that_tells_mirror_images_apart_gets_none() -> None:
    model, x = lopsided(), halves()
    assert (model(x).argmax(1) != model(x.flip(-1)).argmax(1)).all()
    assert len(with_mirrored(model, (x, torch.arange(40) % 2), 80, forward=default_forward)[0]) == 40


def test_outputs_that_are_no_classes_get_none() -> None:
    x = halves()
    batch = (x, torch.rand(40, 2, dtype=torch.float64))  # values, no labels
    assert len(with_mirrored(symmetric(), batch, 80, forward=default_forward)[0]) == 40


def test_refinement_uses_them_only_beyond_the_images_there_are() -> None:
    model, x = symmetric(), torch.rand(40, 1, 6, 6, dtype=torch.float64)
    space, y = dp.trace(model, x), torch.arange(40) % 2
    masks = dp.Masks.random(space, keep=0.5, seed=0)

    def refined(images: Tensor, targets: Tensor, most: int) -> Tensor:
        refiner = Refiner(model, space, (images, targets), images=most, rows=10**6)
        with torch.no_grad():
            return refiner(masks, dp.slim(model, space, masks))(x)

    assert torch.equal(refined(x, y, 40), refined(x[:40], y[:40], 40))
    alone, mirrored = refined(x, y, 40), refined(x, y, 80)
    assert not torch.allclose(alone, mirrored)
    # Which images are held out decides on ridges; without noise to fit, the order matters little.
    by_hand = refined(torch.cat([x, x.flip(-1)]), torch.cat([y, y]), 80)
    assert (mirrored - by_hand).norm() < (alone - by_hand).norm()
