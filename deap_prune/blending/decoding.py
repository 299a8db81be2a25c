"""From importance to masks, many individuals at once: how many filters fit the budget, and which ones stay."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deap_prune.blending.allocation import Allocation, Counts, Widths, Wish
from deap_prune.blending.layout import Layout, stages_of
from deap_prune.errors import BudgetError, ConfigError, did_you_mean
from deap_prune.structure.masks import Masks

if TYPE_CHECKING:
    from deap_prune.blending.clusters import CriteriaClusters
    from deap_prune.structure.space import PruningSpace

Matrix = NDArray[np.float64]
MaxFlops = float | tuple[float, float] | None
MinKeep = float | Mapping[str, float]
FEWEST = "one filter a group (or block)"
CHUNK = 256  # individuals decoded together: bounds the memory, and keeps the arrays in the cache


def genes_of(individuals: Sequence[Sequence[float]], layout: Layout) -> Matrix:
    """The genes as a matrix, inside their bounds, shape (individuals, genes).

    Raises:
        ConfigError: If an individual has another length than the layout, or holds what is no number.
    """
    for individual in individuals:
        if len(individual) != len(layout):
            raise ConfigError(f"the individual has {len(individual)} genes; this genome has {len(layout)}")
    try:
        genes = np.array([list(individual) for individual in individuals], dtype=np.float64)
    except (TypeError, ValueError) as error:  # DEAP's mutPolynomialBounded makes complex numbers outside bounds
        place, value = next((i, g) for row in individuals for i, g in enumerate(row) if not _is_number(g))
        raise ConfigError(f"gene {place} of the individual is {value!r}; genes are numbers") from error
    if np.isnan(genes).any():
        raise ConfigError(f"gene {int(np.isnan(genes).any(axis=0).argmax())} of the individual is NaN")
    return np.clip(genes, layout.low, layout.high)


def _is_number(gene: Any) -> bool:
    try:
        float(gene)
    except (TypeError, ValueError):
        return False
    return True


@dataclass(frozen=True, eq=False)
class Planner:
    """Turns the importance of all filters into masks: within the budget, tight, in whole steps.

    Attributes:
        space: What can be pruned.
        allocation: How the kept filters are spread over the groups.
        max_flops: Kept share of the FLOPs; a pair of them, or None: see ``Genome``.
        round_to: Kept counts are multiples of this, or dense.
        min_keep: The least share that a group keeps: of all, or by the names of groups or of modules around them.

    Raises:
        BudgetError: If the budget is outside (0, 1], or below what can be reached.
        ConfigError: If ``round_to`` is no whole number from 1 up, or ``min_keep`` no share or no name of a group.
    """

    space: PruningSpace
    allocation: Allocation
    max_flops: MaxFlops
    round_to: int
    min_keep: MinKeep = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.round_to, int) or self.round_to < 1:
            raise ConfigError(f"round_to is {self.round_to!r}; give a whole number from 1 up")
        if isinstance(self.max_flops, list):  # as ranges come from a file
            object.__setattr__(self, "max_flops", tuple(self.max_flops))
        if (self.widths.steps == self.space.sizes).all():
            raise ConfigError(
                f"round_to is {self.round_to}, which leaves every group dense: the widest has "
                f"{self.space.sizes.max()} filters; give a smaller one"
            )
        kept = FEWEST if self.round_to == 1 else f"{self.round_to} filters a group (round_to)"
        asked = self.min_keep and self.min_flops > replace(self, max_flops=None, min_keep=0.0).min_flops
        check_budget(self.max_flops, self.min_flops, "what min_keep asks for" if asked else kept)

    @cached_property
    def widths(self) -> Widths:
        """The admissible kept counts."""
        steps = [min(math.lcm(self.round_to, group.blocks), group.size) for group in self.space.groups]
        least = np.ceil(_least_shares(self.space, self.min_keep) * self.space.sizes - 1e-9).astype(np.int64)
        together = self.leaders if self.allocation.by_stage else None
        return Widths(self.space.sizes, np.array(steps, dtype=np.int64), self.space.flops_of, least, together)

    @cached_property
    def leaders(self) -> Counts:
        """The group whose keep gene each group follows: its own, or its stage's first.

        A group is of the stage of the last layer that makes its filters: the residual stream that a stem begins is of
        the first stage.
        """
        if not self.allocation.by_stage:
            return np.arange(len(self.space.groups))
        ends = [group.layers("filter")[-1].layer for group in self.space.groups]
        stages = stages_of(ends, self.space.sizes.tolist())
        return np.array([stages.index(stage) for stage in stages], dtype=np.int64)

    @cached_property
    def min_flops(self) -> float:
        """The least share of the FLOPs that can be reached."""
        return float(self.space.flops_of(self.widths.fewest)) / self.space.flops

    @property
    def budget_bounds(self) -> tuple[float, float] | None:
        """Bounds of the budget gene; None if there is no such gene."""
        if isinstance(self.max_flops, tuple):
            return self.max_flops
        return (self.min_flops, 1.0) if self.max_flops is None and not self.allocation.genes else None

    def masks(self, importance: Sequence[Matrix], shares: Matrix, budgets: Matrix | None) -> list[Masks]:
        """The masks of several individuals.

        Args:
            importance: Of every group's filters, shape (individuals, filters) each; larger = keep.
            shares: Keep genes, shape (individuals, groups).
            budgets: Budget genes, shape (individuals,), if there are any.
        """
        counts = self.counts(importance, shares, budgets)
        kept = [
            _top(scores.reshape(len(scores), group.blocks, -1), count // group.blocks)
            for group, scores, count in zip(self.space.groups, importance, counts.T, strict=True)
        ]
        return Masks.of_rows([group.name for group in self.space.groups], kept)

    def counts(self, importance: Sequence[Matrix], shares: Matrix, budgets: Matrix | None) -> Counts:
        """How many filters each group keeps, shape (individuals, groups); arguments as for ``masks``."""
        if budgets is None and not isinstance(self.max_flops, (int, float)):  # the keep genes decide alone
            return self.widths.admissible(self.space.sizes * shares)
        if budgets is None:
            budgets = np.full(len(shares), self.max_flops, dtype=np.float64)
        wishes = [Wish(self.space.sizes, rows[:-1], rows[-1]) for rows in zip(*importance, shares, strict=True)]
        return self.widths.fit([self.allocation.path(wish) for wish in wishes], budgets * self.space.flops)


GeneSpec = tuple[str, float, float, int]
"""Kind, lowest and highest value, and group of a gene; see ``Layout``."""


class Decoding(ABC):
    """What all genomes share: individuals to masks, many at once, inside the budget; the budget gene comes last.

    A genome says which genes it has, and reads importance and keep genes from them.

    Args:
        space: What can be pruned.
        clusters: Clusters of the criteria.
        planner: From importance to masks.
    """

    def __init__(self, space: PruningSpace, clusters: CriteriaClusters, planner: Planner) -> None:
        self.space, self.clusters, self._planner = space, clusters, planner
        self.max_flops, self.min_flops = planner.max_flops, planner.min_flops
        bounds = planner.budget_bounds
        budget: list[GeneSpec] = [] if bounds is None else [("budget", *bounds, -1)]
        self.layout = Layout.of(space, [*self._gene_specs(), *budget])

    @abstractmethod
    def _gene_specs(self) -> Iterator[GeneSpec]:
        """All genes but the budget gene, group by group."""

    @abstractmethod
    def _read(self, genes: Matrix) -> tuple[list[Matrix], Matrix]:
        """Importance of every group's filters, and the keep genes, shape (individuals, groups), of several individuals.

        Args:
            genes: Inside their bounds, shape (individuals, genes).
        """

    def decode(self, individual: Sequence[float]) -> Masks:
        """The masks that an individual stands for.

        Genes outside their bounds are clipped, candidates rounded, so that any operator's result is legal.

        Raises:
            ConfigError: If the individual has another length than the layout, or holds NaN.
        """
        return self.decode_many([individual])[0]

    def decode_many(self, individuals: Sequence[Sequence[float]]) -> list[Masks]:
        """The masks of several individuals, the same as one by one, at a fraction of the time.

        Raises:
            ConfigError: As for :meth:`decode`.
        """
        parts = (individuals[start : start + CHUNK] for start in range(0, len(individuals), CHUNK))
        return [masks for part in parts for masks in self._decode(genes_of(part, self.layout))]

    def importance(self, individual: Sequence[float]) -> dict[str, Matrix]:
        """The blended scores of every group, shape (filters,), that an individual stands for; larger = keep.

        Raises:
            ConfigError: As :meth:`decode`.
        """
        blended, _ = self._read(genes_of([individual], self.layout))
        return {group.name: scores[0] for group, scores in zip(self.space.groups, blended, strict=True)}

    def _decode(self, genes: Matrix) -> list[Masks]:
        budgets = genes[:, -1] if self._planner.budget_bounds is not None else None
        return self._planner.masks(*self._read(genes), budgets)

    def _budget(self, share: float) -> list[float]:
        """The budget gene for a kept share of the FLOPs, inside its bounds; nothing where there is no such gene."""
        bounds = self._planner.budget_bounds
        return [] if bounds is None else [min(bounds[1], max(bounds[0], share))]


def _least_shares(space: PruningSpace, min_keep: MinKeep) -> Matrix:
    """The least share of each group, shape (groups,); of several names that fit, the longest counts."""
    named = dict(min_keep) if isinstance(min_keep, Mapping) else {"": min_keep}
    names = [group.name for group in space.groups]
    for name, share in named.items():
        if not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ConfigError(f"min_keep is {share!r}; it is the share that a group keeps at least, from 0 to 1")
        if not any(covers(name, group) for group in names):
            raise ConfigError(f"min_keep names '{name}', which is no group; {did_you_mean(name, names)}")
    fits = [[name for name in named if covers(name, group)] for group in names]
    return np.array([named[max(found, key=len)] if found else 0.0 for found in fits], dtype=np.float64)


def covers(module: str, name: str) -> bool:
    """Whether a name is a module's own, or of something in it; the empty module is the network."""
    return module in ("", name) or name.startswith((f"{module}.", f"{module}:"))


