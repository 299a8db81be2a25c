"""One way to label the channels of a network, and the groups of it that the proof accepts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from deap_prune.structure.space import FilterGroup, Member, PruningSpace, Refusal
from deap_prune.structure.tracing.bisection import Bisection
from deap_prune.structure.tracing.grouping import (
    build_space,
    classes_of,
    observed_widths,
    settle_blocks,
    settle_tensors,
)
from deap_prune.structure.tracing.labels import LabelTracer
from deap_prune.structure.tracing.proof import Proof
from deap_prune.structure.tracing.width_attributes import WidthSearch


class Attempt:
    """Builds the space of labelled channels, and freezes what the proof refuses.

    Args:
        network: The network.
        proof: Its proof.
        declared: Attributes that hold widths, as the user declares them.
        tracer: The labels.
        ignored: Names of the modules that stay dense.
        total: FLOPs of the dense network.
        uncounted: Operators that are not counted.

    Attributes:
        space: The space of the labels, as far as it was built.
    """

    def __init__(
        self,
        network: nn.Module,
        proof: Proof,
        declared: Sequence[tuple[str, str]],
        tracer: LabelTracer,
        *,
        ignored: Collection[str],
        total: int,
        uncounted: Mapping[str, int],
    ) -> None:
        self.tracer = tracer
        self._network, self._proof, self._total, self._uncounted = network, proof, total, uncounted
        self._search = WidthSearch(network, proof, declared)
        _ignore(tracer, ignored)
        _freeze_shared(network, tracer)
        settle_tensors(tracer)
        settle_blocks(tracer)
        tracer.mixing.settle(tracer, classes_of(tracer))
        self._build()

    def at_once(self) -> PruningSpace | None:
        """The space if the proof of all its groups holds (attributes rewritten); None as soon as one group fails."""
        if not self._bisection.holds():
            self._bisection.locate(first_only=True)
        return None if self._bisection.failures else self._bisection.space

    def suspected(self) -> PruningSpace:
        """After :meth:`at_once`: the space with the group that failed among its refusals."""
        refused = [
            Refusal(member.layer, self.space.group(name).size, reason)
            for name, reason in self._bisection.failures.items()
            for member in _made(self.space.group(name))
        ]
        return replace(self.space, refused=(*self.space.refused, *refused))

    def proven(self) -> PruningSpace:
        """The space without the groups that the proof refuses."""
        if self._check_size_splits():
            self._build()
        while not self._bisection.holds():
            self._bisection.locate()
            if not self._bisection.failures:
                break
            for name, reason in self._bisection.failures.items():
                for labels in self._outputs(self.space.group(name)):
                    self.tracer.freeze(labels, reason)
            self._build()
        return self._bisection.space

    def _build(self) -> None:
        space = build_space(self._network, self.tracer, self._total, self._uncounted)
        self._search.observed = observed_widths(self.tracer, space)
        self.space = self._search.extended(space)
        self._bisection = Bisection(self.space, self._proof, self._search)

    def _outputs(self, group: FilterGroup) -> Iterator[Tensor]:
        """Labels of the channels of a group in each layer that makes or passes them."""
        for member in _made(group):
            use = next(call for call in self.tracer.calls if call.name == member.layer)
            yield torch.from_numpy(use.outputs[member.positions.reshape(-1)])

    def _check_size_splits(self) -> bool:
        """Freeze the labels that a line of code splits at fixed sizes; True if there were any.

        One group of each line is proven alone. This saves the bisection for the other groups that the same line splits.
        """
        classes, outputs = classes_of(self.tracer), {call.name: call.outputs for call in self.tracer.calls}
        frozen = False
        for line, parts in self.tracer.size_splits.items():
            labels = np.concatenate(parts)
            split = set(classes[labels].tolist())
            for group in self.space.groups:
                made = group.layers("filter") or group.layers("other")
                if split & set(classes[outputs[made[0].layer][made[0].positions[:, 0]]].tolist()):
                    space = self._search.extended(self.space)
                    fails = self._proof.failure(space, [group.name], counted=False)
                    if fails and not self._search.repair(space, group.name):
                        self.tracer.freeze(torch.from_numpy(labels), f"is split at fixed positions ({line})")
                        frozen = True
                    break
        return frozen


def _made(group: FilterGroup) -> list[Member]:
    """Layers that make or pass the channels of a group."""
    return [member for member in group.members if member.role != "reader"]


def _ignore(tracer: LabelTracer, names: Collection[str]) -> None:
    """Freeze the output channels of the named modules."""
    for call in tracer.calls:
        if any(call.name == name or call.name.startswith(f"{name}.") for name in names):
            tracer.freeze(torch.from_numpy(call.outputs), "is ignored (ignore=)")


def _freeze_shared(network: nn.Module, tracer: LabelTracer) -> None:
    """Freeze layers that share a parameter with another layer: narrowing one would narrow the other."""
    owners: dict[int, set[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    for names in owners.values():
        for call in tracer.calls:
            if len(names) > 1 and call.name in names and len({id(network.get_submodule(n)) for n in names}) > 1:
                others = ", ".join(sorted(names - {call.name}))
                for labels in (call.inputs, call.outputs):
                    tracer.freeze(torch.from_numpy(labels), f"'{call.name}' shares a parameter with '{others}'")
