"""One layer, with the batch normalisation after it, fitted to target outputs by ridge regression."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.reconstruction.matrix import Solver, from_matrix, to_matrix
from deap_prune.structure.layers import spec_of

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of the features
HELD_OUT = 0.2
MOST = 0.8  # 1 loses a point on ResNet-20, CIFAR-100; with the first ridge that brings anything, MobileNetV2 loses two
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
        target: Outputs, (blocks, rows, outputs).
        floor: What is below it is as good as it, since a rectifier reads the outputs; None without one.
    """

    x: Tensor
    target: Tensor
    floor: Tensor | None

    def part(self, rows: slice) -> _Rows:
        return _Rows(self.x[:, rows], self.target[:, rows], None if self.floor is None else self.floor[:, rows])

    def aim(self, made: Tensor) -> Tensor:
        """The outputs nearest to ``made`` among all that are as good as the targets."""
        if self.floor is None:
            return self.target
        return torch.where(self.target > self.floor, self.target, torch.minimum(made, self.floor))

    def error(self, fit: Map) -> float:
        """Summed squared error."""
        made = fit(self.x)
        return float((self.aim(made) - made).square().sum())


@dataclass(frozen=True, eq=False)
class _RowSums:
    """Sums over rows of features, target outputs and their products; the sums of two parts can be added."""

    rows: int
    first: Tensor
    target: Tensor
    square: Tensor
    cross: Tensor

    @classmethod
    def of(cls, x: Tensor, target: Tensor) -> _RowSums:
        first, level = x.sum(dim=1, keepdim=True), target.sum(dim=1, keepdim=True)
        return cls(x.shape[1], first, level, x.transpose(1, 2) @ x, x.transpose(1, 2) @ target)

    def __add__(self, other: _RowSums) -> _RowSums:
        rows = self.rows + other.rows
        return _RowSums(rows, *(getattr(self, n) + getattr(other, n) for n in ("first", "target", "square", "cross")))

    def moments(self, intercept: bool) -> _CentredMoments:
        mean, level = self.first / self.rows, self.target / self.rows
        if not intercept:
            mean, level = torch.zeros_like(mean), torch.zeros_like(level)
        square = self.square / self.rows - mean.transpose(1, 2) @ mean
        return _CentredMoments(mean, level, square, self.cross / self.rows - mean.transpose(1, 2) @ level)


@dataclass(frozen=True, eq=False)
class _CentredMoments:
    """Centred moments of features and target outputs (raw moments and means of zero without an intercept)."""

    mean: Tensor
    target: Tensor
    square: Tensor
    cross: Tensor

    def aimed(self, x: Tensor, target: Tensor, intercept: bool) -> _CentredMoments:
        """Of the same features with other outputs."""
        level = target.mean(dim=1, keepdim=True) if intercept else torch.zeros_like(self.target)
        cross = x.transpose(1, 2) @ target / x.shape[1] - self.mean.transpose(1, 2) @ level
        return replace(self, target=level, cross=cross)

    def fit(self, current: Map, ridge: float, intercept: bool, solver: Solver | None = None) -> Map:
        """The ridge regression that is drawn to the current weights; a solver of the same square saves its work."""
        solver = solver or Solver(self.square.clone(), ridge)
        weight = current.weight + solver(self.cross - self.square @ current.weight)
        return Map(weight, self.target - self.mean @ weight if intercept else current.constant)


