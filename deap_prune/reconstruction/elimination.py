"""Backward elimination of a group's filters in closed form, from second moments alone.

Let C be the moments of what a layer reads, P = (C + r)^-1 and W its weights. Without the features F, the others
re-fitted, the squared error of the outputs grows by tr(W_F' (P_FF)^-1 W_F). The cheapest filter is removed, P and W
are updated (W -= P_:F P_FF^-1 W_F, P -= P_:F P_FF^-1 P_F:), and so on to the last filter. This is the optimal brain
surgeon (Hassibi and Stork 1993) on blocks of weights; OSSCAR (Meng et al. 2024, arXiv 2403.12983) prunes structures so.

OSSCAR also swaps removed filters for kept ones. Here that brings nothing: on ResNet-20, CIFAR-100, half of the inner
filters, the best of all single swaps lowers the error of one of the first six groups, by 0.3 %.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deap_prune.deadline import check_deadline
from deap_prune.reconstruction.grams import Grams, LayerGram
from deap_prune.reconstruction.matrix import RIDGE, factorise, features
from deap_prune.structure.space import FilterGroup, Ids, PruningSpace

log = logging.getLogger("deap_prune")
LARGEST = 4096  # features of a block beyond which a layer is left out: float64 matrices of 128 MB, updated every step
SHRINK = 0.8  # share of features left at which the matrices are cut down to them


@dataclass(frozen=True, eq=False)
class Elimination:
    """The order in which a group's filters are removed, and what each removal costs.

    Costs and errors are sums over the layers that read the group, each relative to the energy of its outputs.

    Attributes:
        order: Filters by step of removal, (steps, blocks of the group); a step removes one filter of each block.
        costs: Increase of the squared error, the ridge's penalty included, by each removed filter, (steps, blocks).
        errors: Squared error after each number of steps, from none to all, (steps + 1,).
    """

    order: Ids
    costs: NDArray[np.float64]
    errors: NDArray[np.float64]

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """Sum of the costs up to and with each filter's own, shape (filters,); larger = removed later = keep."""
        scores = np.empty(self.order.size)
        totals = self.costs.sum(axis=1)
        scores[self.order] = (totals.cumsum() - totals)[:, None] + self.costs
        return scores

    def keep(self, width: int) -> NDArray[np.bool_]:
        """Mask of the filters that are left, shape (filters,).

        Args:
            width: Kept filters of each block, from 1 to all.
        """
        keep = np.zeros(self.order.size, dtype=np.bool_)
        keep[self.order[len(self.order) - width :]] = True
        return keep


