"""Filter groups and their cost from channel labels, ties and frozen labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from deap_prune.structure.cost_polynomial import CostPolynomial, Term
from deap_prune.structure.layers import spec_of, tensor_named
from deap_prune.structure.space import FilterGroup, LayerChannels, Member, PruningSpace, Refusal, WidthAttribute
from deap_prune.structure.tracing.idle import idle_channels
from deap_prune.structure.tracing.labels import Labels, LabelTracer
from deap_prune.structure.tracing.layer_calls import LayerCall
from deap_prune.structure.tracing.operator_rules import DENSE

SHORTEST_PERIOD = 4  # of channels that repeat in a layer with blocks; shorter ones are too few to choose from


@dataclass(frozen=True, eq=False)
class _Port:
    """One side of a layer with the channel class at each position."""

    layer: str
    side: Literal["makes", "passes", "reads"]
    classes: Labels


def build_space(network: nn.Module, tracer: LabelTracer, total: int, uncounted: Mapping[str, int]) -> PruningSpace:
    """Build the pruning space from the channel classes that are not frozen."""
    classes = classes_of(tracer)
    calls = {call.name: call for call in reversed(tracer.calls)}
    calls = {name: calls[name] for name in dict.fromkeys(c.name for c in tracer.calls)}
    reasons: dict[int, str] = {int(classes[DENSE]): "reads the network's input"}
    for labels, reason in tracer.frozen:
        for c in np.unique(classes[labels]):
            reasons.setdefault(int(c), reason)
    ports = _ports(calls, classes)
    _freeze_uneven_blocks(calls, classes, ports, reasons)
    groups, ids = _groups(ports, calls, classes, reasons, _mixed(tracer, classes))
    refused = _refusals(calls, classes, ids, reasons)
    layers = [
        LayerChannels(n, ids[classes[c.inputs]], ids[classes[c.outputs]], carries=n in tracer.carriers)
        for n, c in calls.items()
    ]
    layers += [
        LayerChannels(n, ids[classes[labels]], ids[classes[labels]], dim) for n, (dim, labels) in tracer.vectors.items()
    ]
    idle = tuple(tracer.idle())
    alike = idle_channels(network, layers, idle)
    sizes = [group.size for group in groups]
    group_of = np.concatenate([np.full(n, i) for i, n in enumerate(sizes)] + [[-1]]).astype(np.int64)
    return PruningSpace(
        groups=tuple(groups),
        refused=refused,
        layers=tuple(layers),
        flops_of=_flops(tracer, classes, ids, group_of, sizes, total),
        params_of=_params(network, [*layers, *alike], group_of, sizes),
        uncounted=dict(uncounted),
        idle=idle,
        idle_layers=tuple(alike),
        activations=tracer.buffers.activations(ids[classes], group_of, sizes),
        mixing=tracer.mixing.with_ids(ids[classes]),
    )


def observed_widths(tracer: LabelTracer, space: PruningSpace) -> list[WidthAttribute]:
    """Attributes of modules that equal the size of a part or a view of channels, with the channels in this space."""
    classes = classes_of(tracer)
    ids = np.full(len(classes), -1, dtype=np.int64)
    channels = {entry.name: entry for entry in space.layers}
    for call in tracer.calls:
        ids[classes[call.outputs]] = channels[call.name].outputs
    return [WidthAttribute(*place, ids[classes[uses[0]]]) for place, uses in tracer.widths.items()]


def settle_tensors(tracer: LabelTracer) -> None:
    """Find the channel dimension of parameters and buffers that meet channels outside of layers.

    A tensor with one label per element can be narrowed along a dimension if all elements at one position of it meet the
    same channel; elements that meet no channel follow their position. Other tensors that meet channels stay dense.
    """
    classes = classes_of(tracer)
    sizes = np.bincount(classes)
    for name, labels in tracer.elements.items():
        own = classes[labels]
        shared = sizes[own] > np.bincount(own.reshape(-1), minlength=len(sizes))[own]
        if not shared.any():
            continue
        for dim in sorted(range(own.ndim), key=lambda d: -own.shape[d]):
            rows = np.moveaxis(own, dim, 0).reshape(own.shape[dim], -1)
            used = np.moveaxis(shared, dim, 0).reshape(own.shape[dim], -1)
            if len(rows) > 1 and all(len(np.unique(row[mask])) <= 1 for row, mask in zip(rows, used, strict=True)):
                every = torch.from_numpy(np.moveaxis(labels, dim, 0).reshape(own.shape[dim], -1))
                first = every[torch.arange(len(every)), torch.from_numpy(used.argmax(1))]
                tracer.tie(every, first[:, None], f"meets '{name}', which stays dense")
                tracer.vectors[name] = (dim, first.numpy())
                break
        else:
            tracer.freeze(torch.from_numpy(labels), f"meets '{name}' in more than one of its dimensions")


def settle_blocks(tracer: LabelTracer) -> None:
    """Tie the channels of several layers that fill the blocks of one (GroupNorm on a concatenation, as in diffusers).

    All blocks keep the same number of channels if the kept ones repeat with a period that blocks fit into, or that fits
    into blocks. It is the largest such period that the joined parts are multiples of.
    """
    makers = np.zeros(tracer.size, dtype=np.int64)
    for number, call in enumerate(tracer.calls):
        makers[call.outputs] = number if not call.spec.coupled else makers[call.outputs]
    for call in tracer.calls:
        if call.spec.blocks == 1 or (call.inputs == DENSE).any():
            continue
        steps, owners = np.diff(call.inputs, prepend=-2), np.diff(makers[call.inputs], prepend=-1)
        starts = np.flatnonzero((steps != 1) | (owners != 0))  # a layer numbers its channels in order
        block = len(call.inputs) // call.spec.blocks
        period = int(np.gcd.reduce(np.append(starts, len(call.inputs))))
        period = period if period % block == 0 else math.gcd(period, block)
        if len(starts) > 1 and period >= SHORTEST_PERIOD:
            rows = torch.from_numpy(call.inputs.reshape(-1, period))
            tracer.tie(rows, rows[:1], f"fills the blocks of '{call.name}' together with channels that stay dense")


def _refusals(
    calls: Mapping[str, LayerCall], classes: Labels, ids: Labels, reasons: Mapping[int, str]
) -> tuple[Refusal, ...]:
    channels: Counter[tuple[str, str]] = Counter()
    for name, call in calls.items():
        if not call.spec.coupled:
            dense = [int(c) for c in classes[call.outputs] if ids[c] < 0]
            channels.update((name, reasons.get(c, "is read by no layer")) for c in dense)
    return tuple(Refusal(name, number, reason) for (name, reason), number in channels.items())


def classes_of(tracer: LabelTracer) -> Labels:
    """Class of each label, shape (labels,). Labels that are tied, directly or indirectly, share a class."""
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
    """Freeze channels that enter a layer with blocks twice, or together with channels of another group."""
    cells = _cells(ports, len(classes))
    blocked = [port for port in ports if calls[port.layer].spec.blocks > 1]
    for port in blocked:
        order = list(dict.fromkeys(port.classes.tolist()))
        number = calls[port.layer].spec.blocks
        if _blocks_of_period(port, order, number) is None or len(np.unique(cells[port.classes])) > 1:
            for c in set(port.classes):
                reasons.setdefault(int(c), f"fills the blocks of '{port.layer}' together with other channels")
    changed = True
    while changed:  # one dense channel makes the whole blocked port dense
        changed = False
        for port in blocked:
            if any(int(c) in reasons for c in port.classes):
                for c in port.classes:
                    if int(c) not in reasons:
                        reasons[int(c)] = f"fills the blocks of '{port.layer}' together with channels that stay dense"
                        changed = True


def _blocks_of_period(port: _Port, order: list[int], number: int) -> int | None:
    """Blocks that these classes fill in a port with ``number`` blocks that repeats them; None if it does not."""
    times = len(port.classes) // len(order)
    if port.classes.tolist() != order * times or (number % times and times % number):
        return None
    return max(1, number // times)


def _cells(ports: list[_Port], n: int) -> Labels:
    """Cell of each class, shape (n,). Classes that occur in the same ports equally often share one (0: no port)."""
    cells = np.zeros(n, dtype=np.int64)
    last = 0
    for port in ports:  # each port splits the cells that overlap with it
        there, counts = np.unique(port.classes, return_counts=True)
        _, split = np.unique(cells[there] * (counts.max() + 1) + counts, return_inverse=True)
        cells[there] = last + 1 + split
        last += len(there)
    return cells


def _places(ports: list[_Port], cells: Labels) -> dict[int, list[tuple[int, int]]]:
    """Ports of each cell, with the occurrences of each of its classes there, in the order of the ports."""
    places: dict[int, list[tuple[int, int]]] = {}
    for p, port in enumerate(ports):
        there, first, counts = np.unique(port.classes, return_index=True, return_counts=True)
        present, place = np.unique(cells[there], return_index=True)
        for k in np.argsort([first[cells[there] == cell].min() for cell in present]):
            places.setdefault(int(present[k]), []).append((p, int(counts[place[k]])))
    return places


def _mixed(tracer: LabelTracer, classes: Labels) -> NDArray[np.bool_]:
    """True for the classes that a torch function reads, shape (classes,)."""
    mixed = np.zeros(int(classes.max()) + 1, dtype=np.bool_)
    mixed[classes[tracer.mixing.labels()]] = True
    return mixed


def _groups(
    ports: list[_Port],
    calls: Mapping[str, LayerCall],
    classes: Labels,
    reasons: dict[int, str],
    mixed: NDArray[np.bool_],
) -> tuple[list[FilterGroup], Labels]:
    """Groups of the classes that occur in the same ports, and the channel id of each class (-1: dense)."""
    n = int(classes.max()) + 1
    cells, free = _cells(ports, n), np.ones(n, dtype=np.bool_)
    free[list(reasons)] = False
    ids = np.full(n, -1, dtype=np.int64)
    groups: list[FilterGroup] = []
    start = 0
    names: Counter[str] = Counter()
    for cell, places in _places(ports, cells).items():
        sides = {ports[p].side for p, _ in places}
        if "makes" not in sides or not ("reads" in sides or mixed[cells == cell].all()):
            continue
        first = next(p for p, _ in places if ports[p].side == "makes")
        made = ports[first].classes
        order = list(dict.fromkeys(made[(cells[made] == cell) & free[made]].tolist()))
        if not order:
            continue
        blocks, conflict = _blocks(places, ports, calls, order)
        if conflict or len(order) <= blocks:
            single = (
                "has a single filter"
                if len(made) == 1
                else "is moved so that its channels can only be pruned all together"
            )
            for c in order:
                reasons[c] = conflict or (single if blocks == 1 else "has a single filter per block")
            continue
        index = np.full(n, -1, dtype=np.int64)
        index[order] = np.arange(len(order))
        members = []
        for p, uses in places:
            at: Labels = np.flatnonzero(index[ports[p].classes] >= 0)
            at = at[np.argsort(index[ports[p].classes[at]], kind="stable")].reshape(len(order), uses)
            role = "reader" if ports[p].side == "reads" else calls[ports[p].layer].spec.role
            members.append(Member(ports[p].layer, role, at))
        name = ports[first].layer
        names[name] += 1
        name = name if names[name] == 1 else f"{name}:{names[name]}"
        groups.append(FilterGroup(name, len(order), start, blocks, tuple(members)))
        ids[order] = start + np.arange(len(order))
        start += len(order)
    return groups, ids


def _blocks(
    places: list[tuple[int, int]],
    ports: list[_Port],
    calls: Mapping[str, LayerCall],
    order: list[int],
) -> tuple[int, str]:
    """Number of equal blocks of a group, or the reason why the blocks of its layers conflict."""
    blocks = 1
    for p, _ in places:
        number = calls[ports[p].layer].spec.blocks
        if number > 1:
            own = _blocks_of_period(ports[p], order, number)
            if own is None:
                return 1, f"fills the blocks of '{ports[p].layer}' in a different order"
            blocks = math.lcm(blocks, own)
    return (blocks, "") if len(order) % blocks == 0 else (1, "its layers have blocks of sizes that don't nest")


def _flops(
    tracer: LabelTracer, classes: Labels, ids: Labels, group_of: Labels, sizes: Sequence[int], total: int
) -> CostPolynomial:
    terms: list[Term] = []
    for call in tracer.calls:
        sides = {"in": ids[classes[call.inputs]], "out": ids[classes[call.outputs]]}
        for powers, coefficient in call.flops:
            factors = [sides[axis] for axis in powers.split("*") if axis != "1"]
            first, second = [*factors, None, None][:2]
            terms.append((coefficient, first, second))
    terms += [(charge, ids[classes[labels]], None) for charge, labels, _ in tracer.counted]
    flops_of = CostPolynomial.build(terms, group_of, sizes)
    # Operators on dense channels only (attention, functional layers) cost a constant: the rest of the dense count.
    return CostPolynomial.build(terms, group_of, sizes, total - int(flops_of(sizes)))


def _params(network: nn.Module, layers: list[LayerChannels], group_of: Labels, sizes: Sequence[int]) -> CostPolynomial:
    terms: list[Term] = []
    for layer in layers:
        terms += _parameter_terms(network, layer)
    params_of = CostPolynomial.build(terms, group_of, sizes)
    dense = sum(p.numel() for p in network.parameters())
    return CostPolynomial.build(terms, group_of, sizes, dense - int(params_of(sizes)))


def _parameter_terms(network: nn.Module, layer: LayerChannels) -> list[Term]:
    if layer.dim is not None:
        tensor = tensor_named(network, layer.name)
        count = tensor.numel() if isinstance(tensor, nn.Parameter) else 0
        return [(count / len(layer.outputs), layer.outputs, None)]
    module = network.get_submodule(layer.name)
    terms: list[Term] = []
    for name, dims in spec_of(module).tensors.items():
        tensor = getattr(module, name)
        if isinstance(tensor, nn.Parameter):
            sides = [layer.inputs if axis == "in" else layer.outputs for axis in dims if axis]
            first, second = [*sides, None, None][:2]
            terms.append((tensor.numel() / math.prod(len(s) for s in sides), first, second))
    return terms
