"""The least-squares problem of a layer whose turn has come in a refinement: what it reads now, and its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deap_prune.reconstruction.elimination import Reader
from deap_prune.reconstruction.grams import scarcity
from deap_prune.reconstruction.matrix import RIDGE, from_matrix, part, solve, to_matrix
from deap_prune.structure.layers import spec_of
from deap_prune.structure.space import Ids


@dataclass(frozen=True, eq=False)
class LiveProblem:
    """The least-squares problem of a layer in the pruned network.

    It has the precision of the features: sampling blurs the costs more than rounding does, and float64 takes twice as
    long.

    Attributes:
        mean: Means of the features, (blocks, 1, n); 0 without an intercept.
        square: Moments of the features, (blocks, n, n), centred if there is an intercept.
        cross: Moments of the features with the target, (blocks, n, outputs of a block).
        weight: Weights that the fit is drawn to, in the same shape.
        energy: Energy of the target, shape ().
        rows: Number of rows.
    """

    mean: Tensor
    square: Tensor
    cross: Tensor
    weight: Tensor
    energy: Tensor
    rows: int

    @classmethod
    def of(cls, x: Tensor, target: Tensor, weight: Tensor, intercept: bool) -> LiveProblem:
        """From features (blocks, rows, n) and a target (rows, outputs)."""
        if x.dtype in (torch.float16, torch.bfloat16):
            x, target, weight = x.float(), target.float(), weight.float()
        y = target.reshape(len(target), len(x), -1).transpose(0, 1)
        mean = x.mean(dim=1, keepdim=True) if intercept else x.new_zeros(len(x), 1, x.shape[2])
        if intercept:
            x, y = x - mean, y - y.mean(dim=1, keepdim=True)
        rows = x.shape[1]
        square, cross = x.transpose(1, 2) @ x / rows, x.transpose(1, 2) @ y / rows
        energy = y.square().sum() / rows
        return cls(mean, square, cross, weight, energy.clamp_min(torch.finfo(torch.float32).tiny), rows)

    def part(self, kept: Ids) -> LiveProblem:
        """The problem of some features only, (blocks, kept)."""
        index = torch.as_tensor(kept, device=self.square.device)
        at = torch.arange(len(index), device=index.device)[:, None]
        square = self.square[at[:, :, None], index[:, :, None], index[:, None, :]]
        mean = self.mean[at[:, :, None], 0, index[:, None, :]]
        return LiveProblem(mean, square, self.cross[at, index], self.weight[at, index], self.energy, self.rows)

    def compensate(self, layer: Any, norm: Any, kept: Ids) -> None:
        """Let the weights of the kept features make up for those of the others, in place; see :func:`compensate`.

        The fit is drawn to them afterwards.

        Args:
            layer: The layer, with all features.
            norm: The normalisation after it, or None.
            kept: The kept features, (blocks, n).
        """
        stays = torch.as_tensor(kept, device=self.square.device)
        gone = torch.ones(self.square.shape[:2], dtype=torch.bool, device=stays.device).scatter_(1, stays, False)
        lost = gone.nonzero()[:, 1].view(len(gone), -1)
        if not lost.numel():
            return
        matrix = to_matrix(layer.weight.detach(), spec_of(layer), "full").to(self.square.dtype)
        at = torch.arange(len(stays), device=stays.device)[:, None]
        square = part(self.square, stays, stays)
        ridge = RIDGE * scarcity(stays.shape[1], self.rows)
        share, _ = solve(square, part(self.square, stays, lost), ridge)
        removed, rest = matrix[at, lost], matrix.clone()
        rest[at, stays] += (share @ removed.flatten(2)).view_as(rest[at, stays])
        rest[at, lost] = 0
        level = (self.mean @ (rest - matrix).flatten(2)).flatten()
        layer.weight.data.copy_(from_matrix(rest, layer.weight, spec_of(layer), "full"))
        if norm is not None:
            norm.running_mean.add_(level)
        elif layer.bias is not None:
            layer.bias.data.sub_(level)

    def reader(self, uses: tuple[Tensor, Tensor]) -> Reader:
        """The reader of the filters, with the fit on all features."""
        uses = uses[0].to(self.square.device), uses[1].to(self.square.device)
        ridge = RIDGE * scarcity(self.square.shape[1], self.rows)
        return Reader.fitted(self.square.clone(), self.cross, self.weight, uses, self.energy, ridge=ridge)