class Reader:
    """A layer that reads the filters, during an elimination: the inverse P and the weights W of the features left.

    Args:
        square: C, (blocks, n, n); it is overwritten.
        weight: W, (blocks, n, outputs).
        uses: Block and features of every use of every filter, (filters, uses) and (filters, uses, features of a use).
        energy: Energy of the outputs, which costs are relative to.
        ridge: Share of the mean of C's diagonal.
    """

    def __init__(
        self, square: Tensor, weight: Tensor, uses: tuple[Tensor, Tensor], energy: Tensor, *, ridge: float
    ) -> None:
        self.weight, self.energy = weight.clone(), energy
        result = factorise(square, ridge)
        if result is None:
            self.inverse, self._ridge = torch.full_like(square, torch.nan), torch.ones_like(square[:, :1, :1])
        else:
            self.inverse, self._ridge = torch.cholesky_inverse(result[0]), result[1]
        self._start_from(self.weight)
        self._block, self._own = uses
        self._removed = torch.zeros(square.shape[:2], dtype=torch.bool, device=square.device)
        self._objective, self._count = torch.zeros_like(energy), 0

    def _start_from(self, weight: Tensor) -> None:
        """The weights that the ridge draws to, times the ridge, and their penalty if all were removed."""
        self._pull = self._ridge * weight
        self._pull_energy = torch.dot(self._pull.flatten(), weight.flatten())

    @classmethod
    def of(cls, gram: LayerGram, positions: Ids, *, ridge: float = RIDGE) -> Reader:
        """The reader in the dense network.

        Args:
            gram: Its moments.
            positions: Positions of each filter's channels in the layer, (filters, uses of one channel).
            ridge: Share of the mean of the moments' diagonal.
        """
        square = gram.moments.to(torch.float64, copy=True)
        weight = gram.weight.flatten(2).double()
        uses = uses_of(positions, len(square), len(gram.channels.inputs), gram.taps if gram.form == "full" else 1)
        energy = gram.energy.sum().double().clamp_min(torch.finfo(torch.float32).tiny)
        return cls(square, weight, (uses[0].to(weight.device), uses[1].to(weight.device)), energy, ridge=ridge)

    @classmethod
    def fitted(
        cls,
        square: Tensor,
        cross: Tensor,
        weight: Tensor,
        uses: tuple[Tensor, Tensor],
        energy: Tensor,
        *,
        ridge: float,
    ) -> Reader:
        """A reader whose weights are first fitted, on all features, to a target of its own.

        Args:
            square: C, (blocks, n, n); it is overwritten.
            cross: Moments of the features with the target, (blocks, n, outputs).
            weight: Weights that the ridge draws the fit to, (blocks, n, outputs).
            uses: As for the class.
            energy: Energy of the target.
            ridge: Share of the mean of C's diagonal.
        """
        reader = cls(square, weight, uses, energy, ridge=ridge)
        reader.weight = reader.inverse @ (cross + reader._ridge * weight)
        reader._start_from(reader.weight)
        return reader

    @property
    def error(self) -> Tensor:
        """Squared error of the outputs now, without the ridge's penalty, relative, shape ()."""
        square = self._ridge.flatten() @ torch.linalg.vector_norm(self.weight, dim=(1, 2)).square()
        penalty = square - 2 * torch.dot(self.weight.flatten(), self._pull.flatten()) + self._pull_energy
        return (self._objective - penalty).clamp_min(0) / self.energy

    def costs(self, filters: Tensor | None = None) -> Tensor:
        """Increase of the relative squared error by the removal of each filter, shape (filters,).

        Args:
            filters: The filters, (n,); all if left out.
        """
        block, own = (self._block, self._own) if filters is None else (self._block[filters], self._own[filters])
        if own.shape[2] == 1:
            squares = torch.linalg.vector_norm(self.weight, dim=2).square()
            errors = (squares / self.inverse.diagonal(dim1=1, dim2=2))[block, own[:, :, 0]]
        else:
            precision = self.inverse[block[:, :, None, None], own[:, :, :, None], own[:, :, None, :]]
            weight = self.weight[block[:, :, None], own]
            factor, _ = torch.linalg.cholesky_ex(precision)
            errors = torch.linalg.solve_triangular(factor, weight, upper=False).square().sum(dim=(2, 3))
        return errors.sum(dim=1) / self.energy

    def remove(self, filters: Tensor) -> None:
        """Remove filters, one of each block of the group, and re-fit the rest.

        Args:
            filters: Shape (n,).
        """
        block, own = self._block[filters].flatten(), self._own[filters].flatten(0, 1)
        if len(self.inverse) == 1:
            touched, gone = block[:1], own.view(1, -1)
        else:
            touched = torch.unique(block)  # every one loses as many features: the group's blocks see to that
            gone = own[torch.argsort(block, stable=True)].view(len(touched), -1)
        whole = len(touched) == len(self.inverse)
        inverse, weight = (self.inverse, self.weight) if whole else (self.inverse[touched], self.weight[touched])
        at = torch.arange(len(touched), device=gone.device)[:, None]
        rows, removed = inverse[at, gone], weight[at, gone]
        factor, _ = torch.linalg.cholesky_ex(rows.gather(2, gone[:, None, :].expand(-1, gone.shape[1], -1)))
        half = torch.linalg.solve_triangular(factor, torch.cat((rows, removed), dim=2), upper=False)
        left, right = half[:, :, : rows.shape[2]], half[:, :, rows.shape[2] :]
        inverse.baddbmm_(left.transpose(1, 2), left, alpha=-1)
        weight.baddbmm_(left.transpose(1, 2), right, alpha=-1)
        if not whole:
            self.inverse[touched], self.weight[touched] = inverse, weight
        self._removed[touched[:, None], gone] = True
        self._objective = self._objective + right.square().sum()
        self.weight[touched[:, None], gone] = 0
        self._count += gone.numel()

    def shrink(self) -> None:
        """Cut the matrices down to the features left, if these are few enough for it to pay."""
        if self._count < (1 - SHRINK) * self._removed.numel():
            return
        left = (~self._removed).sum(dim=1)
        width = int(left[0])
        if width == 0 or bool((left != width).any()):
            return
        stays = torch.argsort(self._removed.byte(), dim=1, stable=True)[:, :width]
        at = torch.arange(len(stays), device=stays.device)[:, None]
        self.inverse = self.inverse[at[:, :, None], stays[:, :, None], stays[:, None, :]]
        self.weight, self._pull = self.weight[at, stays], self._pull[at, stays]
        place = torch.zeros_like(self._removed, dtype=torch.long).scatter_(
            1, stays, torch.arange(width, device=stays.device).expand_as(stays)
        )
        self._own = place[self._block[:, :, None], self._own]  # those of removed filters are not used again
        self._removed, self._count = torch.zeros_like(stays, dtype=torch.bool), 0


