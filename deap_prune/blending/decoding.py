"""From importance to masks for many individuals at once: how many filters fit the budget, and which ones to keep."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from deap_prune.arguments import Count
from deap_prune.blending.allocation import ALLOCATIONS, Allocation, AllocationInputs, Counts, Widths
from deap_prune.blending.budget import FEWEST, Budget, MaxFlops, check_budget
from deap_prune.blending.layout import Layout, stages_of
from deap_prune.costs.registry import BoundCost, bound_cost
from deap_prune.errors import ConfigError, did_you_mean
from deap_prune.structure.masks import Masks

if TYPE_CHECKING:
    from deap_prune.blending.clusters import CriteriaClusters
    from deap_prune.structure.space import PruningSpace

Matrix = NDArray[np.float64]
MinKeep = float | Mapping[str, float]
RoundTo = Count | Literal["auto"]
CHUNK = 256  # individuals decoded together: bounds the memory, and keeps the arrays in the processor's cache


def genes_of(individuals: Sequence[Sequence[float]], layout: Layout) -> Matrix:
    """The genes as a matrix, clipped to their bounds, shape (individuals, genes).

    Raises:
        ConfigError: If an individual's length differs from the layout's, or a gene is not a number.
    """
    for individual in individuals:
        ordered = isinstance(individual, Sized) and not isinstance(individual, (Mapping, Set))
        if not ordered or getattr(individual, "ndim", 1) == 0:
            raise ConfigError(f"the individual is a {type(individual).__name__}; give a list of {len(layout)} genes")
        if len(individual) != len(layout):
            raise ConfigError(f"the individual has {len(individual)} genes; this genome has {len(layout)}")
    try:
        genes = np.array([list(individual) for individual in individuals], dtype=np.float64)
        if genes.ndim > 2:
            raise ValueError("genes are nested")
    except (TypeError, ValueError, OverflowError) as error:  # DEAP's mutPolynomialBounded makes complex numbers
        place, value = next((i, g) for row in individuals for i, g in enumerate(row) if not _is_number(g))
        raise ConfigError(f"gene {place} of the individual is {value!r}; genes are numbers") from error
    if np.isnan(genes).any():
        raise ConfigError(f"gene {int(np.isnan(genes).any(axis=0).argmax())} of the individual is NaN")
    return np.clip(genes, layout.low, layout.high)


def _is_number(gene: Any) -> bool:
    try:
        float(gene)
    except (TypeError, ValueError, OverflowError):
        return False
    return getattr(gene, "ndim", 0) == 0


@dataclass(frozen=True, eq=False)
class Planner:
    """Turns the importance of all filters into masks: within all budgets, tight, in admissible steps.

    Attributes:
        space: The pruning space.
        allocation: Rule that distributes the kept filters over the groups.
        budget: The first budget: of the FLOPs, or of another cost if the FLOPs are free. A budget gene is a share of
            the FLOPs.
        round_to: Kept counts are multiples of this, or dense; ``"auto"``: of each group's step in the latency table.
        min_keep: Smallest kept share of a group, in [0, 1]: one number for all groups, or a mapping from names of
            groups, or of modules that contain them, to numbers.
        others: Further budgets, all fixed.

    Raises:
        BudgetError: If a budget is below the smallest reachable share of its cost.
        ConfigError: If ``round_to`` is not a positive whole number, or ``min_keep`` is not a share or names no group.
    """

    space: PruningSpace
    allocation: Allocation
    budget: Budget
    round_to: RoundTo
    min_keep: MinKeep = 0.0
    others: tuple[Budget, ...] = ()

    def __post_init__(self) -> None:
        if self.round_to == "auto" and self.space.latency_of is None:
            raise ConfigError("round_to='auto' reads a latency table; give latency_table, or a whole number")
        if self.round_to != "auto" and (not isinstance(self.round_to, int) or self.round_to < 1):
            raise ConfigError(f"round_to is {self.round_to!r}; give a whole number from 1 up, or 'auto'")
        if (self.widths.steps == self.space.sizes).all():
            raise ConfigError(
                f"round_to is {self.round_to}, which leaves every group dense: the widest has "
                f"{self.space.sizes.max()} filters; give a smaller one"
            )
        kept = FEWEST if self.round_to in (1, "auto") else f"{self.round_to} filters a group (round_to)"
        if self.min_keep and self.min_flops > replace(self, budget=Budget(), min_keep=0.0, others=()).min_flops:
            kept = "the shares that min_keep demands"
        for budget, cost in zip((self.budget, *self.others), self.costs, strict=True):
            check_budget(budget, float(cost(self.widths.fewest)) / cost.dense, kept, dense=cost.dense)

    def free(self) -> Planner:
        """The planner without budgets and with widths from keep genes: the keep genes are the widths."""
        return replace(self, allocation=ALLOCATIONS["evolved"], budget=Budget(), others=())

    @cached_property
    def costs(self) -> tuple[BoundCost, ...]:
        """The cost of each budget."""
        return tuple(bound_cost(budget.cost, self.space) for budget in (self.budget, *self.others))

    @cached_property
    def widths(self) -> Widths:
        """The admissible kept counts of every group."""
        groups, model = self.space.groups, self.space.latency_of
        liked = model.steps.tolist() if self.round_to == "auto" and model is not None else [self.round_to] * len(groups)
        steps = [min(math.lcm(step, group.blocks), group.size) for step, group in zip(liked, groups, strict=True)]
        minimum = np.ceil(_minimum_shares(self.space, self.min_keep) * self.space.sizes - 1e-9).astype(np.int64)
        stages = self.leaders if self.allocation.by_stage else None
        return Widths(self.space.sizes, np.array(steps, dtype=np.int64), self.costs, minimum, stages)

    @cached_property
    def leaders(self) -> Counts:
        """Number of the group whose keep gene each group uses, shape (groups,): its own, or the first of its stage.

        A group belongs to the stage of its last layer with filters: the residual stream that begins in a stem belongs
        to the first stage.
        """
        if not self.allocation.by_stage:
            return np.arange(len(self.space.groups))
        last_layers = [group.layers("filter")[-1].layer for group in self.space.groups]
        stages = stages_of(last_layers, self.space.sizes.tolist())
        return np.array([stages.index(stage) for stage in stages], dtype=np.int64)

    @cached_property
    def min_flops(self) -> float:
        """Smallest share of the FLOPs that can be reached, in (0, 1]."""
        return float(self.space.flops_of(self.widths.fewest)) / self.space.flops

    @property
    def budget_bounds(self) -> tuple[float, float] | None:
        """Bounds of the budget gene; None if the genome has no such gene."""
        if self.budget.lowest is not None and self.budget.highest is not None:
            return (self.budget.lowest, self.budget.highest)
        return (self.min_flops, 1.0) if self.budget.is_free and not self.allocation.genes else None

    def masks(self, importance: Sequence[Matrix], shares: Matrix, budgets: Matrix | None) -> list[Masks]:
        """The masks of several individuals.

        Args:
            importance: Scores of each group's filters, shape (individuals, filters) each; larger = keep.
            shares: Keep genes, shape (individuals, groups).
            budgets: Budget genes (kept shares of the first budget's cost), shape (individuals,); None if there is no
                such gene.
        """
        counts = self.counts(importance, shares, budgets)
        kept = [
            _top(scores.reshape(len(scores), group.blocks, -1), count // group.blocks)
            for group, scores, count in zip(self.space.groups, importance, counts.T, strict=True)
        ]
        return Masks.of_rows([group.name for group in self.space.groups], kept)

    def counts(self, importance: Sequence[Matrix], shares: Matrix, budgets: Matrix | None) -> Counts:
        """Number of filters that each group keeps, shape (individuals, groups); arguments as for :meth:`masks`."""
        if budgets is None and not self.budget.is_fixed:  # the keep genes are the widths
            return self.widths.admissible(self.space.sizes * shares)
        if budgets is None:
            budgets = np.full(len(shares), self.budget.highest, dtype=np.float64)
        inputs = [
            AllocationInputs(self.space.sizes, rows[:-1], rows[-1]) for rows in zip(*importance, shares, strict=True)
        ]
        dense = [cost.dense for cost in self.costs]
        fixed = [np.full(len(shares), budget.highest, dtype=np.float64) for budget in self.others]
        limits = np.stack([share * amount for share, amount in zip((budgets, *fixed), dense, strict=True)], axis=1)
        return self.widths.fit([self.allocation.path(one) for one in inputs], limits)


GeneSpec = tuple[str, float, float, int]
"""Kind, lower bound, upper bound and group number of a gene; see ``Layout``."""


class Decoding(ABC):
    """Base class of genomes: decodes individuals to masks, many at once, inside the budget.

    A subclass lists its genes, and reads importance and keep genes from them. The budget gene, if any, comes last.

    Args:
        space: The pruning space.
        clusters: Clusters of the criteria.
        planner: Turns importance into masks.

    Attributes:
        space: The pruning space.
        clusters: Clusters of the criteria.
        layout: Kind and bounds of every gene.
        budget: The first budget: of the FLOPs, or of another cost if the FLOPs are free.
        other_budgets: Further budgets, all fixed.
        min_flops: Smallest share of the FLOPs that can be reached, in (0, 1].
    """

    def __init__(self, space: PruningSpace, clusters: CriteriaClusters, planner: Planner) -> None:
        self.space, self.clusters, self._planner = space, clusters, planner
        self.budget, self.other_budgets, self.min_flops = planner.budget, planner.others, planner.min_flops
        bounds = planner.budget_bounds
        budget_gene: list[GeneSpec] = [] if bounds is None else [("budget", *bounds, -1)]
        self.layout = Layout.of(space, [*self._gene_specs(), *budget_gene])

    @property
    def max_flops(self) -> MaxFlops:
        """The budget of the FLOPs as users write it: a kept share, a pair (lowest, highest), or None."""
        return self.budget.max_flops

    @abstractmethod
    def _gene_specs(self) -> Iterator[GeneSpec]:
        """All genes except the budget gene, group by group."""

    @abstractmethod
    def _read(self, genes: Matrix) -> tuple[list[Matrix], Matrix]:
        """Importance and keep genes of several individuals.

        Args:
            genes: Inside their bounds, shape (individuals, genes).

        Returns:
            Importance of each group's filters, shape (individuals, filters) each; and the keep genes, shape
            (individuals, groups).
        """

    def decode(self, individual: Sequence[float]) -> Masks:
        """The masks of an individual.

        Genes outside their bounds are clipped and candidate genes are rounded, so the result of any operator is legal.

        Raises:
            ConfigError: If the individual's length differs from the layout's, or a gene is NaN or not a number.
        """
        return self.decode_many([individual])[0]

    def decode_many(self, individuals: Sequence[Sequence[float]]) -> list[Masks]:
        """The masks of several individuals: the same as one by one, but much faster.

        Raises:
            ConfigError: As for :meth:`decode`.
        """
        if not isinstance(individuals, (Sequence, np.ndarray)) or isinstance(individuals, (str, bytes)):
            raise ConfigError(f"the individuals are a {type(individuals).__name__}; give a list of them")
        chunks = (individuals[start : start + CHUNK] for start in range(0, len(individuals), CHUNK))
        return [masks for chunk in chunks for masks in self._decode(genes_of(chunk, self.layout))]

    def importance(self, individual: Sequence[float]) -> dict[str, Matrix]:
        """The blended scores of every group, shape (filters,); larger = keep.

        Raises:
            ConfigError: As for :meth:`decode`.
        """
        blended, _ = self._read(genes_of([individual], self.layout))
        return {group.name: scores[0] for group, scores in zip(self.space.groups, blended, strict=True)}

    def _decode(self, genes: Matrix) -> list[Masks]:
        budgets = genes[:, -1] if self._planner.budget_bounds is not None else None
        return self._planner.masks(*self._read(genes), budgets)

    def _budget_genes(self, share: float) -> list[float]:
        """The budget gene for a kept share of the FLOPs, clipped to its bounds; empty if there is no such gene."""
        bounds = self._planner.budget_bounds
        return [] if bounds is None else [min(bounds[1], max(bounds[0], share))]


def _minimum_shares(space: PruningSpace, min_keep: MinKeep) -> Matrix:
    """Smallest kept share of each group, shape (groups,); if several names fit a group, the longest one counts."""
    by_name = dict(min_keep) if isinstance(min_keep, Mapping) else {"": min_keep}
    groups = [group.name for group in space.groups]
    for name, share in by_name.items():
        if not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ConfigError(f"min_keep is {share!r}; it is the share that a group keeps at least, from 0 to 1")
        if not any(covers(name, group) for group in groups):
            raise ConfigError(f"min_keep names '{name}', which is no group; {did_you_mean(name, groups)}")
    fitting = [[name for name in by_name if covers(name, group)] for group in groups]
    return np.array([by_name[max(names, key=len)] if names else 0.0 for names in fitting], dtype=np.float64)


def covers(module: str, name: str) -> bool:
    """Whether a name is that of a module or of something inside it; the empty name is the whole network."""
    return module in ("", name) or name.startswith((f"{module}.", f"{module}:"))


def _top(scores: Matrix, keep: Counts) -> NDArray[np.bool_]:
    """The ``keep`` highest scores of each block; among equal scores the first ones.

    Args:
        scores: Shape (individuals, blocks, filters of a block).
        keep: Shape (individuals,).

    Returns:
        Shape (individuals, filters).
    """
    number = keep[:, None, None]
    place = np.broadcast_to(scores.shape[2] - number, (*scores.shape[:2], 1))
    lowest = np.take_along_axis(np.sort(scores, axis=2), place, axis=2)  # sorting values is far cheaper than argsort
    above, ties = scores > lowest, scores == lowest
    kept = above | (ties & (ties.cumsum(axis=2) <= number - above.sum(axis=2, keepdims=True)))
    return np.asarray(kept.reshape(len(scores), -1))
