"""From a network to its pruning space: labels propose the couplings, a proof accepts or refuses each of them."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from deap_prune.errors import ModelError, did_you_mean
from deap_prune.structure.cost import CostPolynomial, Term
from deap_prune.structure.count import count_flops
from deap_prune.structure.inputs import Inputs, first_sample
from deap_prune.structure.labels import Labels, LabelTracer, LayerCall
from deap_prune.structure.layers import describe_layer
from deap_prune.structure.prove import Proof
from deap_prune.structure.rules import DENSE
from deap_prune.structure.slim import unwrap
from deap_prune.structure.space import FilterGroup, LayerChannels, Member, PruningSpace, Refusal


def trace(model: nn.Module, example_inputs: Inputs, *, ignore: Iterable[str] = ()) -> PruningSpace:
    """Find the filter groups of a network, and prove them.

    One forward pass in eval mode follows every channel through the network; channels that meet are grouped. Then the
    masked and the slimmed network are compared on a randomised copy, and the closed-form cost with fvcore's count: a
    group for which they differ is found by bisection, refused with a reason, and stays dense.

    Args:
        model: Any network, on any device, wrapped in (Distributed)DataParallel or not; it comes back unchanged.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments; one sample is used.
        ignore: Module names to leave dense; a name covers what is below it.

    Raises:
        ModelError: If weights are not finite, the forward pass fails, an ignored name does not exist, or nothing in
            the network can be pruned.
    """
    network = pristine(unwrap(model))
    check_finite(network)
    inputs = first_sample(example_inputs, next(network.parameters(), torch.empty(0)).device)
    tracer = LabelTracer(network)
    try:
        tracer.run(network, *inputs)
        total, uncounted = count_flops(network, inputs)
    except Exception as error:
        raise ModelError(f"the network fails on the example inputs: {type(error).__name__}: {error}") from error
    _ignore(network, tracer, tuple(ignore))
    _freeze_shared(network, tracer)
    space = build_space(network, tracer, total, uncounted)
    proof = Proof.of(network, inputs)
    while space.groups and (guilty := proof.guilty_groups(space)):
        for name, reason in guilty.items():
            for member in space.group(name).members:
                call = next(c for c in tracer.calls if c.name == member.layer)
                if member.role != "reader":
                    tracer.freeze(torch.from_numpy(call.outputs[member.positions.reshape(-1)]), reason)
        space = build_space(network, tracer, total, uncounted)
    if not space.groups:
        reasons = "; ".join(sorted({f"{r.layer}: {r.reason}" for r in space.refused})[:5])
        raise ModelError(
            f"the network has no filters that can be pruned ({reasons or 'no layer makes channels'}); a prunable "
            "filter needs a convolution or linear layer whose outputs another layer reads"
        )
    return space


def _ignore(network: nn.Module, tracer: LabelTracer, names: Sequence[str]) -> None:
    """Freeze what the named modules make."""
    known = {name for name, _ in network.named_modules()}
    for name in names:
        if name not in known:
            raise ModelError(f"ignore names '{name}', which is no module of the network; {did_you_mean(name, known)}")
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


def pristine(network: nn.Module) -> nn.Module:
    """A copy without hooks, in eval mode, its tensors contiguous.

    Raises:
        ModelError: If the network can't be copied.
    """
    try:
        network = copy.deepcopy(network).eval()
    except RuntimeError as error:
        raise ModelError(
            f"the network can't be copied ({error}); if a layer computes its weight, bake it first: "
            "torch.nn.utils.remove_weight_norm, torch.nn.utils.prune.remove"
        ) from error
    for module in network.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(module, hooks).clear()
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    return network


def check_finite(network: nn.Module) -> None:
    """Refuse weights or statistics that are NaN or infinite.

    Raises:
        ModelError: Naming the first such tensor.
    """
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"'{name}' holds values that are not finite; load the trained weights again")


@dataclass(frozen=True, eq=False)
class _Port:
    """One side of a layer: the channel classes at its positions."""

    layer: str
    side: Literal["makes", "passes", "reads"]
    classes: Labels


def build_space(network: nn.Module, tracer: LabelTracer, total: int, uncounted: Mapping[str, int]) -> PruningSpace:
    """Group the channel classes that labels, ties and refusals leave."""
    classes = _classes(tracer)
    calls = {call.name: call for call in reversed(tracer.calls)}
    calls = {name: calls[name] for name in dict.fromkeys(c.name for c in tracer.calls)}
    reasons: dict[int, str] = {int(classes[DENSE]): "reads the network's input"}
    for labels, reason in tracer.frozen:
        for c in np.unique(classes[labels]):
            reasons.setdefault(int(c), reason)
    ports = _ports(calls, classes)
    _freeze_uneven_blocks(calls, classes, ports, reasons)
    groups, ids = _groups(ports, calls, classes, reasons)
    refused = _refusals(calls, classes, ids, reasons)
    layers = [LayerChannels(n, ids[classes[c.inputs]], ids[classes[c.outputs]]) for n, c in calls.items()]
    layers += [
        LayerChannels(n, ids[classes[labels]], ids[classes[labels]], dim) for n, (dim, labels) in tracer.vectors.items()
    ]
    flops, params = _costs(network, tracer, classes, ids, layers, groups, total)
    return PruningSpace(tuple(groups), refused, tuple(layers), flops, params, dict(uncounted))


def _refusals(
    calls: Mapping[str, LayerCall], classes: Labels, ids: Labels, reasons: Mapping[int, str]
) -> tuple[Refusal, ...]:
    found: Counter[tuple[str, str]] = Counter()
    for name, call in calls.items():
        if not call.spec.coupled:
            dense = [int(c) for c in classes[call.outputs] if ids[c] < 0]
            found.update((name, reasons.get(c, "is read by no layer")) for c in dense)
    return tuple(Refusal(name, channels, reason) for (name, reason), channels in found.items())


def _classes(tracer: LabelTracer) -> Labels:
    """Label -> class: labels that are tied, directly or not, are one class."""
    rows = np.concatenate([a for a, _ in tracer.ties] or [np.zeros(0, np.int64)])
    cols = np.concatenate([b for _, b in tracer.ties] or [np.zeros(0, np.int64)])
    graph = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, cols)), shape=(tracer.size, tracer.size))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _ports(calls: Mapping[str, LayerCall], classes: Labels) -> list[_Port]:
    ports = []
    for name, call in calls.items():
        if call.spec.coupled:
            ports.append(_Port(name, "passes", classes[call.outputs]))
        else:
            ports.append(_Port(name, "reads", classes[call.inputs]))
            ports.append(_Port(name, "makes", classes[call.outputs]))
    return ports


def _freeze_uneven_blocks(
    calls: Mapping[str, LayerCall], classes: Labels, ports: list[_Port], reasons: dict[int, str]
) -> None:
    """Blocks must be filled by one group: freeze channels that enter a blocked layer beside others, or twice."""
    signature = _signatures(ports)
    for port in ports:
        if calls[port.layer].spec.blocks == 1:
            continue
        if len(set(port.classes)) < len(port.classes) or len({signature[int(c)] for c in port.classes}) > 1:
            for c in set(port.classes):
                reasons.setdefault(int(c), f"fills the blocks of '{port.layer}' together with other channels")
    changed = True
    while changed:  # a blocked port with one dense channel is dense
        changed = False
        for port in ports:
            if calls[port.layer].spec.blocks > 1 and any(int(c) in reasons for c in port.classes):
                for c in port.classes:
                    if int(c) not in reasons:
                        reasons[int(c)] = f"fills the blocks of '{port.layer}' together with channels that stay dense"
                        changed = True


def _signatures(ports: list[_Port]) -> dict[int, tuple[tuple[int, int], ...]]:
    """Class -> the ports it stands in, with how often."""
    found: dict[int, list[tuple[int, int]]] = {}
    for p, port in enumerate(ports):
        for c, n in zip(*np.unique(port.classes, return_counts=True), strict=True):
            found.setdefault(int(c), []).append((p, int(n)))
    return {c: tuple(where) for c, where in found.items()}


def _groups(
    ports: list[_Port], calls: Mapping[str, LayerCall], classes: Labels, reasons: dict[int, str]
) -> tuple[list[FilterGroup], Labels]:
    """Classes that stand in the same ports are the filters of one group; and the class -> channel id table."""
    by_signature: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for c, signature in _signatures(ports).items():
        sides = {ports[p].side for p, _ in signature}
        if c not in reasons and sides >= {"makes", "reads"}:
            by_signature.setdefault(signature, []).append(c)
    ids = np.full(int(classes.max()) + 1, -1, dtype=np.int64)
    groups: list[FilterGroup] = []
    start = 0
    names: dict[str, int] = {}
    for signature, members in by_signature.items():
        first = next(p for p, _ in signature if ports[p].side == "makes")
        order = [c for c in dict.fromkeys(ports[first].classes.tolist()) if c in set(members)]
        blocks, why = _blocks(signature, ports, calls, order)
        if why or len(order) <= blocks:
            for c in order:
                reasons[c] = why or "has a single filter" + (" a block" if blocks > 1 else "")
            continue
        index = np.full(len(ids), -1, dtype=np.int64)
        index[order] = np.arange(len(order))
        found = []
        for p, uses in signature:
            at: Labels = np.flatnonzero(index[ports[p].classes] >= 0)
            at = at[np.argsort(index[ports[p].classes[at]], kind="stable")].reshape(len(order), uses)
            role = "reader" if ports[p].side == "reads" else calls[ports[p].layer].spec.role
            found.append(Member(ports[p].layer, role, at))
        name = ports[first].layer
        names[name] = names.get(name, 0) + 1
        name = name if names[name] == 1 else f"{name}:{names[name]}"
        groups.append(FilterGroup(name, len(order), start, blocks, tuple(found)))
        ids[order] = start + np.arange(len(order))
        start += len(order)
    return groups, ids


def _blocks(
    signature: tuple[tuple[int, int], ...],
    ports: list[_Port],
    calls: Mapping[str, LayerCall],
    order: list[int],
) -> tuple[int, str]:
    """The number of equal parts of a group, or the reason why its layers' blocks can't be reconciled."""
    blocks = 1
    for p, _ in signature:
        number = calls[ports[p].layer].spec.blocks
        if number > 1:
            if ports[p].classes.tolist() != order:
                return 1, f"fills the blocks of '{ports[p].layer}' in another order"
            blocks = math.lcm(blocks, number)
    return (blocks, "") if len(order) % blocks == 0 else (1, "its layers have blocks of sizes that don't nest")


def _costs(
    network: nn.Module,
    tracer: LabelTracer,
    classes: Labels,
    ids: Labels,
    layers: list[LayerChannels],
    groups: list[FilterGroup],
    total: int,
) -> tuple[CostPolynomial, CostPolynomial]:
    sizes = [g.size for g in groups]
    group_of = np.concatenate([np.full(g.size, i) for i, g in enumerate(groups)] + [[-1]]).astype(np.int64)
    flops: list[Term] = []
    for call in tracer.calls:
        sides = {"in": ids[classes[call.inputs]], "out": ids[classes[call.outputs]]}
        for powers, coefficient in call.flops:
            factors = [sides[axis] for axis in powers.split("*") if axis != "1"]
            first, second = [*factors, None, None][:2]
            flops.append((coefficient, first, second))
    flops += [(charge, ids[classes[labels]], None) for charge, labels in tracer.counted]
    flops_of = CostPolynomial.build(flops, group_of, sizes)
    # What runs on dense channels only (attention, functional layers) is a constant that the dense count reveals.
    flops_of = CostPolynomial.build(flops, group_of, sizes, total - int(flops_of(sizes)))
    parameters: list[Term] = []
    for layer in layers:
        parameters += _parameter_terms(network, layer)
    params_of = CostPolynomial.build(parameters, group_of, sizes)
    dense = sum(p.numel() for p in network.parameters())
    return flops_of, CostPolynomial.build(parameters, group_of, sizes, dense - int(params_of(sizes)))


def _parameter_terms(network: nn.Module, layer: LayerChannels) -> list[Term]:
    if layer.dim is not None:
        return [(network.get_parameter(layer.name).numel() / len(layer.outputs), layer.outputs, None)]
    module = network.get_submodule(layer.name)
    spec = describe_layer(module)
    terms: list[Term] = []
    for name, dims in (spec.tensors if spec else {}).items():
        tensor = getattr(module, name)
        if isinstance(tensor, nn.Parameter):
            sides = [layer.inputs if axis == "in" else layer.outputs for axis in dims if axis]
            first, second = [*sides, None, None][:2]
            terms.append((tensor.numel() / math.prod(len(s) for s in sides), first, second))
    return terms
