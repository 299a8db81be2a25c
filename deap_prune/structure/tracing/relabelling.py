"""Other ways to label the channels of a network, under which channels that stay dense may shrink after all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from deap_prune.structure.inputs import Call, training_branches
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.grouping import classes_of
from deap_prune.structure.tracing.labels import Labels, LabelTracer


def follow_training(network: nn.Module, tracer: LabelTracer, inputs: Call) -> bool:
    """Follow the branches of training (auxiliary heads) if layers were idle or dead; True if the pass succeeded."""
    if not tracer.idle() and not tracer.dead:
        return False
    # A network that needs other inputs in training (a detector's targets) is traced in eval mode only.
    with training_branches(network), suppress(Exception):
        tracer.run(network, *inputs, counting=False)
        return True
    return False


def other_labels(
    network: nn.Module, space: PruningSpace, tracer: LabelTracer, inputs: Call, *, siblings: bool = False
) -> Iterator[LabelTracer]:
    """Labels under which refused channels may shrink, one way after the other.

    Channels that one attribute counts have equal widths. Channels that are folded into two dimensions shrink in the
    other one.

    Args:
        network: The network.
        space: A space of it, with refused channels.
        tracer: The labels of that space.
        inputs: Arguments of one forward pass.
        siblings: What holds for refused channels holds for those that modules of the same classes count too.
    """
    ways: list[tuple[set[str], Sequence[tuple[str, str, int | None]]]] = []
    if shared := _refused_shares(network, space, tracer, siblings=siblings):
        ways.append((set(), shared))
    if lines := _refused_folds(space, tracer):
        ways.append((lines, ()))
    for folds, places in ways:
        other = LabelTracer(network, folding_last=folds)
        other.run(network, *inputs)
        follow_training(network, other, inputs)
        for place in places:
            uses = [torch.from_numpy(use) for use in other.widths.get(place, ())]
            for use in uses[1:]:
                other.tie(uses[0], use, "has the width of channels that stay dense")
        yield other


def may_shrink(space: PruningSpace) -> bool:
    """Whether channels are refused because a slimmed network fails or differs."""
    return any(reason in r.reason for r in space.refused for reason in ("when slimmed", "masked and slimmed"))


def dense_channels(space: PruningSpace) -> int:
    """Output channels of layers that stay dense."""
    return sum(refusal.channels for refusal in space.refused)


def _refused_folds(space: PruningSpace, tracer: LabelTracer) -> set[str]:
    """Lines of code that fold channels into two dimensions, and whose channels a mixing or the proof refused."""
    reasons = ("is mixed with", "fails when slimmed", "masked and slimmed", "folded", "moved so that", "is read by no")
    layers = {r.layer for r in space.refused if any(reason in r.reason for reason in reasons)}
    refused = [call.outputs for call in tracer.calls if call.name in layers]
    if not refused:
        return set()
    labels = np.concatenate(refused)
    return {line for line, parts in tracer.folds.items() if np.isin(np.concatenate(parts), labels).any()}


def _refused_shares(
    network: nn.Module, space: PruningSpace, tracer: LabelTracer, *, siblings: bool
) -> list[tuple[str, str, int | None]]:
    """Attributes that count several kinds of channels, some of which the proof refused: these may need equal widths."""
    refused = {r.layer for r in space.refused if "output of the network" not in r.reason}
    labels = [call.outputs for call in tracer.calls if call.name in refused]
    if not labels:
        return []
    classes, dense = classes_of(tracer), np.concatenate(labels)

    def is_shared(uses: list[Labels]) -> bool:
        kinds = {tuple(classes[use]) for use in uses}
        return len(kinds) > 1 and len(set(map(len, kinds))) == 1

    shared = [place for place, uses in tracer.widths.items() if is_shared(uses)]
    guilty = [place for place in shared if any(np.isin(use, dense).any() for use in tracer.widths[place])]
    if not siblings:
        return guilty
    types = {type(network.get_submodule(module)) for module, _, _ in guilty}
    return [place for place in shared if type(network.get_submodule(place[0])) in types]
