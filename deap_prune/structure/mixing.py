"""Torch functions outside of the layers that mix channels: under a mask they run on the kept channels only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from deap_prune.structure.call_stack import module_frames

Channels = tuple[int, NDArray[np.intp]] | None  # the dimension of a tensor that holds channels, and their ids
Key = tuple[str, str, int]  # module, function, number of the call


@dataclass(frozen=True, eq=False)
class MixingCall:
    """A call of a torch function that mixes channels (a mean over channels, attention, a functional norm).

    Attributes:
        module: Qualified name of the module whose code calls the function.
        function: Name of the function.
        number: Place of the call among the calls of this function by this module in one forward pass, from 0.
        inputs: Dimension and ids of the channels of each tensor argument; None: the argument has no channels.
        outputs: The same for each tensor of the result.
    """

    module: str
    function: str
    number: int
    inputs: tuple[Channels, ...]
    outputs: tuple[Channels, ...]


class CallNumbers:
    """Numbers the calls of torch functions by module, from 0 in every forward pass.

    Args:
        network: Its modules are the callers.
    """

    def __init__(self, network: nn.Module) -> None:
        self._names = {id(module): name for name, module in network.named_modules()}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._pass: FrameType | None = None

    def key(self, function: str) -> Key | None:
        """The key of the call that is made now; None if the code that calls belongs to no module of the network."""
        frames = list(module_frames())
        if not frames or id(frames[0][1]) not in self._names:
            return None
        own = [frame for frame, module in frames if id(module) in self._names]
        outermost = next((frame for frame in reversed(own) if frame.f_code.co_name == "forward"), own[-1])
        if outermost is not self._pass:  # another forward pass
            self._pass = outermost
            self._counts.clear()
        name = self._names[id(frames[0][1])]
        self._counts[name, function] += 1
        return name, function, self._counts[name, function] - 1


class KeptChannels(TorchFunctionMode):
    """Runs the mixing calls of a masked network on the kept channels.

    Args:
        network: The network.
        calls: Its mixing calls.
        kept: True for the channel ids that stay, as from ``space.kept(masks)``.
    """

    def __init__(self, network: nn.Module, calls: Sequence[MixingCall], kept: NDArray[np.bool_]) -> None:
        super().__init__()
        self._calls: Mapping[Key, MixingCall] = {(c.module, c.function, c.number): c for c in calls}
        self._functions = {call.function for call in calls}
        self._numbers, self._kept = CallNumbers(network), kept

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Leave all calls as they are, for a mask inside this one."""
        functions, self._functions = self._functions, set()
        try:
            yield
        finally:
            self._functions = functions

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, function_name(func)
        key = self._numbers.key(name) if name in self._functions else None
        call = self._calls.get(key) if key is not None else None
        return func(*args, **kwargs) if call is None else self._run(call, func, args, kwargs)

    def _run(self, call: MixingCall, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for place, channels in zip(places, call.inputs, strict=True):
            if channels is not None:
                index = self._index(channels, leaves[place])
                leaves[place] = leaves[place].index_select(channels[0], index)
        args, kwargs = tree_unflatten(leaves, structure)
        if func in (F.layer_norm, F.rms_norm):  # the shape is that of the last dimensions
            (x, shape, *rest) = args if len(args) > 1 else (args[0], kwargs.pop("normalized_shape"))
            args = (x, x.shape[x.dim() - len(shape) :], *rest)
        leaves, structure = tree_flatten(func(*args, **kwargs))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for place, channels in zip(places, call.outputs, strict=True):
            if channels is not None:
                narrow, shape = leaves[place], list(leaves[place].shape)
                shape[channels[0]] = len(channels[1])
                wide = narrow.new_zeros(shape)
                leaves[place] = wide.index_copy(channels[0], self._index(channels, narrow), narrow)
        return tree_unflatten(leaves, structure)

    def _index(self, channels: tuple[int, NDArray[np.intp]], like: Tensor) -> Tensor:
        return torch.from_numpy(np.flatnonzero(self._kept[channels[1]])).to(like.device)


def function_name(func: Callable[..., Any]) -> str:
    """Name of a torch function; functions and methods of one name share it."""
    return str(getattr(func, "__name__", func))
