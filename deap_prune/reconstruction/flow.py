"""Which normalisation follows a layer, and where its output meets another path: read from one recorded forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from deap_prune.data.batches import tensors_of
from deap_prune.structure.inputs import Call, in_order
from deap_prune.structure.layers import describe_layer, spec_of
from deap_prune.structure.tracing.layer_watch import LayerWatch

ADDITIONS = frozenset({"add", "add_"})
RECTIFIERS = frozenset({"relu", "relu_", "relu6"})
CLAMPS = frozenset({"hardtanh", "hardtanh_"})  # rectifiers if the lower bound is 0, as in nn.ReLU6
Key = tuple[str, int]


@dataclass(frozen=True)
class Step:
    """One layer call, or one operator between layers.

    Attributes:
        key: The layer's qualified name or the operator's, and how many steps of that name came before. A pruned network
            takes the same steps, save some that depend on shapes alone (memory formats); so they are compared by key.
        sources: The steps whose results it read (-1: the network's inputs, parameters, constants).
        is_layer: Whether ``name`` is a layer.
        shapes: Of the tensors it read.
        rectifies: Whether it makes 0 of all that is below 0 (ReLU, ReLU6).
    """

    key: Key
    sources: tuple[int, ...]
    is_layer: bool
    shapes: tuple[tuple[int, ...], ...]
    rectifies: bool = False

    @property
    def name(self) -> str:
        """The layer's name, or the operator's."""
        return self.key[0]


class Recorder(LayerWatch):
    """Notes the steps of a forward pass.

    Args:
        network: Its known layers are single steps.
        before: Called with (name, layer, first input) before a layer runs; may change the layer.
        after: Called with (key, result) after every step.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        before: Callable[[str, nn.Module, Tensor], None] = lambda name, layer, source: None,
        after: Callable[[Key, Tensor], None] = lambda key, result: None,
    ) -> None:
        super().__init__(network)
        self.steps: list[Step] = []
        self._before, self._after = before, after
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._counts: Counter[str] = Counter()

    def run(self, forward: Callable[[], Any]) -> Any:
        """Run the forward pass of the network, recorded."""
        with self.watching():
            return forward()

    def alive_bytes(self) -> int:
        """Bytes of the results of earlier steps that are still in use."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self._made}
        return sum(storages.values())

    def before_layer(self, name: str, layer: nn.Module, arguments: Call) -> None:
        """Tell whoever asked."""
        if tensors := tensors_of(in_order(layer, *arguments)):
            self._before(name, layer, tensors[0])

    def after_layer(self, name: str, layer: nn.Module, arguments: Call, result: Any) -> None:
        """Note a layer."""
        self._note(name, True, arguments, result)

    def after_operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note an operator between layers."""
        name = str(func.overloadpacket.__name__)
        if kwargs.get("alpha", 1) != 1:
            name += ", scaled"  # no plain addition
        self._note(name, False, (args, kwargs), result, rectifies=_rectifies(name, args))

    def _note(self, name: str, is_layer: bool, arguments: Any, result: Any, *, rectifies: bool = False) -> None:
        tensors, number, key = tensors_of(arguments), len(self.steps), (name, self._counts[name])
        self._counts[name] += 1
        sources = tuple(self._made.get(tensor, -1) for tensor in tensors)
        self.steps.append(Step(key, sources, is_layer, tuple(tuple(t.shape) for t in tensors), rectifies))
        for tensor in tensors_of(result):
            self._made[tensor] = number  # written in place: the tensor is this step's from now on
            self._after(key, tensor)


@dataclass(frozen=True, eq=False)
class Flow:
    """The steps of a network, and what can be read from them."""

    steps: tuple[Step, ...]

    @cached_property
    def _readers(self) -> Mapping[int, tuple[int, ...]]:
        readers: dict[int, tuple[int, ...]] = {}
        for number, step in enumerate(self.steps):
            for source in step.sources:
                readers[source] = (*readers.get(source, ()), number)
        return readers

    @cached_property
    def _calls(self) -> Mapping[str, tuple[int, ...]]:
        calls: dict[str, tuple[int, ...]] = {}
        for number, step in enumerate(self.steps):
            if step.is_layer:
                calls[step.name] = (*calls.get(step.name, ()), number)
        return calls

    def call(self, layer: str) -> int | None:
        """The number of a layer's step; None if it ran twice or not at all."""
        calls = self._calls.get(layer, ())
        return calls[0] if len(calls) == 1 else None

    def norm_after(self, network: nn.Module, layer: str) -> str | None:
        """The batch normalisation that reads a layer's output, if nothing else does (and it is used once)."""
        reader = self._only_reader(self.call(layer))
        if reader is None or not self.steps[reader].is_layer:
            return None
        name, dims = self.steps[reader].name, len(self.steps[reader].shapes[0])
        axes = {spec_of(network.get_submodule(n)).channel_dim % dims for n in (layer, name)}
        alike = len(axes) == 1 and has_statistics(network.get_submodule(name))
        return name if alike and self.call(name) is not None else None

    def meeting(self, number: int) -> tuple[int, int] | None:
        """(addition, other summand) where the result of a step goes into a plain addition and nowhere else."""
        reader = self._only_reader(number)
        if reader is None:
            return None
        step = self.steps[reader]
        plain = not step.is_layer and step.name in ADDITIONS and len(step.sources) == 2 and len(set(step.shapes)) == 1
        if not plain or step.sources[0] == step.sources[1] or -1 in step.sources:
            return None
        return reader, step.sources[0] if step.sources[1] == number else step.sources[1]

    def rectified(self, number: int) -> bool:
        """Whether the result of a step goes into a rectifier and nowhere else."""
        reader = self._only_reader(number)
        return reader is not None and self.steps[reader].rectifies

    def _only_reader(self, number: int | None) -> int | None:
        readers = self._readers.get(number, ()) if number is not None else ()
        return readers[0] if len(readers) == 1 else None


def record(network: nn.Module, forward: Callable[[], Any]) -> Flow:
    """The flow of one forward pass."""
    recorder = Recorder(network)
    recorder.run(forward)
    return Flow(tuple(recorder.steps))


def has_statistics(layer: nn.Module) -> bool:
    """Whether a layer normalises each channel by running statistics, as batch normalisation does in eval mode."""
    spec = describe_layer(layer)
    return spec is not None and spec.role == "norm" and getattr(layer, "running_mean", None) is not None


def _rectifies(operator: str, args: tuple[Any, ...]) -> bool:
    return operator in RECTIFIERS or (operator in CLAMPS and len(args) > 1 and args[1] == 0)
