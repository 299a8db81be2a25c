"""Masks: which filters of each group stay. And the network under a mask, full size, with the rest ignored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deap_prune.errors import MaskError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deap_prune.structure.space import PruningSpace


class Masks(Mapping[str, NDArray[np.bool_]]):
    """Group name to a boolean array, True where the filter stays. Immutable and hashable; NumPy inside.

    Args:
        keep: Group name to anything that converts to booleans, shape (group.size,). Groups left out stay dense.

    Raises:
        MaskError: If an entry is not one-dimensional and boolean.
    """

    def __init__(self, keep: Mapping[str, ArrayLike]) -> None:
        self._keep: dict[str, NDArray[np.bool_]] = {}
        for name, values in keep.items():
            array = np.array(values)
            if array.ndim != 1 or array.dtype != np.bool_:
                raise MaskError(
                    f"the mask of '{name}' has dtype {array.dtype} and shape {array.shape}; "
                    "give one boolean for each filter (True: keep)"
                )
            array.flags.writeable = False
            self._keep[name] = array

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        return self._keep[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keep)

    def __len__(self) -> int:
        return len(self._keep)

    @cached_property
    def _key(self) -> tuple[tuple[str, bytes], ...]:
        return tuple(sorted((name, keep.tobytes()) for name, keep in self._keep.items()))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masks) and self._key == other._key

    def __repr__(self) -> str:
        return f"Masks({', '.join(f'{name}: {keep.sum()}/{len(keep)}' for name, keep in self._keep.items())})"

    @classmethod
    def random(cls, space: PruningSpace, *, keep: float = 0.5, seed: int = 0) -> Masks:
        """Masks that keep a share of each group, drawn uniformly (at least one filter a block).

        Args:
            space: The groups.
            keep: Share of the filters in (0, 1].
            seed: Of NumPy's generator.

        Raises:
            MaskError: If ``keep`` is outside (0, 1].
        """
        if not 0 < keep <= 1:
            raise MaskError(f"keep is {keep}; it must be above 0 and at most 1")
        rng = np.random.default_rng(seed)
        found = {}
        for group in space.groups:
            noise = rng.random((group.blocks, group.size // group.blocks))
            number = max(1, round(keep * noise.shape[1]))
            found[group.name] = (noise.argsort(axis=1).argsort(axis=1) < number).reshape(-1)
        return cls(found)

    def to_json(self) -> str:
        """JSON text: for each group its size and the indices that stay."""
        groups = {name: {"size": len(k), "keep": np.flatnonzero(k).tolist()} for name, k in self._keep.items()}
        return json.dumps({"masks": groups})

    @classmethod
    def from_json(cls, text: str) -> Masks:
        """The masks that :meth:`to_json` wrote.

        Raises:
            MaskError: If the text is not such JSON.
        """
        try:
            keep = {}
            for name, entry in json.loads(text)["masks"].items():
                keep[name] = np.zeros(int(entry["size"]), dtype=np.bool_)
                keep[name][np.array(entry["keep"], dtype=np.intp)] = True
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise MaskError(f"not masks in JSON, as Masks.to_json writes them: {error!r}") from error
        return cls(keep)


@contextmanager
def masked(
    model: nn.Module, space: PruningSpace, masks: Masks, *, state: nn.Module | None = None
) -> Iterator[nn.Module]:
    """The network at full size, its pruned channels ignored by every layer that reads them; undone at the end.

    Args:
        model: The network that was traced, wrapped or not, on any device.
        space: Its space.
        masks: What stays.
        state: A slimmed network whose weights and statistics take the place of the kept ones (as judged, with BN
            statistics re-estimated); None keeps the network's own.

    Raises:
        MaskError: If the masks don't fit the space.
    """
    from deap_prune.structure.layers import describe_layer
    from deap_prune.structure.slim import unwrap

    network, kept = unwrap(model), space.kept(masks)
    donor = dict(state.named_modules()) if state is not None else {}
    saved: list[tuple[torch.Tensor, torch.Tensor]] = []
    replaced: list[nn.Module] = []
    try:
        for entry in space.layers:
            ins, outs = np.flatnonzero(kept[entry.inputs]), np.flatnonzero(kept[entry.outputs])
            if entry.dim is not None:
                if state is not None:
                    parameter = network.get_parameter(entry.name)
                    index = [slice(None)] * entry.dim + [outs]
                    _overwrite(parameter, tuple(index), state.get_parameter(entry.name), saved)
                continue
            layer = network.get_submodule(entry.name)
            spec = describe_layer(layer)
            if spec is None:
                raise MaskError(f"'{entry.name}' is a {type(layer).__name__}, which was not traced: is this the network?")
            if spec.whole:
                if len(ins) < len(entry.inputs):
                    _run_narrowed(layer, donor.get(entry.name), spec, ins, outs)
                    replaced.append(layer)
                    continue
            _mask_layer(layer, donor.get(entry.name), spec, kept[entry.inputs], outs, saved)
        yield model
    finally:
        for layer in replaced:
            del layer.forward
        for tensor, original in reversed(saved):
            tensor.data = original


def _mask_layer(
    layer: nn.Module, donor: nn.Module | None, spec: Any, keep_in: NDArray[np.bool_], outs: NDArray[np.intp], saved: Any
) -> None:
    """Zero what reads pruned inputs, and put the donor's values where the kept ones stand."""
    from deap_prune.structure.layers import selection

    for name, dims in spec.tensors.items():
        tensor = getattr(layer, name)
        if tensor is None or (donor is None and ("in" not in dims or keep_in.all())):
            continue
        value = tensor.detach().clone()
        if "in" in dims and not keep_in.all():
            every = np.arange(spec.out_channels)
            value[selection(tensor, spec, name, np.flatnonzero(~keep_in), every)] = 0
        if donor is not None:
            index = selection(tensor, spec, name, np.flatnonzero(keep_in), outs)
            value[index] = getattr(donor, name).detach().to(value).reshape(value[index].shape)
        saved.append((tensor, tensor.data))
        tensor.data = value


def _overwrite(tensor: torch.Tensor, index: tuple[Any, ...], value: torch.Tensor, saved: Any) -> None:
    full = tensor.detach().clone()
    full[index] = value.detach().to(full)
    saved.append((tensor, tensor.data))
    tensor.data = full


def _run_narrowed(
    layer: nn.Module, donor: nn.Module | None, spec: Any, ins: NDArray[np.intp], outs: NDArray[np.intp]
) -> None:
    """Let the layer see its kept channels alone: gather, run the narrowed copy, scatter."""
    import copy

    import torch

    from deap_prune.structure.layers import narrow_layer

    small = copy.deepcopy(layer)
    narrow_layer(small, ins, outs)
    if donor is not None:
        small.load_state_dict(donor.state_dict())
    dim = spec.channel_dim

    def forward(x: torch.Tensor) -> torch.Tensor:
        index = torch.as_tensor(ins, device=x.device)
        narrow = small(x.index_select(dim, index))
        shape = list(narrow.shape)
        shape[dim] = spec.out_channels
        return narrow.new_zeros(shape).index_copy_(dim % x.dim(), torch.as_tensor(outs, device=x.device), narrow)

    layer.forward = forward  # type: ignore[method-assign]
