"""Trace a network: channel labels propose couplings, and a proof accepts or refuses each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated

import numpy as np
import torch
from torch import nn

from deap_prune.arguments import checked
from deap_prune.data.batches import tensors_of
from deap_prune.errors import ModelError, did_you_mean
from deap_prune.structure.inputs import Call, Inputs, as_call, first_line, on_device, training_branches
from deap_prune.structure.slim import unwrap
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.bisection import Bisection
from deap_prune.structure.tracing.clean_copy import check_finite, pristine, settle_hooks
from deap_prune.structure.tracing.fvcore_count import count_flops, without_fast_paths
from deap_prune.structure.tracing.grouping import (
    build_space,
    classes_of,
    observed_widths,
    settle_blocks,
    settle_tensors,
)
from deap_prune.structure.tracing.labels import Labels, LabelTracer
from deap_prune.structure.tracing.proof import Proof
from deap_prune.structure.tracing.samples import chosen_samples, learn_samples
from deap_prune.structure.tracing.width_attributes import WidthSearch, declared_widths


@checked
@torch.inference_mode(False)  # inference mode does not decompose composite operators
@without_fast_paths()
def trace(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    ignore: Annotated[Iterable[str | nn.Module], ModelError] = (),
    batched: Annotated[Iterable[int | str] | None, ModelError] = None,
    widths: Mapping[str, str] | None = None,
) -> PruningSpace:
    """Find the filter groups of a network and prove them.

    One forward pass in eval mode follows every channel through the network and groups the channels that meet. Then the
    masked and the slimmed network are compared on a randomised copy, and the closed-form cost with fvcore's count.
    Groups for which they differ are located by bisection; they stay dense, with the reason.

    Args:
        model: Any network, on any device, wrapped in (Distributed)DataParallel or not; it comes back unchanged.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments. One sample of the
            batch is used.
        ignore: Modules that stay dense, with their submodules: modules, names, or patterns of names
            (``"backbone.*"``).
        batched: Positions or names of the arguments whose first dimension is the batch; empty if the example inputs are
            one sample as they are. None: learned from runs on parts of the batch.
        widths: Attributes of modules that hold a width: ``"block.channels"`` to the name of the layer whose output
            channels it counts (``"block.conv:in"``: input channels). The trace finds most of them on its own.

    Examples:
        >>> for group in dp.trace(model, images).groups:
        ...     print(group)
        0 (8 filters) filters: 0; norms: 1; readers: 3
        3 (6 filters) filters: 3; readers: 6

    Raises:
        ModelError: If weights are not finite, the forward pass fails, forward hooks change the outputs, a name in
            ``ignore`` or ``batched`` does not exist, either is not a sequence, or no filter can be pruned.
    """
    network = pristine(unwrap(model))
    check_finite(network)
    for tensor in tensors_of(example_inputs):
        if tensor.is_meta or not tensor.numel():
            raise ModelError("the example inputs hold a tensor without values; give at least one real sample")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise ModelError("the example inputs hold a sparse or quantized tensor; give dense ones (to_dense())")
    call = on_device(as_call(example_inputs), next(network.parameters(), torch.empty(0)).device)
    samples = learn_samples(network, call) if batched is None else chosen_samples(network, call, batched)
    inputs = samples.first(call)
    network = settle_hooks(unwrap(model), network, inputs)
    ignored = _module_names(model, ignore)
    tracer = LabelTracer(network)
    try:
        tracer.run(network, *inputs)
    except Exception as error:
        raise ModelError(f"the network fails on the example inputs: {first_line(error)}") from error
    usual = all(p.dtype == torch.float32 for p in network.parameters())
    total, uncounted = count_flops(network, inputs, consume=usual)
    in_training = _follow_training(network, tracer, inputs)
    proof = Proof.of(network, inputs, samples=samples, in_training=in_training)
    search = partial(WidthSearch, network, proof, declared_widths(network, widths or {}))
    attempt = partial(_proven, network, proof=proof, ignored=ignored, total=total, uncounted=uncounted)
    space = attempt(tracer, search=search())
    for other in _other_labels(network, space, tracer, inputs):
        second = attempt(other, search=search())
        space = second if second.min_flops < space.min_flops else space
        if not _may_shrink(space):
            break
    if proof.cost_varies_known:
        space = replace(space, cost_varies=True)
    if space.groups and not space.flops:
        raise ModelError("no multiply-adds were counted: the network returns no tensor that depends on its inputs")
    if not space.groups:
        raise _nothing_to_prune(network, space)
    return space


def _nothing_to_prune(network: nn.Module, space: PruningSpace) -> ModelError:
    """The error for a network without groups, with the first reasons."""
    if quantised := [name for name, module in network.named_modules() if "quantized" in type(module).__module__]:
        return ModelError(f"'{quantised[0]}' is quantised, and nothing else can be pruned: prune first, then quantise")
    reasons = "; ".join(sorted({f"{r.layer or 'the only layer'}: {r.reason}" for r in space.refused})[:5])
    return ModelError(
        f"the network has no filters that can be pruned ({reasons or 'no layer makes channels'}); a prunable "
        "filter needs a convolution or linear layer whose outputs another layer reads"
    )


def _other_labels(network: nn.Module, space: PruningSpace, tracer: LabelTracer, inputs: Call) -> Iterator[LabelTracer]:
    """Labels under which refused channels may shrink after all, one way after the other.

    Channels that one attribute counts have equal widths. Channels that are folded into two dimensions shrink in the
    other one.
    """
    ways: list[tuple[set[str], Sequence[tuple[str, str, int | None]]]] = []
    if shared := _refused_shares(space, tracer):
        ways.append((set(), shared))
    if lines := _refused_folds(space, tracer):
        ways.append((lines, ()))
    for folds, places in ways:
        other = LabelTracer(network, folding_last=folds)
        other.run(network, *inputs)
        _follow_training(network, other, inputs)
        for place in places:
            uses = [torch.from_numpy(use) for use in other.widths.get(place, ())]
            for use in uses[1:]:
                other.tie(uses[0], use, "has the width of channels that stay dense")
        yield other


def _may_shrink(space: PruningSpace) -> bool:
    """Whether channels are refused because a slimmed network fails or differs."""
    return any(reason in r.reason for r in space.refused for reason in ("when slimmed", "masked and slimmed"))


def _proven(
    network: nn.Module,
    tracer: LabelTracer,
    *,
    proof: Proof,
    search: WidthSearch,
    ignored: set[str],
    total: int,
    uncounted: Mapping[str, int],
) -> PruningSpace:
    """The space of a traced network without the groups that the proof refuses."""
    _ignore(tracer, ignored)
    _freeze_shared(network, tracer)
    settle_tensors(tracer)
    settle_blocks(tracer)
    tracer.mixing.settle(tracer, classes_of(tracer))

    def built() -> PruningSpace:
        space = build_space(network, tracer, total, uncounted)
        search.observed = observed_widths(tracer, space)
        return search.extended(space)

    space = built()
    if _check_size_splits(space, tracer, proof, search):
        space = built()
    while True:
        bisection = Bisection(space, proof, search)
        bisection.run()
        if not bisection.failures:
            return bisection.space
        for name, reason in bisection.failures.items():
            for member in space.group(name).members:
                use = next(c for c in tracer.calls if c.name == member.layer)
                if member.role != "reader":
                    tracer.freeze(torch.from_numpy(use.outputs[member.positions.reshape(-1)]), reason)
        space = built()


def _refused_folds(space: PruningSpace, tracer: LabelTracer) -> set[str]:
    """Lines of code that fold channels into two dimensions, and whose channels a mixing or the proof refused."""
    reasons = ("is mixed with", "fails when slimmed", "masked and slimmed", "folded", "moved so that", "is read by no")
    layers = {r.layer for r in space.refused if any(reason in r.reason for reason in reasons)}
    refused = [call.outputs for call in tracer.calls if call.name in layers]
    if not refused:
        return set()
    labels = np.concatenate(refused)
    return {line for line, parts in tracer.folds.items() if np.isin(np.concatenate(parts), labels).any()}


def _refused_shares(space: PruningSpace, tracer: LabelTracer) -> list[tuple[str, str, int | None]]:
    """Attributes that count several kinds of channels, some of which the proof refused: these may need equal widths."""
    refused = {r.layer for r in space.refused if "output of the network" not in r.reason}
    labels = [call.outputs for call in tracer.calls if call.name in refused]
    if not labels:
        return []
    classes, dense = classes_of(tracer), np.concatenate(labels)

    def is_shared(uses: list[Labels]) -> bool:
        kinds = {tuple(classes[use]) for use in uses}
        return len(kinds) > 1 and len(set(map(len, kinds))) == 1 and any(np.isin(use, dense).any() for use in uses)

    return [place for place, uses in tracer.widths.items() if is_shared(uses)]


def _follow_training(network: nn.Module, tracer: LabelTracer, inputs: Call) -> bool:
    """Follow the branches of training (auxiliary heads) if layers were idle or dead; True if the pass succeeded."""
    if not tracer.idle() and not tracer.dead:
        return False
    # A network that needs other inputs in training (a detector's targets) is traced in eval mode only.
    with training_branches(network), suppress(Exception):
        tracer.run(network, *inputs, counting=False)
        return True
    return False


def _check_size_splits(space: PruningSpace, tracer: LabelTracer, proof: Proof, search: WidthSearch) -> bool:
    """Freeze the labels that a line of code splits at fixed sizes; True if there were any.

    One group of each line is proven alone. This saves the bisection for the other groups that the same line splits.
    """
    classes, outputs = classes_of(tracer), {call.name: call.outputs for call in tracer.calls}
    frozen = False
    for line, parts in tracer.size_splits.items():
        labels = np.concatenate(parts)
        split = set(classes[labels].tolist())
        for group in space.groups:
            made = group.layers("filter") or group.layers("other")
            if split & set(classes[outputs[made[0].layer][made[0].positions[:, 0]]].tolist()):
                space = search.extended(space)
                if proof.failure(space, [group.name], counted=False) and not search.repair(space, group.name):
                    tracer.freeze(torch.from_numpy(labels), f"is split at fixed positions ({line})")
                    frozen = True
                break
    return frozen


def ignored_names(model: nn.Module, ignore: Iterable[str | nn.Module]) -> tuple[str, ...]:
    """Names and patterns of the modules to ignore, with modules replaced by their names.

    Raises:
        ModelError: If ``ignore`` is one name or module instead of several, or a module is not in the network.
    """
    if isinstance(ignore, str):
        raise ModelError(f"ignore is the text {ignore!r}; give several names, such as ({ignore!r},)")
    if isinstance(ignore, nn.Module):
        raise ModelError(f"ignore is one {type(ignore).__name__}; give several modules or names, such as [module]")
    if not isinstance(ignore, Iterable):
        raise ModelError(f"ignore is {ignore!r}; give modules or names, such as [module]")
    names = {module: name for name, module in unwrap(model).named_modules() if name}
    ignored = []
    for entry in ignore:
        if isinstance(entry, nn.Module) and entry not in names:
            raise ModelError(f"ignore holds a {type(entry).__name__} that is not in the network")
        ignored.append(names[entry] if isinstance(entry, nn.Module) else entry)
    return tuple(ignored)


def _module_names(model: nn.Module, ignore: Iterable[str | nn.Module]) -> set[str]:
    """Names of all modules that ``ignore`` lists, by module, name or pattern."""
    names = [name for name, _ in unwrap(model).named_modules() if name]
    ignored: set[str] = set()
    for pattern in ignored_names(model, ignore):
        matched = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not matched:
            raise ModelError(
                f"ignore names '{pattern}', which is no module of the network; {did_you_mean(pattern, names)}"
            )
        ignored |= matched
    return ignored


def _ignore(tracer: LabelTracer, names: set[str]) -> None:
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
