"""From a network to its pruning space: labels propose the couplings, a proof accepts or refuses each of them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import nn

from deap_prune.errors import ModelError, did_you_mean
from deap_prune.structure.inputs import Call, Inputs, first_line, first_sample, training_branches
from deap_prune.structure.slim import unwrap
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.clean_copy import check_finite, check_hooks, pristine
from deap_prune.structure.tracing.fvcore_count import count_flops, without_fast_paths
from deap_prune.structure.tracing.grouping import build_space, classes_of
from deap_prune.structure.tracing.labels import LabelTracer
from deap_prune.structure.tracing.proof import Proof


@torch.inference_mode(False)  # there composite operators are not taken apart
@without_fast_paths()
def trace(model: nn.Module, example_inputs: Inputs, *, ignore: Iterable[str | nn.Module] = ()) -> PruningSpace:
    """Find the filter groups of a network, and prove them.

    One forward pass in eval mode follows every channel through the network; channels that meet are grouped. Then the
    masked and the slimmed network are compared on a randomised copy, and the closed-form cost with fvcore's count: a
    group for which they differ is found by bisection, refused with a reason, and stays dense.

    Args:
        model: Any network, on any device, wrapped in (Distributed)DataParallel or not; it comes back unchanged.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments; one sample is used.
        ignore: What to leave dense: modules, their names, or patterns of names (``"backbone.*"``); a module covers what
            is below it.

    Examples:
        >>> print(dp.trace(model, images))
        2 groups, 14 filters; 15,744 flops (1 multiply-add = 1 flop; at least 8.1% stay), 1,163 parameters
          0 (8 filters) filters: 0; norms: 1; readers: 3
          3 (6 filters) filters: 3; readers: 6
          dense: 6 (5): is an output of the network

    Raises:
        ModelError: If weights are not finite, the forward pass fails or is another one without its hooks, an ignored
            name does not exist (or is one instead of several), or nothing in the network can be pruned.
    """
    network = pristine(unwrap(model))
    check_finite(network)
    inputs = first_sample(example_inputs, next(network.parameters(), torch.empty(0)).device)
    check_hooks(unwrap(model), network, inputs)
    ignored = _named(model, ignore)
    tracer = LabelTracer(network)
    try:
        tracer.run(network, *inputs)
    except Exception as error:
        raise ModelError(f"the network fails on the example inputs: {first_line(error)}") from error
    try:
        usual = all(p.dtype == torch.float32 for p in network.parameters())
        total, uncounted = count_flops(network, inputs, consume=usual)
    except Exception as error:
        raise ModelError(
            f"torch.jit, by which flops are counted, can't trace the network: {first_line(error)}; layers and tensors "
            "that forward uses must be attributes of modules (nn.ModuleList, nn.Parameter, register_buffer)"
        ) from error
    in_training = _follow_training(network, tracer, inputs)
    _ignore(tracer, ignored)
    _freeze_shared(network, tracer)
    space = build_space(network, tracer, total, uncounted)
    proof = Proof.of(network, inputs, in_training=in_training)
    if _settle_doubts(space, tracer, proof):
        space = build_space(network, tracer, total, uncounted)
    while space.groups and (guilty := proof.guilty_groups(space)):
        for name, reason in guilty.items():
            for member in space.group(name).members:
                call = next(c for c in tracer.calls if c.name == member.layer)
                if member.role != "reader":
                    tracer.freeze(torch.from_numpy(call.outputs[member.positions.reshape(-1)]), reason)
        space = build_space(network, tracer, total, uncounted)
    if not space.groups:
        reasons = "; ".join(sorted({f"{r.layer or 'the only layer'}: {r.reason}" for r in space.refused})[:5])
        raise ModelError(
            f"the network has no filters that can be pruned ({reasons or 'no layer makes channels'}); a prunable "
            "filter needs a convolution or linear layer whose outputs another layer reads"
        )
    return space


def _follow_training(network: nn.Module, tracer: LabelTracer, inputs: Call) -> bool:
    """Follow the branches that run in training only (auxiliary heads), where layers were idle; whether it went well."""
    if not tracer.idle():
        return False
    # A network that wants other inputs in training (a detector's targets) is left as eval mode shows it.
    with training_branches(network), suppress(Exception):
        tracer.run(network, *inputs, counting=False)
        return True
    return False


def _settle_doubts(space: PruningSpace, tracer: LabelTracer, proof: Proof) -> bool:
    """Freeze what a line of code splits at fixed sizes, judged by one group it splits; whether any was frozen.

    A guilty group is found by bisection anyway: this spares it for all the other groups that the same line splits.
    """
    classes, outputs = classes_of(tracer), {call.name: call.outputs for call in tracer.calls}
    frozen = False
    for line, parts in tracer.doubts.items():
        labels = np.concatenate(parts)
        split = set(classes[labels].tolist())
        for group in space.groups:
            made = group.layers("filter") or group.layers("other")
            if split & set(classes[outputs[made[0].layer][made[0].positions[:, 0]]].tolist()):
                if proof.guilty(space, [group.name]):
                    tracer.freeze(torch.from_numpy(labels), f"is split at fixed positions ({line})")
                    frozen = True
                break
    return frozen


def ignored_names(model: nn.Module, ignore: Iterable[str | nn.Module]) -> tuple[str, ...]:
    """What is to be ignored, with names in place of modules.

    Raises:
        ModelError: If one name or module is given instead of several, or a module is no part of the network.
    """
    if isinstance(ignore, str):
        raise ModelError(f"ignore is the text {ignore!r}; give several names, such as ({ignore!r},)")
    if isinstance(ignore, nn.Module):
        raise ModelError(f"ignore is one {type(ignore).__name__}; give several modules or names, such as [module]")
    if not isinstance(ignore, Iterable):
        raise ModelError(f"ignore is {ignore!r}; give modules or names, such as [module]")
    names = {module: name for name, module in unwrap(model).named_modules() if name}
    found = []
    for given in ignore:
        if isinstance(given, nn.Module) and given not in names:
            raise ModelError(f"ignore holds a {type(given).__name__} that is no part of the network")
        found.append(names[given] if isinstance(given, nn.Module) else given)
    return tuple(found)


def _named(model: nn.Module, ignore: Iterable[str | nn.Module]) -> set[str]:
    """The names of modules that are given themselves, by name, or by a pattern of names."""
    names = [name for name, _ in unwrap(model).named_modules() if name]
    found: set[str] = set()
    for given in ignored_names(model, ignore):
        matched = {name for name in names if name == given or fnmatchcase(name, given)}
        if not matched:
            raise ModelError(f"ignore names '{given}', which is no module of the network; {did_you_mean(given, names)}")
        found |= matched
    return found


def _ignore(tracer: LabelTracer, names: set[str]) -> None:
    """Freeze what the named modules make."""
    for call in tracer.calls:
        if any(call.name == name or call.name.startswith(f"{name}.") for name in names):
            tracer.freeze(torch.from_numpy(call.outputs), "was told to be ignored")


def _freeze_shared(network: nn.Module, tracer: LabelTracer) -> None:
    """Layers that share a parameter with another layer stay dense: narrowing one would narrow the other."""
    owners: dict[int, set[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    for names in owners.values():
        for call in tracer.calls:
            if len(names) > 1 and call.name in names and len({id(network.get_submodule(n)) for n in names}) > 1:
                others = ", ".join(sorted(names - {call.name}))
                for labels in (call.inputs, call.outputs):
                    tracer.freeze(torch.from_numpy(labels), f"'{call.name}' shares a parameter with '{others}'")
