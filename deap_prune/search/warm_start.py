"""Warm starts: a search that begins from the front of an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from deap import base

from deap_prune.blending.layout import Layout
from deap_prune.config import SearchConfig
from deap_prune.errors import RunError
from deap_prune.evolution.front import ParetoFront
from deap_prune.evolution.problem import BlendProblem


def begin_warm(toolbox: base.Toolbox, problem: BlendProblem, options: SearchConfig, folder: Path | None) -> None:
    """Register a ``population`` that holds the front of ``warm_start`` and is filled up by the one registered before.

    Nothing changes without ``warm_start``, or if the run in ``folder`` has begun already.

    Raises:
        RunError: As for :func:`earlier_genes`.
    """
    if options.warm_start is None or (folder is not None and any(folder.glob("checkpoints/*.json"))):
        return
    genes, fill = earlier_genes(options.warm_start, problem.genome.layout, options.population), toolbox.population
    toolbox.register("population", lambda n: [*map(problem.individual, genes), *fill(n=n)][:n])


def earlier_genes(run: Path, layout: Layout, n: int) -> list[tuple[float, ...]]:
    """Genes of an earlier front's individuals, spread evenly over it, the cheapest first.

    Budget, objectives and even the network may differ (a fine-tuned one, one with other widths), as long as individuals
    have as many genes; what lies outside the new bounds is clipped.

    Args:
        run: Run folder of the earlier search.
        layout: Of the new search.
        n: At most so many.

    Raises:
        RunError: If there is no front, it has no individuals, or they have another number of genes.
    """
    found = [s.individual for s in ParetoFront.load(run) if s.individual]
    if not found:
        raise RunError(f"the front of '{run}' has no individuals to begin from")
    wrong = next((len(genes) for genes in found if len(genes) != len(layout)), None)
    if wrong is not None:
        raise RunError(
            f"warm_start: individuals of '{run}' have {wrong} genes, this search's have {len(layout)}; use the same "
            "layers, criteria, n_clusters and allocation, or leave warm_start out"
        )
    places = np.unique(np.linspace(0, len(found) - 1, min(n, len(found))).round().astype(int))
    return [_legal(found[i], layout) for i in places]


def _legal(genes: Sequence[float], layout: Layout) -> tuple[float, ...]:
    return tuple(min(max(g, low), high) for g, low, high in zip(genes, layout.low, layout.high, strict=True))
