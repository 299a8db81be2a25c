"""How a pruned network runs over the validation data: slim, or at full size under its mask.

On a CPU time follows the multiply-adds, so the slim network runs, with its batch norms folded. On CUDA the full network
runs: its shapes are the same for all candidates, so its forward pass is captured once as a graph and replayed.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any, Protocol

import torch
from torch import nn

from deap_prune.cuda_graphs import Graphs
from deap_prune.data.batches import Forward
from deap_prune.fitness.fold import Pair, fold, folded
from deap_prune.structure.layers import spec_of
from deap_prune.structure.masking import masked
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace


class Executor(Protocol):
    """Runs one candidate after the other."""

    def load(self, small: nn.Module, masks: Masks) -> None:
        """Take over a candidate's slim network, which the executor may change.

        Args:
            small: The slim network, ready to be evaluated.
            masks: Its masks.
        """

    def __call__(self, batch: Any) -> tuple[Any, Any]:
        """(outputs, targets) of a batch."""


def make_executor(
    kind: str,
    network: nn.Module,
    space: PruningSpace,
    *,
    forward: Forward,
    pairs: tuple[Pair, ...],
    dtype: torch.dtype | None,
    device: torch.device,
) -> Executor:
    """The executor of a kind: ``"slim"``, ``"masked"``, or ``"auto"``, by the device."""
    static = all(_keeps_shapes(network, entry.name, entry.inputs.max()) for entry in space.layers if entry.dim is None)
    static &= not space.mixing
    if kind == "slim" or (kind == "auto" and not (device.type == "cuda" and static)):
        return SlimExecutor(forward, pairs, dtype, device)
    run = _Precise(forward, dtype, device)
    return MaskedExecutor(network, space, run, pairs if static and device.type == "cuda" else None)


def _keeps_shapes(network: nn.Module, name: str, highest: int) -> bool:
    """Whether the layer reads tensors of the same shapes under every mask, or none of its inputs can be pruned."""
    return highest < 0 or not spec_of(network.get_submodule(name)).whole


class _Precise:
    """The forward function without gradients, under autocast if a dtype is given."""

    def __init__(self, forward: Forward, dtype: torch.dtype | None, device: torch.device) -> None:
        self._forward, self._dtype, self._device = forward, dtype, device

    @torch.no_grad()
    def __call__(self, network: nn.Module, batch: Any) -> tuple[Any, Any]:
        enabled = self._dtype is not None
        # The weights of a captured graph change, so casts must not be cached.
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=enabled, cache_enabled=False):
            return self._forward(network, batch)


class SlimExecutor:
    """Runs the slim network, with batch norms folded and weights of convolutions in channels_last."""

    def __init__(
        self, forward: Forward, pairs: tuple[Pair, ...], dtype: torch.dtype | None, device: torch.device
    ) -> None:
        self._run, self._pairs = _Precise(forward, dtype, device), pairs
        self._network: nn.Module = nn.Identity()

    @torch.no_grad()
    def load(self, small: nn.Module, masks: Masks) -> None:
        """See :class:`Executor`."""
        fold(small, self._pairs)
        for parameter in small.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._network = small

    def __call__(self, batch: Any) -> tuple[Any, Any]:
        """See :class:`Executor`."""
        return self._run(self._network, batch)


class MaskedExecutor:
    """Runs the full-size network under the mask; with ``pairs``, as a CUDA graph with those batch norms folded."""

    def __init__(self, network: nn.Module, space: PruningSpace, run: _Precise, pairs: tuple[Pair, ...] | None) -> None:
        self._network, self._space, self._run = copy.deepcopy(network), space, run
        self._twin = None if pairs is None else _Twin(network, run, pairs)
        self._undo = ExitStack()

    def load(self, small: nn.Module, masks: Masks) -> None:
        """See :class:`Executor`."""
        self._undo.close()
        self._undo.enter_context(masked(self._network, self._space, masks, state=small))
        if self._twin is not None:
            self._twin.load(self._network)

    def __call__(self, batch: Any) -> tuple[Any, Any]:
        """See :class:`Executor`."""
        return self._run(self._network, batch) if self._twin is None else self._twin(batch)


class _Twin:
    """A twin of the network at fixed addresses, whose forward pass is captured."""

    def __init__(self, network: nn.Module, run: _Precise, pairs: tuple[Pair, ...]) -> None:
        self._network, self._pairs = copy.deepcopy(network), pairs
        fold(self._network, pairs)
        self._graphs = Graphs(partial(run, self._network), name="the forward pass")

    @torch.no_grad()
    def load(self, source: nn.Module) -> None:
        """Copy a network's parameters and buffers into the twin."""
        values = dict(chain(source.named_parameters(), source.named_buffers()))
        for first, second in self._pairs:
            pair = folded(source.get_submodule(first), source.get_submodule(second))
            values |= zip((f"{first}.weight", f"{first}.bias"), pair, strict=True)
        for name, tensor in chain(self._network.named_parameters(), self._network.named_buffers()):
            tensor.copy_(values[name])

    def __call__(self, batch: Any) -> tuple[Any, Any]:
        """(outputs, targets) of a batch."""
        outputs, targets = self._graphs(batch)
        return outputs, targets
