"""The one pass over the calibration data: forward, and one backward where a gradient is asked for.

Hooks reduce what they see to a few numbers a channel at once, so memory does not grow with the number of images (tables
that keep a row an image end after ``reads.ROWS`` images).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from deap_prune.criteria.passes.context import Calibration, Found, add, gathers
from deap_prune.criteria.passes.layer_inputs import CHANGES, READ, Reads
from deap_prune.criteria.passes.layer_outputs import MADE, Makes
from deap_prune.criteria.passes.weights import filter_rows
from deap_prune.data.batches import count_samples
from deap_prune.progress import track
from deap_prune.structure.space import Member

PARAMETERS = frozenset({"weight_taylor", "gate_taylor", "gradient"})
BACKWARD = CHANGES | PARAMETERS | {"gradient_square", "output_gradient_square"}


class Recorder(Protocol):
    """Hooks on layers, told of the beginning and the end of every batch."""

    def begin(self, samples: int) -> None: ...  # noqa: D102
    def end(self) -> None: ...  # noqa: D102
    def found(self) -> Found: ...  # noqa: D102
    def remove(self) -> None: ...  # noqa: D102


@gathers(*READ, *MADE, *PARAMETERS)
def one_pass(calibration: Calibration, needs: frozenset[str]) -> Found:
    """Everything that a forward pass and one backward pass can tell."""
    kinds: tuple[tuple[frozenset[str], Callable[..., Recorder]], ...] = (
        (READ, Reads),
        (MADE, Makes),
        (PARAMETERS, _Parameters),
    )
    recorders = [make(calibration, needs) for names, make in kinds if names & needs]
    backward = bool(needs & BACKWARD)
    try:
        batches = track(calibration.batches, "collecting statistics", shown=calibration.progress)
        for number, batch in enumerate(batches):
            for recorder in recorders:
                recorder.begin(count_samples(batch))
            with torch.set_grad_enabled(backward):
                if backward:
                    calibration.loss_of(batch, number).backward()
                else:
                    calibration.run(batch)
            for recorder in recorders:
                recorder.end()
            calibration.network.zero_grad(set_to_none=True)
    finally:
        for recorder in recorders:
            recorder.remove()
    found: Found = {}
    for recorder in recorders:
        for group, by_need in recorder.found().items():
            found.setdefault(group, {}).update(by_need)
    return found


class _Parameters:
    """Gradients of the parameters, after every batch."""

    def __init__(self, calibration: Calibration, needs: frozenset[str]) -> None:
        self.calibration, self.needs, self.samples = calibration, needs, 0
        self.taylor: dict[tuple[str, str, str], list[Tensor]] = {}

    def begin(self, samples: int) -> None:
        self.samples = samples

    def end(self) -> None:
        network, total = self.calibration.network, self.calibration.gradients
        for group in self.calibration.space.groups:
            for need, role, names in (
                ("weight_taylor", "filter", ("weight",)),
                ("gate_taylor", "norm", ("weight", "bias")),
            ):
                for member in group.layers(role) if need in self.needs else ():
                    change = _first_order(network, member, names)
                    if change is not None:
                        self.taylor.setdefault((group.name, need, member.layer), []).append(change)
        if "gradient" in self.needs:
            share = self.samples / self.calibration.samples
            for name, p in network.named_parameters():
                if p.grad is not None:
                    total[name] = total.get(name, 0) + share * p.grad

    def found(self) -> Found:
        found: Found = {}
        for (name, need, layer), changes in self.taylor.items():
            found.setdefault(name, {}).setdefault(need, {})[layer] = torch.stack(changes)
        if "gradient" in self.needs:
            found_rows(self.calibration, "gradient", self.calibration.gradients, found)
        return found

    def remove(self) -> None:
        pass


def found_rows(calibration: Calibration, need: str, tensors: dict[str, Tensor], found: Found) -> Found:
    """Weight-shaped tensors, by parameter name, as (filters, k) of every layer that has one."""
    for group in calibration.space.groups:
        for member in group.layers("filter"):
            tensor = tensors.get(f"{member.layer}.weight")
            rows = None if tensor is None else filter_rows(calibration.network, member, "weight", tensor)
            if rows is not None:
                add(found, group, need, rows, member)
    return found


def _first_order(network: nn.Module, member: Member, names: tuple[str, ...]) -> Tensor | None:
    """Sum over each filter of value x gradient, shape (filters,); None where the layer has no such parameters."""
    layer = network.get_submodule(member.layer)
    total: Tensor | None = None
    for name in names:
        value = getattr(layer, name, None)
        if isinstance(value, nn.Parameter) and value.grad is not None:
            rows = filter_rows(network, member, name, value.detach() * value.grad)
            if rows is not None:
                total = rows.sum(dim=1) if total is None else total + rows.sum(dim=1)
    return total