def fit_layer(layer: Any, norm: Any, x: Tensor, target: Tensor, *, floor: Tensor | None = None) -> None:
    """Fit a layer in place, so that its output (after the normalisation, if there is one) comes near the target.

    The ridges are fits on the first four fifths of the rows; their errors on the last fifth decide (see
    :func:`choose`). If the layer as it is has the smallest, nothing changes. The rounds below do not take part in this
    choice: with them it takes a fifth longer and differs in at most one layer of a network.

    With a floor the error is one-sided where the target is at or below the floor, since a rectifier maps all values
    below the floor to the same output. The problem is convex; every round fits to the nearest outputs that are as good
    as the target, and lowers the error. Zhang et al. (TPAMI 2016, arXiv 1505.06798) use a penalty instead.

    Args:
        layer: A layer whose output is its patches times its weight.
        norm: The batch normalisation that reads it, or None.
        x: Features that the layer reads, (blocks, rows, features).
        target: Target outputs, (rows, outputs).
        floor: (rows, outputs), or None.
    """
    rows = _Rows(x, _by_block(target, len(x)), None if floor is None else _by_block(floor, len(x)))
    intercept = norm is not None or layer.bias is not None
    current = current_map(layer, norm)
    cut = max(1, round(x.shape[1] * (1 - HELD_OUT)))
    if cut == x.shape[1]:
        return
    fitted_on, held_out = rows.part(slice(cut)), rows.part(slice(cut, None))
    sums = _RowSums.of(fitted_on.x, fitted_on.target)
    first = sums.moments(intercept)
    start = _restandardised(layer, norm, current, first)
    as_is = held_out.error(current)
    chosen = choose(((ridge, held_out.error(first.fit(start, ridge, intercept))) for ridge in RIDGES), as_is)
    if chosen is None:
        return
    sums = sums + _RowSums.of(held_out.x, held_out.target)
    moments = sums.moments(intercept)
    solver = Solver(moments.square.clone(), chosen)
    fitted = moments.fit(start, chosen, intercept, solver)
    for _ in range(0 if floor is None else ROUNDS):
        moments = moments.aimed(x, rows.aim(fitted(x)), intercept)
        fitted = moments.fit(start, chosen, intercept, solver)
    layer.weight.data.copy_(from_matrix(fitted.weight.unsqueeze(3), layer.weight, spec_of(layer), "full"))
    if norm is not None:
        _absorb(layer, norm, fitted, moments)
    elif intercept:
        layer.bias.data.copy_(fitted.constant.flatten())


def _by_block(y: Tensor, blocks: int) -> Tensor:
    """(rows, outputs) as (blocks, rows, outputs of a block)."""
    return y.reshape(len(y), blocks, -1).transpose(0, 1)


def choose(errors: Iterable[tuple[float, float]], as_is: float) -> float | None:
    """The smallest ridge that brings most (``MOST``) of what the best one brings; None if none brings anything.

    Ridges are tried until the error rises.

    Args:
        errors: Of (ridge, error on rows held out), smallest ridge first.
        as_is: Of the layer as it is, on the same rows.
    """
    tried = list[tuple[float, float]]()
    for ridge, error in errors:
        tried.append((ridge, as_is - error))
        if len(tried) > 1 and 0 < tried[-2][1] > tried[-1][1]:
            break
    most = MOST * max((gain for _, gain in tried), default=0.0)
    return next((ridge for ridge, gain in tried if gain >= most), None) if most > 0 else None


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


def _absorb(layer: Any, norm: Any, fitted: Map, moments: _CentredMoments) -> None:
    """Let the normalisation be the identity plus the constant, its statistics being those of what it reads.

    So the network does not jump when it is trained on: in training, too, scale and shift are those of the fit.
    """
    level = (moments.mean @ fitted.weight).flatten()
    if norm.weight is None:  # no scale to undo the statistics with: variance 1
        norm.running_mean.copy_(level - moments.target.flatten() + (0 if layer.bias is None else layer.bias.detach()))
        norm.running_var.fill_(1 - norm.eps)
        return
    variance = (fitted.weight * (moments.square @ fitted.weight)).sum(dim=1).clamp_min(0).flatten()
    norm.running_mean.copy_(level if layer.bias is None else level + layer.bias.detach())
    norm.running_var.copy_(variance)
    norm.weight.data.copy_((variance + norm.eps).sqrt())
    norm.bias.data.copy_(moments.target.flatten())
