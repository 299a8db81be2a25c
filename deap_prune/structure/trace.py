"""From a network to its pruning space: labels propose the couplings, a proof accepts or refuses each of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from deap_prune.errors import ModelError
from deap_prune.structure.cost import CostPolynomial, Term
from deap_prune.structure.count import count_flops
from deap_prune.structure.inputs import Inputs, first_sample, forward
from deap_prune.structure.labels import DENSE, LabelTracer, Labels, LayerCall
from deap_prune.structure.layers import describe_layer
from deap_prune.structure.prove import guilty_groups, randomised
from deap_prune.structure.slim import unwrap
from deap_prune.structure.space import FilterGroup, LayerChannels, Member, PruningSpace, Refusal


def trace(model: nn.Module, example_inputs: Inputs, *, ignore: Iterable[str] = ()) -> PruningSpace:
    """Find the filter groups of a network, and prove them.

    One forward pass in eval mode follows every channel through the network; channels that meet are grouped. Then the
    masked and the slimmed network are compared on a randomised copy: a group for which they differ is refused with a
    reason, found by bisection, and stays dense. The model comes back unchanged.

    Args:
        model: Any network, on any device, wrapped in (Distributed)DataParallel or not.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments; one sample is used.
        ignore: Module names to leave dense (a name covers what is below it); also group names.

    Raises:
        ModelError: If weights are not finite, the forward pass fails, an ignored name does not exist, or nothing in
            the network can be pruned.
    """
    network = pristine(unwrap(model))
    check_finite(network)
    ignored = tuple(ignore)
    known = {name for name, _ in network.named_modules()}
    for name in ignored:
        if name not in known:
            from deap_prune.errors import did_you_mean

            raise ModelError(f"ignore names '{name}', which is no module of the network; {did_you_mean(name, known)}")
    inputs = first_sample(example_inputs, next(network.parameters(), torch.empty(0)).device)
    tracer = LabelTracer(network)
    try:
        tracer.run(network, *inputs)
    except Exception as error:
        raise ModelError(f"the network fails on the example inputs: {type(error).__name__}: {error}") from error
    for call in tracer.calls:
        if any(call.name == name or call.name.startswith(f"{name}.") for name in ignored):
            tracer.freeze(torch.from_numpy(call.outputs), "was told to be ignored")
    total, uncounted = count_flops(network, inputs)
    proof = randomised(network)
    refused: dict[str, str] = {}
    while True:
        space = build_space(network, tracer, total, uncounted)
        guilty = guilty_groups(proof, space, inputs) if space.groups else {}
        if not guilty:
            break
        refused.update(guilty)
        for group in space.groups:
            if group.name in guilty:
                labels = [c.outputs[m.positions.reshape(-1)] for m in group.layers("filter") for c in tracer.calls if c.name == m.layer]
                tracer.freeze(torch.from_numpy(np.concatenate(labels)), guilty[group.name])
    if not space.groups:
        reasons = "; ".join(sorted({f"{r.layer}: {r.reason}" for r in space.refused})[:5])
        raise ModelError(
            "the network has no filters that can be pruned" + (f" ({reasons})" if reasons else "")
            + "; a prunable filter needs a convolution or linear layer whose outputs another layer reads"
        )
    return space


def pristine(network: nn.Module) -> nn.Module:
    """A copy without hooks, in eval mode."""
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(module, hooks).clear()
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
    role: str
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
    made: dict[tuple[str, str], int] = {}
    for call in calls.values():
        if not call.spec.coupled:
            for c in classes[call.outputs]:
                reason = reasons.get(int(c), "nothing reads it, or it stands alone")
                if ids[c] < 0:
                    made[(call.name, reason)] = made.get((call.name, reason), 0) + 1
    layers = [LayerChannels(n, ids[classes[c.inputs]], ids[classes[c.outputs]]) for n, c in calls.items()]
    layers += [
        LayerChannels(n, ids[classes[labels]], ids[classes[labels]], dim) for n, (dim, labels) in tracer.vectors.items()
    ]
    flops, params = _costs(network, tracer, classes, ids, layers, groups, total)
    refused = tuple(Refusal(layer, n, reason) for (layer, reason), n in made.items())
    return PruningSpace(tuple(groups), refused, tuple(layers), flops, params, dict(uncounted))


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
            ports.append(_Port(name, call.spec.role, classes[call.outputs]))
        else:
            ports.append(_Port(name, "reader", classes[call.inputs]))
            ports.append(_Port(name, "filter", classes[call.outputs]))
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
        roles = {ports[p].role for p, _ in signature}
        if c not in reasons and "filter" in roles and "reader" in roles:
            by_signature.setdefault(signature, []).append(c)
    ids = np.full(int(classes.max()) + 1, -1, dtype=np.int64)
    groups: list[FilterGroup] = []
    start = 0
    names: dict[str, int] = {}
    for signature, members in by_signature.items():
        first = next(p for p, _ in signature if ports[p].role == "filter")
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
            at = np.flatnonzero(index[ports[p].classes] >= 0)
            at = at[np.argsort(index[ports[p].classes[at]], kind="stable")].reshape(len(order), uses)
            role = "filter" if calls[ports[p].layer].spec.role == "filter" and ports[p].role != "reader" else ports[p].role
            found.append(Member(ports[p].layer, role, at))  # type: ignore[arg-type]
        name = ports[first].layer
        names[name] = names.get(name, 0) + 1
        name = name if names[name] == 1 else f"{name}:{names[name]}"
        groups.append(FilterGroup(name, len(order), start, blocks, tuple(found)))
        ids[order] = start + np.arange(len(order))
        start += len(order)
    return groups, ids


def _blocks(
    signature: tuple[tuple[int, int], ...], ports: list[_Port], calls: Mapping[str, LayerCall], order: list[int]
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
            first, second = (factors + [None, None])[:2]
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
            first, second = ([*sides, None, None])[:2]
            terms.append((tensor.numel() / math.prod(len(s) for s in sides), first, second))
    return terms


__all__ = ["forward", "trace"]
