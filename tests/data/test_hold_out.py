"""Held-out images of the validation data."""

from __future__ import annotations

import pytest
import torch

from deap_prune.data.hold_out import hold_out
from deap_prune.errors import DataError


def test_the_last_samples_or_batches_are_held_out() -> None:
    inputs, targets = torch.arange(10.0), torch.arange(10)
    (rest, rest_targets), held_out = hold_out((inputs, targets), 4)
    assert rest.tolist() == rest_targets.tolist() == list(range(6))
    assert held_out is not None and held_out[0].tolist() == [6, 7, 8, 9]
    batches = [(inputs[k : k + 3], targets[k : k + 3]) for k in (0, 3, 6)]
    assert hold_out(iter(batches), 4) == (batches[:1], batches[1:])
    assert hold_out((inputs, targets), 0) == ((inputs, targets), None)


def test_some_images_must_remain() -> None:
    inputs, targets = torch.arange(10.0), torch.arange(10)
    for data in ((inputs, targets), [(inputs, targets)]):
        with pytest.raises(DataError, match="guard=10 leaves no validation images"):
            hold_out(data, 10)
