"""Channel labels: one forward pass with labelled channels shows which channels of a network are coupled.

Every layer that produces new channels labels them, and the labels follow the activations. A data movement (view, cat,
chunk, pad, flatten, ...) is applied to the label tensor as to the activation, so it needs no index map. Where two
channels meet element by element (a residual addition, a gate), their labels are tied: they can only be pruned together.
Where an operator reads channels in a way that can't be narrowed, their labels are frozen, with the reason. An unknown
operator freezes the labels of its arguments.

A label tensor has as many dimensions as its activation, with size 1 where the label does not vary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from deap_prune.data.batches import tensors_of
from deap_prune.structure.call_stack import described, module_frames
from deap_prune.structure.inputs import Call, first_line
from deap_prune.structure.layers import spec_of
from deap_prune.structure.outputs import open_outputs
from deap_prune.structure.tracing import channelwise_rules, slicing_rules
from deap_prune.structure.tracing.buffers import Buffers
from deap_prune.structure.tracing.dataflow import Dataflow
from deap_prune.structure.tracing.function_watch import FunctionWatch, caller
from deap_prune.structure.tracing.fvcore_count import measured_flops
from deap_prune.structure.tracing.idle import idle_layers
from deap_prune.structure.tracing.layer_calls import LayerCall, carried_dim, function_of, is_pointwise, total_cost
from deap_prune.structure.tracing.layer_watch import LayerWatch
from deap_prune.structure.tracing.mixing_watch import MixingWatch
from deap_prune.structure.tracing.operator_rules import DENSE, RULES, UNIFORM, Step, follow, table
from deap_prune.structure.tracing.positions import Positions

Labels = NDArray[np.int64]
CARRIED = "is applied along the channels of another layer"
RULES.update(table(*channelwise_rules.ROWS, *slicing_rules.ROWS) | channelwise_rules.NAMED)
MOST_ELEMENTS = 2**18  # of a tensor whose elements get labels: position embeddings, but not the weights of attention


class LabelTracer(LayerWatch):
    """Follow channel labels through a forward pass.

    Attributes:
        calls: Uses of layers, in order.
        vectors: Parameter or buffer used outside of a known layer to its channel dimension and labels.
        elements: The same for tensors with several dimensions: a label for each element.
        ties: Pairs of label arrays that must be pruned together.
        frozen: Labels that stay dense, with the reason.
        counted: Cost of operators outside of the layers: FLOPs per label, the labels, and the step.
        size_splits: Line of code to the labels that it splits by sizes, which may or may not follow the width.
        split_at: The line of code that is splitting by sizes now, or None.
        widths: Attributes of modules that equal the size of a part or a view of channels: (module, attribute, index or
            None) to the labels of these channels, one entry for each use.
        size: Number of labels so far.
        dead: Layers that ran in the first pass without any use of their result.
        counting: Whether costs of this pass are recorded.
        positions: Positions among channels, such as results of argmax.
        buffers: Memory of the activations of the pass whose costs are recorded.
        mixing: Calls of functions outside of the layers that mix channels.
        carriers: Names of the layers that are applied along the channels of another layer.
    """

    def __init__(self, model: nn.Module, *, folding_last: Collection[str] = ()) -> None:
        super().__init__(model)
        self.calls: list[LayerCall] = []
        self.vectors: dict[str, tuple[int, Labels]] = {}
        self.elements: dict[str, Labels] = {}
        self._used: set[str] = set()
        self.ties: list[tuple[Labels, Labels]] = []
        self.frozen: list[tuple[Labels, str]] = []
        self.counted: list[tuple[float, Labels, int]] = []
        self.dead: list[str] = []
        self.flow = Dataflow()
        self.buffers, self.positions = Buffers(), Positions()
        self.mixing, self.carriers = MixingWatch(model), set[str]()
        self.size_splits: dict[str, list[Labels]] = {}
        self.split_at: str | None = None
        self.widths: dict[tuple[str, str, int | None], list[Labels]] = {}
        self.size = 1
        self.folds: dict[str, list[Labels]] = {}
        self._folding_last = folding_last
        self._labels: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._constants: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._causes: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._parameters = {id(p): name for name, p in [*model.named_buffers(), *model.named_parameters()]}
        self._made: dict[str, tuple[Labels, Labels]] = {}
        self._to_measure: dict[int, tuple[nn.Module, tuple[int, ...]]] = {}
        self.counting = True

    # ------------------------------------------------------------------ the forward pass
    def run(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, counting: bool = True) -> Any:
        """Run ``model`` with labels, and freeze the labels of its outputs.

        A second pass that takes other branches continues with the same labels.

        Args:
            model: The network.
            args: Positional arguments of forward.
            kwargs: Keyword arguments of forward.
            counting: Record costs.
        """
        self.counting, self.flow = counting, Dataflow()
        inputs = tensors_of((args, kwargs))
        for tensor in inputs:
            self.blame(tensor, "made from an input of the network")
        if counting:
            self.buffers.start(inputs)
        with self.watching(), FunctionWatch(self):
            result = model(*args, **kwargs)
        outputs = open_outputs(result)
        self.positions.used(outputs.tensors, self.freeze)
        for tensor in outputs.tensors:
            self.freeze(self.of(tensor), "is an output of the network")
        hidden = ", ".join([*outputs.closed, *(["ndarray"] if outputs.arrays else [])])
        remaining = list(self._labels) if hidden else []  # tensors that something still holds after the pass
        for tensor in remaining:
            reason = f"may leave the network in an object that can't be opened ({hidden}); return tensors instead"
            self.freeze(self._labels[tensor], reason)
        if counting:
            self.buffers.keep([*inputs, *outputs.tensors, *remaining], self.flow.last)
            self._settle_costs([*outputs.tensors, *remaining])
        return result

    def _settle_costs(self, outputs: list[Tensor]) -> None:
        """Measure layers without a formula, and drop the cost of layers that do not contribute to the outputs."""
        live = self.flow.live(outputs)
        self.counted = [entry for entry in self.counted if entry[2] in live]
        names = {call.name for call in self.calls if call.step in live}
        self.dead = [name for name in dict.fromkeys(call.name for call in self.calls) if name not in names]
        for place, (layer, shape) in self._to_measure.items():  # after the pass, because fvcore traces the layer itself
            call = self.calls[place]
            try:
                self.calls[place] = replace(call, flops=measured_flops(layer, shape))
            except Exception as error:  # the forward of an unknown type may raise anything
                self._refuse(call.name, torch.from_numpy(np.concatenate([call.inputs, call.outputs])), error)
        self._to_measure.clear()
        self.calls = [call if call.step in live else replace(call, flops=()) for call in self.calls]

    def _refuse(self, name: str, labels: Tensor, error: Exception) -> None:
        self.freeze(labels, f"'{name}' can't be narrowed: {first_line(error)}")

    def fresh(self, n: int) -> Tensor:
        """``n`` new labels."""
        self.size += n
        return torch.arange(self.size - n, self.size)

    def idle(self) -> list[str]:
        """Known layers that have not run, see :func:`idle_layers`."""
        return idle_layers(self.layers, self._made, self._used)

    def freeze(self, labels: Tensor | None, reason: str) -> None:
        """Keep these channels dense."""
        if labels is not None:
            self.frozen.append((np.unique(labels.numpy()), reason))

    def mix(self, labels: Tensor, reason: str) -> None:
        """Note channels that an operator mixes; see :class:`MixingWatch`."""
        self.mixing.mix(self, labels, reason)

    def tie(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Tie two label tensors, broadcast against each other; a label that is tied to a dense channel is frozen."""
        pairs = torch.stack([x.reshape(-1) for x in torch.broadcast_tensors(a, b)])
        pairs = pairs[:, pairs[0] != pairs[1]]
        if pairs.numel() == 0:
            return
        pairs = torch.unique(pairs, dim=1)
        dense = (pairs == DENSE).any(dim=0)
        self.freeze(pairs[:, dense] if dense.any() else None, reason)
        self.ties.append((pairs[0, ~dense].numpy(), pairs[1, ~dense].numpy()))

    def note_split(self, labels: Tensor) -> None:
        """Record labels that are split by sizes rather than into a number of parts."""
        if self.split_at is not None:
            self.size_splits.setdefault(self.split_at, []).append(np.unique(labels.numpy()))

    # ------------------------------------------------------------------ layers
    def after_layer(self, name: str, layer: nn.Module, arguments: Call, result: Any) -> None:
        """Label the layer's output channels."""
        sources, outputs = tensors_of(arguments), tensors_of(result)
        if not sources or not outputs:
            return
        step = self.flow.record(sources, outputs)
        self.positions.used(sources, self.freeze)
        try:
            if not isinstance(result, Tensor):
                raise TypeError(f"it returns a {type(result).__name__}")
            self._record(name, layer, sources[0], result, step)
        except Exception as error:  # a description, or the forward of an unknown type, may raise anything
            for tensor in sources:
                self._refuse(name, self._of_any(tensor), error)
            made = self.fresh(1)
            self._refuse(name, made, error)
            self._made.setdefault(name, (made.numpy(), made.numpy()))
            for tensor in outputs:
                self._labels[tensor] = made.view([1] * tensor.dim())
        self._record_buffers(step, sources, outputs, layer=True)

    def _record_buffers(self, step: int, inputs: list[Tensor], outputs: list[Tensor], *, layer: bool) -> None:
        if self.counting:
            labels = [self._labels[x].reshape(-1).numpy() if x in self._labels else None for x in outputs]
            self.buffers.record(step, inputs, zip(outputs, labels, strict=True), layer=layer)

    def _of_any(self, tensor: Tensor) -> Tensor:
        labels = self.of(tensor)
        return torch.full([1] * tensor.dim(), DENSE) if labels is None else labels

    def _record(self, name: str, layer: nn.Module, source: Tensor, output: Tensor, step: int) -> None:
        spec = spec_of(layer)
        for tensor, channels in ((source, spec.in_channels), (output, spec.out_channels)):
            length = tensor.shape[spec.axis(tensor.dim())]
            if length != channels:
                raise ValueError(f"it has {channels} channels, but the tensor has {length} (shape {[*tensor.shape]})")
        labels, key = self.of(source), self.mixing.key(function_of(layer))
        if labels is not None and carried_dim(layer, spec, labels, source, output) is not None:
            dense = np.full(spec.in_channels, DENSE, dtype=np.int64)
            own = dense if spec.coupled else self.fresh(spec.out_channels).numpy()
            if not is_pointwise(layer):
                self.mixing.record(self, key, tensors_of((layer.weight, layer.bias)), labels, CARRIED)
            self._carry(LayerCall(name, spec, dense, own, (), step), labels, source, output)
            return
        read = self._channels(labels, source, spec.axis(source.dim()), name)
        if self._made.get(name) is None:
            made = read.repeat_interleave(spec.coupled) if spec.coupled else self.fresh(spec.out_channels)
            self._made[name] = (read.numpy(), made.numpy())
        else:  # used twice with one weight: the channels of both uses are the same
            first, made = (torch.from_numpy(a) for a in self._made[name])
            self.tie(read, first, f"'{name}' is used on channels that stay dense")
        if hasattr(layer, "parametrizations"):
            reason = f"'{name}' is parametrized: call torch.nn.utils.parametrize.remove_parametrizations first"
            self.freeze(torch.cat([read, made]), reason)
        shape = [1] * output.dim()
        shape[spec.axis(output.dim())] = -1
        self._labels[output] = made.view(shape)
        cost: tuple[tuple[str, float], ...] = ()
        if self.counting and spec.flops is None:
            self._to_measure[len(self.calls)] = (layer, tuple(source.shape))
        elif self.counting and spec.flops is not None:
            cost = tuple(spec.flops(tuple(source.shape), tuple(output.shape)).items())
        self.calls.append(LayerCall(name, spec, read.numpy(), made.numpy(), cost, step))

    def _carry(self, call: LayerCall, labels: Tensor, source: Tensor, output: Tensor) -> None:
        """Label the output of a layer that carries the channels of another one along."""
        first = self._made.setdefault(call.name, (call.inputs, call.outputs))[0]
        for own in (first, call.outputs):
            self.freeze(torch.from_numpy(own), CARRIED)
        self.carriers.add(call.name)
        self._labels[output] = labels
        if self.counting:
            share = total_cost(call.spec, source, output) / labels.numel()
            self.counted.append((share, labels.reshape(-1).numpy(), call.step))
        self.calls.append(call)

    def _channels(self, labels: Tensor | None, source: Tensor, dim: int, name: str) -> Tensor:
        """Labels of the channels that a layer reads, shape (n,); different labels inside one channel are tied."""
        n = source.shape[dim]
        if labels is None:
            return torch.full((n,), DENSE)
        moved = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)
        self.tie(moved, moved[:, :1], f"a channel that '{name}' reads is dense in part")
        return moved[:, 0].expand(n).contiguous()

    # ------------------------------------------------------------------ operators between the layers
    def after_operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Apply the operator to the labels of its arguments."""
        step = Step(self, func, args, kwargs, result)
        number = self.flow.record(step.tensors, step.outputs, func)
        self.positions.used(step.tensors, self.freeze)
        self._used |= {name for t in step.tensors if (name := self._parameters.get(id(t)))}
        if any(self.of(tensor) is not None for tensor in step.tensors):
            follow(step)
        elif step.name in UNIFORM or (step.tensors and all(tensor in self._constants for tensor in step.tensors)):
            for tensor in step.outputs:
                self.mark_constant(tensor)
        elif not step.tensors:
            for tensor in step.outputs:
                self.blame(tensor, f"made by '{step.name}'")
        elif causes := [self._causes[tensor] for tensor in step.tensors if tensor in self._causes]:
            for tensor in step.outputs:
                self._causes[tensor] = causes[0]
        self._record_buffers(number, step.tensors, step.outputs, layer=False)

    def of(self, tensor: Tensor) -> Tensor | None:
        """Labels of a tensor, or None. A parameter or buffer that is used outside of a layer gets new labels."""
        if tensor in self._labels:
            return self._labels[tensor]
        name = self._parameters.get(id(tensor))
        if name is None or not 2 <= tensor.numel() <= MOST_ELEMENTS or not tensor.is_floating_point():
            return None
        labels = self._labels[tensor] = self.fresh(tensor.numel()).view(tensor.shape)
        if max(tensor.shape) != tensor.numel():
            self.elements[name] = labels.numpy()
        else:
            self.vectors[name] = (int(np.argmax(tensor.shape)), labels.reshape(-1).numpy())
        return labels

    def mark_constant(self, tensor: Tensor) -> None:
        """Note a tensor whose values are the same for all channels."""
        self._constants[tensor] = True

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether the values of a tensor are the same for all channels."""
        return tensor in self._constants

    def blame(self, tensor: Tensor, cause: str) -> None:
        """Note where a tensor without labels comes from, as in ``"made by 'arange'"``."""
        self._causes[tensor] = cause

    def cause(self, tensor: Tensor) -> str:
        """Where a tensor without labels comes from; empty if that is unknown."""
        return str(self._causes.get(tensor, ""))

    def where(self) -> str:
        """The innermost module that is running, for a reason; empty for the network itself."""
        return described(*next(self.running(), ("", None)))

    def running(self) -> Iterator[tuple[str, nn.Module]]:
        """Names of the modules that are running, and the modules, innermost first."""
        last: nn.Module | None = None
        for _, module in module_frames():
            if module is not last and id(module) in self._modules:
                last = module
                yield self._modules[id(module)], module

    def folds_last(self, labels: Tensor) -> bool:
        """Whether the last of two dimensions is the one of fixed size, where channels are folded into two."""
        line = caller()
        self.folds.setdefault(line, []).append(np.unique(labels.numpy()))
        return line in self._folding_last

    def charge(self, tensor: Tensor, per_element: float) -> None:
        """Record the cost of an operator that fvcore counts per element of a tensor."""
        labels, step = self.of(tensor), self.flow.last
        if per_element and labels is not None and self.counting:
            scale = per_element * tensor.numel() / labels.numel()
            self.counted.append((scale, labels.reshape(-1).numpy(), step))

    def attach(self, tensor: Any, labels: Tensor) -> None:
        """Attach labels to a tensor, with size 1 in every dimension along which they do not vary."""
        for d in range(labels.dim()):
            if labels.shape[d] > 1 and bool((labels == labels.narrow(d, 0, 1)).all()):
                labels = labels.narrow(d, 0, 1)
        self._labels[tensor] = labels.contiguous()
