"""Weights as matrices: a layer's output is its patches times a matrix, block by block; and ridge regression on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from deap_prune.errors import RegistryError
from deap_prune.structure.layers import Axis, LayerSpec, describe_layer, spec_of
from deap_prune.structure.space import Ids

Form = Literal["full", "channel"]
PIECE = 16 * 1024**2  # bytes of patches held at once
RIDGE = 1e-3  # share of the mean variance of a layer's kept features
ESCALATION = (0.1, 10.0)  # the last ridges that are tried where a matrix is not definite, as shares likewise
_FIRST = (0, 1)


def refittable(layer: nn.Module) -> LayerSpec | None:
    """The spec of a layer whose weights can be re-fitted, or None."""
    spec = describe_layer(layer)
    usable = spec is not None and spec.patches is not None and isinstance(getattr(layer, "weight", None), nn.Parameter)
    return spec if usable else None


def patches_of(layer: nn.Module, source: Tensor, picks: Tensor) -> Tensor:
    """Patches that a layer reads at the picked output positions, (picks, channels, taps); see ``LayerSpec.patches``."""
    patches = spec_of(layer).patches
    if patches is None:
        raise RegistryError(f"{type(layer).__qualname__} was registered without patches; see dp.LayerSpec")
    return patches(layer, source.detach(), picks)


def pieces(layer: nn.Module, source: Tensor, picks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over the picks in parts of at most ``PIECE`` bytes, with the patches there; see :func:`patches_of`."""
    width = source.element_size() * spec_of(layer).in_channels
    taps = layer.get_parameter("weight")[0, 0].numel()
    for some in picks.split(max(1, PIECE // (width * taps))):
        yield some, patches_of(layer, source, some)


def pick(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` different numbers below ``total``, one from each of ``count`` equal parts; at most all."""
    if count >= total:
        return torch.arange(total)
    noise = torch.rand(count, generator=generator, dtype=torch.float64)
    return ((torch.arange(count) + noise) * (total / count)).long().clamp_max(total - 1)


def positions(output: Tensor, spec: LayerSpec) -> Tensor:
    """A layer's output as (positions, channels)."""
    return output.movedim(spec.channel_dim, -1).reshape(-1, output.shape[spec.channel_dim])


def rows_at(output: Tensor, spec: LayerSpec, picks: Tensor) -> Tensor:
    """Rows of :func:`positions` at the picked positions, without a copy of the others."""
    moved = output.movedim(spec.channel_dim, -1)
    if moved.dim() == 1:
        return moved.unsqueeze(0)[picks]
    return moved[torch.unravel_index(picks.to(output.device), moved.shape[:-1])]


def blocks_of(spec: LayerSpec) -> int:
    """Number of parts of a layer that read disjoint inputs; in a depthwise layer every channel is one."""
    return spec.in_channels if spec.coupled else spec.blocks


def to_matrix(weight: Tensor, spec: LayerSpec, form: Form) -> Tensor:
    """A weight as (blocks, features, outputs of a block, taps).

    In the full form a feature is an input at a tap, and the last dimension is 1. In the channel form a feature is an
    input, and its taps are outputs of their own.
    """
    rows = weight.movedim(_dims(spec), _FIRST[: len(_dims(spec))])  # outputs, inputs, and the taps
    rows = rows.flatten(2) if rows.dim() > 2 else rows.unsqueeze(2)
    blocks = blocks_of(spec)
    rows = rows.reshape(blocks, spec.out_channels // blocks, rows.shape[1], rows.shape[2])
    if form == "full":
        return rows.flatten(2).transpose(1, 2).unsqueeze(3)
    return rows.transpose(1, 2)


def from_matrix(matrix: Tensor, weight: Tensor, spec: LayerSpec, form: Form) -> Tensor:
    """The inverse of :func:`to_matrix`: a tensor in the layout of ``weight``."""
    dims = _dims(spec)
    moved = weight.movedim(dims, _FIRST[: len(dims)])
    rows = matrix.squeeze(3).transpose(1, 2) if form == "full" else matrix.transpose(1, 2)
    return rows.reshape(moved.shape).movedim(_FIRST[: len(dims)], dims)


def to_features(patches: Tensor, blocks: int, form: Form) -> Tensor:
    """Patches (rows, channels, taps) as (blocks, rows, features); in the channel form every tap is a row of its own."""
    rows, channels, taps = patches.shape
    split = patches.reshape(rows, blocks, channels // blocks, taps)
    if form == "full":
        return split.flatten(2).transpose(0, 1)
    return split.permute(1, 0, 3, 2).reshape(blocks, rows * taps, channels // blocks)


def features(channels: Ids, taps: int, form: Form) -> Ids:
    """Feature indices of channels (blocks, n), counted within a block: (blocks, n * taps) in the full form."""
    if form == "channel" or taps == 1:
        return channels
    return (channels[:, :, None] * taps + np.arange(taps)).reshape(len(channels), -1)


def _dims(spec: LayerSpec) -> tuple[int, ...]:
    names = spec.tensors["weight"]
    axes: tuple[Axis, ...] = ("out", "in")
    return tuple(names.index(axis) for axis in axes if axis in names)


def part(tensor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Select rows (blocks, r) and columns (blocks, c) of a tensor (blocks, n, m, ...)."""
    if len(tensor) == 1:
        return tensor[0].index_select(0, rows[0]).index_select(1, columns[0]).unsqueeze(0)
    block = torch.arange(len(tensor), device=tensor.device)[:, None, None]
    return tensor[block, rows[:, :, None], columns[:, None, :]]


def factorise(square: Tensor, ridge: float) -> tuple[Tensor, Tensor] | None:
    """Cholesky factors of A + r, block by block, r being the smallest of a few ridges with which all succeed.

    Where features hardly vary, moments are rounding alone and can have negative eigenvalues: r grows then.

    Args:
        square: A, symmetric and positive semidefinite up to rounding, (blocks, n, n); it is overwritten by A + r.
        ridge: Smallest r, as a share of the mean of A's diagonal.

    Returns:
        The lower factors and r of shape (blocks, 1, 1); None if no r makes A definite (values that are not finite).
    """
    diagonal = square.diagonal(dim1=1, dim2=2)
    scale = diagonal.mean(dim=1, keepdim=True).clamp_min(torch.finfo(square.dtype).tiny ** 0.5)
    added = torch.zeros_like(scale)
    for share in (ridge, 10 * ridge, 1000 * ridge, *(share for share in ESCALATION if share > 1000 * ridge)):
        diagonal.add_(share * scale - added)
        added = share * scale
        factor, failed = torch.linalg.cholesky_ex(square)
        if not bool(failed.any()):
            return factor, added.unsqueeze(2)
    return None


class Solver:
    """Solves (A + r) x = b block by block, with one factorisation for all b.

    Args:
        square: A, symmetric and positive semidefinite up to rounding, (blocks, n, n); it is overwritten.
        ridge: Smallest r, as a share of the mean of A's diagonal.

    Attributes:
        added: r, of shape (blocks, 1, 1).
    """

    def __init__(self, square: Tensor, ridge: float) -> None:
        half = square.dtype in (torch.float16, torch.bfloat16)  # which have no Cholesky factorisation
        result = factorise(square.float() if half else square, ridge)
        self._factor = None if result is None else result[0]
        self.added = (torch.ones_like(square[:, :1, :1]) if result is None else result[1]).to(square.dtype)

    def __call__(self, target: Tensor) -> Tensor:
        """X for b of shape (blocks, n, m); 0 if no r makes A definite (values that are not finite)."""
        if self._factor is None:
            return torch.zeros_like(target)
        return torch.cholesky_solve(target.to(self._factor.dtype), self._factor).to(target.dtype)


def solve(square: Tensor, target: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Solve (A + r) x = b once; see :class:`Solver`.

    Args:
        square: A, (blocks, n, n); it is overwritten.
        target: b, (blocks, n, m).
        ridge: Smallest r, as a share of the mean of A's diagonal.

    Returns:
        x, and r of shape (blocks, 1, 1); if no r makes A definite (values that are not finite), x is 0 and r is 1.
    """
    solver = Solver(square, ridge)
    return solver(target), solver.added
