"""Held-out images: the last part of the validation data, which the search measures but never selects by."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deap_prune.data.batches import Data, count_samples, is_tensor_pair
from deap_prune.errors import DataError


def hold_out(validation: Data, count: int) -> tuple[Data, Data | None]:
    """Split validation data into the images that the search uses and the images held out from it.

    Args:
        validation: Two tensors, or an iterable of batches.
        count: How many of the last samples to hold out; 0 holds out none. Of batches, the last ones that have at least
            ``count`` samples together are held out.

    Returns:
        The remaining data, and the held-out data or None.

    Raises:
        DataError: If no validation images remain.
    """
    if not count:
        return validation, None
    rest: Any
    held_out: Any
    if is_tensor_pair(validation):
        inputs, targets = validation
        rest, held_out = (inputs[:-count], targets[:-count]), (inputs[-count:], targets[-count:])
        remaining = len(rest[0])
    elif isinstance(validation, Tensor):
        rest, held_out = validation[:-count], validation[-count:]
        remaining = len(rest)
    else:
        rest, held_out = list(validation), []
        while rest and sum(map(count_samples, held_out)) < count:
            held_out.insert(0, rest.pop())
        remaining = len(rest)
    if not remaining:
        raise DataError(f"guard={count} leaves no validation images; hold out fewer, or give more")
    return rest, held_out
