"""Run a network on the data before the work begins: errors name the data, and what does not fit it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.data.batches import Forward, check_labels, default_forward, parts_of, samples_of, tensors_of
from deap_prune.data.unchanged import unchanged
from deap_prune.errors import DataError, PruneError, PruneWarning
from deap_prune.randomness import same_draws

MOST_ROUNDING = 1e-3
"""Largest difference between two runs of a network, relative to its outputs, that rounding may explain."""


@contextmanager
def errors_name(data: str) -> Iterator[None]:
    """Name the data that a network, or the user's function, fails on.

    Args:
        data: Name of the data in messages.

    Raises:
        DataError: If the body raises an error that is not ours; a lack of memory stays what it is.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{data}: {error}") from error
    except (PruneError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"the network fails on the {data} data: {type(error).__name__}: {str(error)[:500]}; batches are (inputs, "
            "targets), with inputs as the network takes them (else pass forward=)"
        ) from error


def first_forward(forward: Forward, model: nn.Module, batch: Any, *, name: str, labels: bool = True) -> tuple[Any, Any]:
    """Outputs and targets of a batch; errors name the data.

    Args:
        forward: Function of (model, batch) to (outputs, targets).
        model: The network.
        batch: A batch on the network's device.
        name: Name of the data in messages.
        labels: Whether to check the labels.

    Raises:
        DataError: If the network fails on the batch, or labels are outside its classes.
    """
    with errors_name(name):
        outputs, targets = unchanged(forward, model, batch, name="the network (or forward)")
    if labels:
        check_labels(outputs, targets, name=name)
    return outputs, targets


def check_batches(
    forward: Forward, model: nn.Module, batches: Sequence[Any], *, name: str, check: Callable[[Any, Any], Any] | None
) -> None:
    """Raise an error unless the network takes the data, labels fit its classes, and the first batch can be evaluated.

    Of the other batches those are run whose samples have another shape or type than those before.

    Args:
        forward: Function of (model, batch) to (outputs, targets).
        model: The network.
        batches: The data.
        name: Name of the data in messages.
        check: Function of (outputs, targets) of the first batch; raises an error if they do not fit. None for data
            whose targets may not be used.

    Raises:
        DataError: If one of these does not hold.
    """
    if not batches:
        return
    outputs, targets = first_forward(forward, model, batches[0], name=name, labels=check is not None)
    check_later_batches(forward, model, batches, name=name)
    if check is None:
        return
    for batch in batches[1:] if forward is default_forward else ():
        check_labels(outputs, parts_of(batch)[1], name=name)
    try:
        check(outputs, targets)
    except Exception as error:
        if targets is None:
            raise DataError(
                f"the {name} data has no targets; give pairs of inputs and targets, or labels=False with objectives "
                "that need none, such as ('agreement', 'flops')"
            ) from error
        kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
        raise DataError(
            f"the objectives fail on the {name} data: {kind}{error}; class labels are whole numbers, "
            "one a sample (labels.long()); for other targets give your own loss (loss=) and objectives "
            "that suit it, such as ('loss', 'flops') or one of your own (dp.register_objective)"
        ) from error


def check_later_batches(forward: Forward, model: nn.Module, batches: Sequence[Any], *, name: str) -> None:
    """Run the network on the batches whose samples have another shape or type than those before.

    Raises:
        DataError: If it fails on one.
    """
    seen = {_outline(batches[0])}
    for batch in batches[1:]:
        if (outline := _outline(batch)) not in seen:
            seen.add(outline)
            first_forward(forward, model, batch, name=name, labels=False)


def check_draws(forward: Forward, model: nn.Module, batches: Sequence[Any]) -> None:
    """Check on two samples that outputs and targets follow from the inputs, and warn of random draws.

    Raises:
        DataError: If they differ although the global generators are seeded alike.
    """
    few = [samples_of(batch, slice(2)) for batch in batches[:1]]

    def run(seed: int) -> list[Tensor]:
        with same_draws(seed):
            return [x.clone() for x in tensors_of([forward(model, batch) for batch in few]) if x.is_floating_point()]

    try:
        first, again, other = run(0), run(0), run(1)
    except Exception:  # it may need more samples
        return
    remedy = "dropout that stays on in evaluation (F.dropout needs training=self.training), or noise"
    if not _alike(first, again):
        raise DataError(
            "the network (or forward) gives other outputs or targets when it runs on the same batch again, so "
            f"candidates can't be compared: find what it changes or draws ({remedy} from a generator of its own); "
            "draws from the global generators (torch.randn without generator=) are repeated for each candidate"
        )
    if not _alike(first, other):
        warnings.warn(
            f"the network (or forward) draws random numbers in evaluation: {remedy}; all candidates get the same "
            "draws, so their values hold for these draws",
            PruneWarning,
            stacklevel=4,
        )


def _alike(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether tensors are equal but for rounding."""
    return len(one) == len(other) and all(
        x.shape == y.shape and not bool((x - y).abs().amax() > MOST_ROUNDING * x.abs().amax())
        for x, y in zip(one, other, strict=True)
        if x.numel()
    )


def _outline(batch: Any) -> str:
    """Structure of a batch, with the shapes and types of its samples."""

    def part(leaf: Any) -> str:
        return f"{leaf.dtype} {tuple(leaf.shape[1:])}" if isinstance(leaf, Tensor) else type(leaf).__name__

    return repr(tree_map(part, batch))
