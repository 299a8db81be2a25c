"""The layout of an individual: kind, bounds, layer, stage and cost of every gene. Operators need nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from deap_prune.structure.space import PruningSpace

Span = tuple[int, int]


@dataclass(frozen=True, repr=False)
class Layout:
    """The genes of an individual, in order.

    Attributes:
        kinds: Kind of each gene: ``"candidate"`` (index into a cluster), ``"factor"``, ``"keep"`` (kept share of a
            group), ``"budget"`` (kept share of the FLOPs), ``"scale"`` or ``"shift"`` (of a group's scores).
        low: Lower bound of each gene.
        high: Upper bound (inclusive) of each gene; a candidate gene is a whole number.
        loci: Number of each gene's filter group; -1 for the budget gene.
        stages: Stage of each gene: layers of one resolution, derived from their names. Default: the locus.
        costs: Share of the dense FLOPs that pruning the gene's whole group saves, other groups dense. Default: 1 each.
    """

    kinds: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    loci: tuple[int, ...]
    stages: tuple[int, ...] = ()
    costs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.stages:
            object.__setattr__(self, "stages", self.loci)
        if not self.costs:
            object.__setattr__(self, "costs", (1.0,) * len(self.kinds))

    @classmethod
    def of(cls, space: PruningSpace, genes: Sequence[tuple[str, float, float, int]]) -> Layout:
        """The layout for a list of genes, with stages and costs of the space's groups.

        Args:
            space: The pruning space.
            genes: Kind, lower bound, upper bound and group number of each gene.
        """
        kinds, low, high, loci = zip(*genes, strict=True)
        stages = [*stages_of([g.name for g in space.groups], [g.size for g in space.groups]), -1]
        without = np.tile(space.sizes, (len(space.groups), 1))
        np.fill_diagonal(without, 0)
        costs = [*(1 - space.flops_of(without) / space.flops).tolist(), 1.0]
        return cls(kinds, low, high, loci, tuple(stages[i] for i in loci), tuple(costs[i] for i in loci))

    def __len__(self) -> int:
        return len(self.kinds)

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.kinds.count(kind)} {kind}" for kind in dict.fromkeys(self.kinds))
        return f"Layout({len(self)} genes: {counts}; .kinds, .low, .high, .loci)"

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """(start, stop) of the genes of each locus."""
        starts = [i for i, locus in enumerate(self.loci) if i == 0 or self.loci[i - 1] != locus]
        return tuple(zip(starts, [*starts[1:], len(self.loci)], strict=True))

    @cached_property
    def stage_spans(self) -> tuple[tuple[Span, ...], ...]:
        """The spans of each stage's loci."""
        by_stage: dict[int, list[Span]] = {}
        for span in self.spans:
            by_stage.setdefault(self.stages[span[0]], []).append(span)
        return tuple(map(tuple, by_stage.values()))

    def of_kind(self, *kinds: str) -> tuple[int, ...]:
        """Indices of the genes of the given kinds."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind in kinds)

    @cached_property
    def pairs(self) -> tuple[Span, ...]:
        """Indices (candidate gene, factor gene) of each cluster with a candidate gene."""
        return tuple((i, i + 1) for i in self.of_kind("candidate"))


def stages_of(names: Sequence[str], sizes: Sequence[int]) -> list[int]:
    """Stage number of each layer, from its name: the outermost module that not all layers share.

    ``layer1.0.conv1`` belongs to ``layer1``. If every layer would be a stage of its own (as in a plain
    ``Sequential``), adjacent layers of equal width form a stage.

    Args:
        names: Qualified module names, in order of execution.
        sizes: Number of filters of each layer.
    """
    parts = [name.split(".") for name in names]
    depth = 0
    while len({tuple(p[: depth + 1]) for p in parts}) == 1 and all(len(p) > depth + 1 for p in parts):
        depth += 1
    keys = [tuple(p[: depth + 1]) for p in parts]
    if len(set(keys)) < len(keys):
        numbers = {key: n for n, key in enumerate(dict.fromkeys(keys))}
        return [numbers[key] for key in keys]
    stage, stages = 0, []
    for i, size in enumerate(sizes):
        stage += i > 0 and size != sizes[i - 1]
        stages.append(stage)
    return stages
