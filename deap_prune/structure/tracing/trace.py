"""Trace a network: channel labels propose couplings, and a proof accepts or refuses each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated

import torch
from torch import nn

from deap_prune.arguments import checked
from deap_prune.data.batches import tensors_of
from deap_prune.errors import ModelError, did_you_mean
from deap_prune.structure.inputs import Call, Inputs, as_call, first_line, on_device
from deap_prune.structure.slim import unwrap
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.attempt import Attempt
from deap_prune.structure.tracing.clean_copy import check_finite, pristine, settle_hooks
from deap_prune.structure.tracing.fvcore_count import count_flops, without_fast_paths
from deap_prune.structure.tracing.labels import LabelTracer
from deap_prune.structure.tracing.proof import Proof
from deap_prune.structure.tracing.relabelling import dense_channels, follow_training, may_shrink, other_labels
from deap_prune.structure.tracing.samples import chosen_samples, learn_samples
from deap_prune.structure.tracing.width_attributes import declared_widths


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
    in_training = follow_training(network, tracer, inputs)
    proof = Proof.of(network, inputs, samples=samples, in_training=in_training)
    declared = declared_widths(network, widths or {})
    attempt = partial(Attempt, network, proof, declared, ignored=ignored, total=total, uncounted=uncounted)
    space = _best(network, attempt, tracer, inputs)
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


def _best(network: nn.Module, attempt: Callable[..., Attempt], tracer: LabelTracer, inputs: Call) -> PruningSpace:
    """The space with the fewest multiply-adds if each group keeps one filter, of several ways to label the channels.

    As soon as one group fails, another way is taken if all its groups hold and no more channels stay dense.
    """
    first = attempt(tracer)
    space = first.at_once()
    if space is None:
        for other in other_labels(network, first.suspected(), tracer, inputs, siblings=True):
            second = attempt(other).at_once()
            if second is not None and dense_channels(second) <= dense_channels(first.space):
                return second
        space = first.proven()
    for other in other_labels(network, space, tracer, inputs):
        second = attempt(other).proven()
        space = second if second.min_flops < space.min_flops else space
        if not may_shrink(space):
            break
    return space


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
            hint = did_you_mean(pattern, names, lists="model.named_modules()")
            raise ModelError(f"ignore names '{pattern}', which is no module of the network; {hint}")
        ignored |= matched
    return ignored
