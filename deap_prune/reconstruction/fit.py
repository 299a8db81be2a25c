"""One layer, with the batch normalisation after it, fitted to wanted outputs by ridge regression."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.reconstruction.matrix import from_matrix, solve, to_matrix
from deap_prune.structure.layers import spec_of

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of the features
HELD_OUT = 0.2
ROUNDS = 5  # of fitting before a rectifier; the first ones bring most


@dataclass(frozen=True, eq=False)
class Map:
    """An affine map of features, block by block: weight (blocks, n, outputs), constant (blocks, 1, outputs)."""

    weight: Tensor
    constant: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Features (blocks, rows, n) to outputs (blocks, rows, outputs)."""
        return x @ self.weight + self.constant


@dataclass(frozen=True, eq=False)
class _Rows:
    """What a layer reads, and what it should make of it.

    Attributes:
        x: Features, (blocks, rows, n).
        wanted: Outputs, (blocks, rows, outputs).
        floor: What is below it is as good as it, since a rectifier reads the outputs; None without one.
    """

    x: Tensor
    wanted: Tensor
    floor: Tensor | None

    def part(self, rows: slice) -> _Rows:
        return _Rows(self.x[:, rows], self.wanted[:, rows], None if self.floor is None else self.floor[:, rows])

    def aim(self, made: Tensor) -> Tensor:
        """The outputs nearest to those that are made, of all that are as good as the wanted ones."""
        if self.floor is None:
            return self.wanted
        return torch.where(self.wanted > self.floor, self.wanted, torch.minimum(made, self.floor))

    def error(self, fit: Map) -> float:
        """Summed squared error."""
        made = fit(self.x)
        return float((self.aim(made) - made).square().sum())


@dataclass(frozen=True, eq=False)
class _RowSums:
    """Sums over rows of features, wanted outputs and their products; sums of two parts can be added."""

    rows: int
    first: Tensor
    wanted: Tensor
    square: Tensor
    cross: Tensor

    @classmethod
    def of(cls, x: Tensor, wanted: Tensor) -> _RowSums:
        first, level = x.sum(dim=1, keepdim=True), wanted.sum(dim=1, keepdim=True)
        return cls(x.shape[1], first, level, x.transpose(1, 2) @ x, x.transpose(1, 2) @ wanted)

    def __add__(self, other: _RowSums) -> _RowSums:
        rows = self.rows + other.rows
        return _RowSums(rows, *(getattr(self, n) + getattr(other, n) for n in ("first", "wanted", "square", "cross")))

    def aimed(self, x: Tensor, wanted: Tensor) -> _RowSums:
        """Of the same features with other outputs."""
        return replace(self, wanted=wanted.sum(dim=1, keepdim=True), cross=x.transpose(1, 2) @ wanted)

    def moments(self, intercept: bool) -> _CentredMoments:
        mean, level = self.first / self.rows, self.wanted / self.rows
        if not intercept:
            mean, level = torch.zeros_like(mean), torch.zeros_like(level)
        square = self.square / self.rows - mean.transpose(1, 2) @ mean
        return _CentredMoments(mean, level, square, self.cross / self.rows - mean.transpose(1, 2) @ level)


@dataclass(frozen=True, eq=False)
class _CentredMoments:
    """Centred moments of features and wanted outputs (raw ones, means of zero, where there is no intercept)."""

    mean: Tensor
    wanted: Tensor
    square: Tensor
    cross: Tensor

    def fit(self, current: Map, ridge: float, intercept: bool) -> Map:
        """The ridge regression that is drawn to the current weights."""
        change, _ = solve(self.square.clone(), self.cross - self.square @ current.weight, ridge)
        weight = current.weight + change
        return Map(weight, self.wanted - self.mean @ weight if intercept else current.constant)