def _top(scores: Matrix, keep: Counts) -> NDArray[np.bool_]:
    """The ``keep`` highest of each block, the first ones where scores tie.

    Args:
        scores: Shape (individuals, blocks, filters of a block).
        keep: Shape (individuals,).

    Returns:
        Shape (individuals, filters).
    """
    number = keep[:, None, None]
    place = np.broadcast_to(scores.shape[2] - number, (*scores.shape[:2], 1))
    lowest = np.take_along_axis(np.sort(scores, axis=2), place, axis=2)  # values alone: far cheaper than an argsort
    above, ties = scores > lowest, scores == lowest
    kept = above | (ties & (ties.cumsum(axis=2) <= number - above.sum(axis=2, keepdims=True)))
    return np.asarray(kept.reshape(len(scores), -1))


def check_budget(max_flops: MaxFlops, reachable: float, kept: str = FEWEST) -> None:
    """A budget is a kept share of the FLOPs, or a range of shares.

    Raises:
        BudgetError: If a share is not in (0, 1], or below the reachable minimum, or the range is empty.
    """
    if isinstance(max_flops, (tuple, list)):
        if len(max_flops) != 2 or not max_flops[0] <= max_flops[1]:
            raise BudgetError(f"max_flops is {max_flops!r}; a range is a pair (lowest, highest), such as (0.3, 0.7)")
        for share in max_flops:
            check_budget(share, reachable, kept)
        return
    if max_flops is None:
        return
    if not isinstance(max_flops, (int, float)) or not 0 < max_flops <= 1:
        raise BudgetError(
            f"max_flops is {max_flops!r}; it is the kept share of the FLOPs, above 0 and at most 1 (0.5 keeps half), "
            "or None to leave it free"
        )
    if max_flops < reachable:
        least = math.ceil(reachable * 1e4) / 1e4
        raise BudgetError(
            f"max_flops is {max_flops:g}, but {kept} and what stays dense already cost "
            f"{least:.4f} of the FLOPs: that is the reachable minimum; raise max_flops to {least:.4f} or above"
        )