def uses_of(positions: Ids, blocks: int, channels: int, taps: int) -> tuple[Tensor, Tensor]:
    """Block (filters, uses) and features (filters, uses, k) of each filter's uses in a layer.

    Without blocks all uses of a filter are one use with all their features: they have to be removed at once.

    Args:
        positions: Positions of each filter's channels in the layer, (filters, uses of one channel).
        blocks: Blocks of the layer.
        channels: Channels that it reads.
        taps: Features of a channel.
    """
    width = channels // blocks
    own = features(positions.reshape(-1, 1) % width, taps, "full").reshape(*positions.shape, taps)
    if blocks == 1:
        return torch.zeros(len(positions), 1, dtype=torch.long), torch.as_tensor(own.reshape(len(own), 1, -1))
    return torch.as_tensor(positions // width), torch.as_tensor(own)


@torch.no_grad()
def run_elimination(
    readers: list[Reader],
    size: int,
    *,
    blocks: int = 1,
    width: int = 0,
    factor: Tensor | None = None,
    curve: bool = True,
) -> Elimination:
    """Remove filters one after the other, always the cheapest of each block.

    Args:
        readers: The layers that read the filters; their state is overwritten.
        size: Number of filters.
        blocks: Blocks of the group; each loses one filter in a step.
        width: Filters of each block at which to stop.
        factor: Factor on the cost of each filter when the cheapest is chosen, shape (filters,).
        curve: Whether to compute the errors after each step; without them, ``errors`` ends with the first.

    Returns:
        Orders and costs of ``size // blocks - width`` steps.
    """
    device = readers[0].inverse.device
    alive = torch.arange(size, device=device).view(blocks, -1)
    order, costs, errors = [], [], [torch.zeros_like(readers[0].energy)]
    for _ in range(size // blocks - width):
        check_deadline()
        cost = torch.stack([reader.costs(alive.flatten()) for reader in readers]).sum(dim=0).clamp_min(0)
        ranked = (cost if factor is None else cost * factor[alive.flatten()]).view_as(alive)
        place = ranked.argmin(dim=1, keepdim=True)
        filters = alive.gather(1, place)
        order.append(filters[:, 0])
        costs.append(cost.view_as(alive).gather(1, place)[:, 0])
        for reader in readers:
            reader.remove(filters[:, 0])
        if curve:
            errors.append(torch.stack([reader.error for reader in readers]).sum())
        alive = alive[torch.ones_like(alive, dtype=torch.bool).scatter_(1, place, False)].view(blocks, -1)
        for reader in readers:
            reader.shrink()
    steps = (
        (torch.stack(order), torch.stack(costs))
        if order
        else (alive.new_empty(0, blocks), errors[0].new_empty(0, blocks))
    )
    return Elimination(
        steps[0].cpu().numpy(), steps[1].double().cpu().numpy(), torch.stack(errors).double().cpu().numpy()
    )


@torch.no_grad()
def eliminate(group: FilterGroup, grams: Grams, *, ridge: float = RIDGE, curve: bool = True) -> Elimination | None:
    """Eliminate the filters of one group, to the last, in the dense network.

    Args:
        group: The group.
        grams: Moments of the dense network.
        ridge: Share of the mean of the moments' diagonal; larger where the moments are of few rows (see
            ``LayerGram.scarcity``).
        curve: Whether to compute the errors after each step; without them, ``errors`` ends with the first.

    Returns:
        The elimination; None if no layer that reads the group can be re-fitted, or all have more than 4,096 features.
    """
    readers = []
    for member in group.layers("reader"):
        gram = grams.layers.get(member.layer)
        if gram is None:
            continue
        if gram.mean.shape[1] > LARGEST:
            log.info("'%s' reads %d features; elimination leaves it out", member.layer, gram.mean.shape[1])
            continue
        readers.append(Reader.of(gram, member.positions, ridge=ridge * gram.scarcity))
    return run_elimination(readers, group.size, blocks=group.blocks, curve=curve) if readers else None


def eliminate_all(space: PruningSpace, grams: Grams, *, ridge: float = RIDGE) -> dict[str, Elimination]:
    """Eliminate the filters of every group, each in the dense network; see :func:`eliminate`.

    Args:
        space: The space.
        grams: Moments of the dense network.
        ridge: Share of the mean of the moments' diagonal.

    Returns:
        Eliminations by group name, without the groups that have none.
    """
    results = ((group.name, eliminate(group, grams, ridge=ridge)) for group in space.groups)
    return {name: result for name, result in results if result is not None}
