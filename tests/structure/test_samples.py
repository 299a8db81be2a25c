"""One sample of the example inputs: tensors without a batch dimension are never cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ModelError
from deap_prune.structure.inputs import as_call
from deap_prune.structure.tracing.clean_copy import pristine
from deap_prune.structure.tracing.samples import learn_samples
from tests.helpers.networks import conv
from tests.structure.laws import check_laws


class Trunk(nn.Module):
    """Two convolutions and a mean over space; ``read`` makes the output from the features."""

    def __init__(self, read: Callable[..., Tensor], width: int = 6) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.words = conv(3, 7), conv(7, 9), nn.Linear(9, width), nn.Linear(5, width)
        self.read = read

    def features(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((-2, -1)))

    def forward(self, x: Any, *rest: Any) -> Any:
        return self.read(self, x, *rest)


def compared(net: Trunk, x: Tensor, words: Tensor) -> Tensor:
    return net.features(x) @ net.words(words).T


def clips(net: Trunk, frames: Tensor) -> Tensor:
    return net.features(frames).view(-1, 4, 6).amax(1)


def pairs(net: Trunk, x: Tensor) -> Tensor:
    left, right = net.features(x).chunk(2, 0)
    return (left - right).abs()


def mixed(net: Trunk, x: Tensor, matrix: Tensor) -> Tensor:
    return net.features(x @ matrix)


def shifted(net: Trunk, frames: Tensor) -> Tensor:
    return net.features(frames + torch.roll(frames, 1, 0))


def bag(net: Trunk, patches: Tensor) -> Tensor:
    features = net.features(patches)
    return (features.softmax(0) * features).sum(0, keepdim=True)


def listed(net: Trunk, images: list[Tensor]) -> list[Tensor]:
    return [net.features(image) for image in images]


def masked_image(net: Trunk, x: Tensor, mask: Tensor) -> Tensor:
    return net.features(x * mask)


def image(n: int) -> Tensor:
    return torch.randn(n, 3, 6, 6)


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...]]] = {
    "a batch": (lambda net, x: net.features(x), (image(5),), (image(1),)),
    "images and class texts": (compared, (image(4), torch.randn(11, 5)), (image(1), torch.randn(11, 5))),
    "as many texts as images": (compared, (image(4), torch.randn(4, 5)), (image(1), torch.randn(4, 5))),
    "one image and class texts": (compared, (image(1), torch.randn(11, 5)), (image(1), torch.randn(11, 5))),
    "frames of one clip": (clips, (image(4),), (image(4),)),
    "frames of three clips": (clips, (image(12),), (image(4),)),
    "pairs": (pairs, (image(2),), (image(2),)),
    "a matrix": (mixed, (image(3), torch.randn(6, 6)), (image(1), torch.randn(6, 6))),
    "a matrix as long as the batch": (mixed, (image(6), torch.randn(6, 6)), (image(1), torch.randn(6, 6))),
    "frames that influence each other": (shifted, (image(4),), (image(4),)),
    "a bag of patches": (bag, (image(5),), (image(5),)),
    "no batch dimension": (lambda net, x: net.features(x), (image(1)[0],), (image(1)[0],)),
    "a list of images": (listed, ([image(1)[0], image(1)[0]],), ([image(1)[0], image(1)[0]],)),
    "a mask that broadcasts": (masked_image, (image(6), torch.rand(6, 6)), (image(1), torch.rand(6, 6))),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sample(case: str) -> None:
    read, inputs, sample = CASES[case]
    space = check_laws(Trunk(read), inputs, sample=sample)
    assert {"a", "b"} <= {group.name for group in space.groups}


def test_the_user_declares_the_batch() -> None:
    model, inputs = Trunk(shifted), (image(4),)
    assert dp.trace(model, inputs, batched=(0,)).flops * 4 == dp.trace(model, inputs).flops
    assert dp.trace(model, inputs, batched=("frames",)[:0]).flops == dp.trace(model, inputs, batched=()).flops
    by_name = dp.trace(Trunk(lambda net, x: net.features(x)), image(4), batched=("x",))
    assert by_name.flops * 4 == dp.trace(Trunk(lambda net, x: net.features(x)), image(4), batched=()).flops
    with pytest.raises(ModelError, match="batched names argument 'image'"):
        dp.trace(model, inputs, batched=("image",))
    with pytest.raises(ModelError, match="batched is 'x'; give several values, each a whole number, or text"):
        dp.trace(model, inputs, batched="x")


def test_norms_with_batch_statistics_are_no_reason_against_a_batch() -> None:
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, track_running_stats=False), conv(4, 2)).eval()
    assert learn_samples(pristine(model), as_call(image(4))).rows == 1
