"""Images as the fitness reads them."""

from __future__ import annotations

import pytest
import torch

from deap_prune.data.draws import augmented
from deap_prune.errors import ConfigError


def test_augmented_images_are_shifted_and_keep_their_labels() -> None:
    images, labels = torch.rand(6, 3, 16, 16) + 1, torch.arange(6)
    ((moved, moved_labels),) = augmented([(images, labels)], 0)
    assert torch.equal(moved_labels, labels) and not torch.equal(moved, images)
    for before, after in zip(images, moved, strict=True):  # every pixel is 0, or a pixel of the image
        assert set(after[after > 0].tolist()) <= set(before.flatten().tolist())
        assert (after[0] > 0).sum() >= 14 * 14


def test_the_seed_decides_the_shifts() -> None:
    batches = [(torch.rand(6, 3, 16, 16), torch.arange(6)) for _ in range(2)]
    first, again, different = (augmented(batches, seed) for seed in (0, 0, 1))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one[0], two[0])
    assert not torch.equal(first[0][0], different[0][0])


def test_other_batches_than_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="augment takes batches"):
        augmented([(torch.rand(6, 16), torch.arange(6))], 0)