def fit_layer(layer: Any, norm: Any, x: Tensor, wanted: Tensor, *, floor: Tensor | None = None) -> None:
    """Fit a layer in place, so that what it makes (after the normalisation, if there is one) comes near what is wanted.

    The ridge is the smallest of ``RIDGES`` with which a fit on the other rows makes a smaller error on the last fifth
    than the layer as it is; with none, nothing is changed. The fit that is judged so is that before the rounds below:
    with them it takes a fifth longer, and chose otherwise in at most one layer of a network. (Which rule does better:
    ``benchmarks/compensation.py --cases ridges``.)

    With a floor the error is one-sided where no more than the floor is wanted: a rectifier makes the same of all that
    is below. That is convex, and every round of fitting to the nearest outputs that are as good lowers it (with the
    ridge's share). Zhang et al. (TPAMI 2016, arXiv 1505.06798) look through rectifiers by a penalty instead.

    Args:
        layer: With weights that its patches are multiplied with.
        norm: The batch normalisation that reads it, or None.
        x: What it reads, (blocks, rows, features).
        wanted: (rows, outputs).
        floor: (rows, outputs), or None.
    """
    rows = _Rows(x, _by_block(wanted, len(x)), None if floor is None else _by_block(floor, len(x)))
    intercept = norm is not None or layer.bias is not None
    current = current_map(layer, norm)
    cut = max(1, round(x.shape[1] * (1 - HELD_OUT)))
    if cut == x.shape[1]:
        return
    fitted_on, held_out = rows.part(slice(cut)), rows.part(slice(cut, None))
    sums = _RowSums.of(fitted_on.x, fitted_on.wanted)
    first = sums.moments(intercept)
    start = _restandardised(layer, norm, current, first)
    as_is = held_out.error(current)
    chosen = choose(((ridge, held_out.error(first.fit(start, ridge, intercept))) for ridge in RIDGES), as_is)
    if chosen is None:
        return
    sums = sums + _RowSums.of(held_out.x, held_out.wanted)
    moments = sums.moments(intercept)
    found = moments.fit(start, chosen, intercept)
    for _ in range(0 if floor is None else ROUNDS):
        moments = sums.aimed(x, rows.aim(found(x))).moments(intercept)
        found = moments.fit(start, chosen, intercept)
    layer.weight.data.copy_(from_matrix(found.weight.unsqueeze(3), layer.weight, spec_of(layer), "full"))
    if norm is not None:
        _absorb(layer, norm, found, moments)
    elif intercept:
        layer.bias.data.copy_(found.constant.flatten())


def _by_block(y: Tensor, blocks: int) -> Tensor:
    """(rows, outputs) as (blocks, rows, outputs of a block)."""
    return y.reshape(len(y), blocks, -1).transpose(0, 1)


def choose(errors: Iterable[tuple[float, float]], as_is: float) -> float | None:
    """The first ridge with an error below the layer's as it is, or None.

    Args:
        errors: Of (ridge, error on rows held out), smallest ridge first.
        as_is: Of the layer as it is, on the same rows.
    """
    return next((ridge for ridge, error in errors if error < as_is), None)


def current_map(layer: Any, norm: Any) -> Map:
    """The affine map that the layer and its normalisation are now."""
    weight = to_matrix(layer.weight.detach(), spec_of(layer), "full").squeeze(3)
    outputs = len(weight) * weight.shape[2]
    constant = weight.new_zeros(outputs) if layer.bias is None else layer.bias.detach()
    gain = torch.ones_like(constant)
    if norm is not None:
        scale, shift = _affine(norm)
        gain = scale / (norm.running_var + norm.eps).sqrt()
        constant = (constant - norm.running_mean) * gain + shift
    return Map(weight * gain.view(len(weight), 1, -1), constant.view(len(weight), 1, -1))


def _restandardised(layer: Any, norm: Any, current: Map, moments: _CentredMoments) -> Map:
    """The current weights, with the statistics of what the layer reads now: stale ones have a wrong scale."""
    if norm is None:
        return current
    weight = to_matrix(layer.weight.detach(), spec_of(layer), "full").squeeze(3)
    variance = (weight * (moments.square @ weight)).sum(dim=1, keepdim=True).clamp_min(0)
    scale = _affine(norm)[0]
    scale = scale.view_as(variance) if isinstance(scale, Tensor) else scale
    return Map(weight * scale / (variance + norm.eps).sqrt(), current.constant)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor | float, Tensor | float]:
    return (1.0, 0.0) if norm.weight is None else (norm.weight.detach(), norm.bias.detach())


def _absorb(layer: Any, norm: Any, found: Map, moments: _CentredMoments) -> None:
    """Let the normalisation be the identity plus the constant, its statistics being those of what it reads.

    So the network does not jump when it is trained on: in training, too, scale and shift are those of the fit.
    """
    level = (moments.mean @ found.weight).flatten()
    if norm.weight is None:  # no scale to undo the statistics with: variance 1
        norm.running_mean.copy_(level - moments.wanted.flatten() + (0 if layer.bias is None else layer.bias.detach()))
        norm.running_var.fill_(1 - norm.eps)
        return
    variance = (found.weight * (moments.square @ found.weight)).sum(dim=1).clamp_min(0).flatten()
    norm.running_mean.copy_(level if layer.bias is None else level + layer.bias.detach())
    norm.running_var.copy_(variance)
    norm.weight.data.copy_((variance + norm.eps).sqrt())
    norm.bias.data.copy_(moments.wanted.flatten())
