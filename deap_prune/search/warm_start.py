"""Warm starts: a search that begins from the front of an earlier search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from deap import base

from deap_prune.blending.layout import Layout
from deap_prune.errors import RunError
from deap_prune.evolution.front import ParetoFront
from deap_prune.evolution.problem import BlendProblem
from deap_prune.options import EvolutionOptions


def register_warm_start(
    toolbox: base.Toolbox, problem: BlendProblem, options: EvolutionOptions, folder: Path | None
) -> None:
    """Register a ``population`` that begins with the front of ``warm_start``; the previous one fills the rest.

    Nothing changes without ``warm_start``, or if the run in ``folder`` has checkpoints already.

    Raises:
        RunError: As for :func:`earlier_genes`.
    """
    if options.warm_start is None or (folder is not None and any(folder.glob("checkpoints/*.json"))):
        return
    genes, fill = earlier_genes(options.warm_start, problem.genome.layout, options.population), toolbox.population
    toolbox.register("population", lambda n: [*map(problem.individual, genes), *fill(n=n)][:n])


def earlier_genes(run: Path, layout: Layout, n: int) -> list[tuple[float, ...]]:
    """Genes of an earlier front's individuals, spread evenly over it, cheapest first.

    Budget, objectives and even the network may differ (a fine-tuned network, another width), as long as individuals
    have the same number of genes. Genes outside the new bounds are clipped.

    Args:
        run: Run folder of the earlier search.
        layout: Layout of the new search.
        n: Most individuals to return.

    Raises:
        RunError: If there is no front, it has no individuals, or they have another number of genes.
    """
    individuals = [s.individual for s in ParetoFront.load(run) if s.individual]
    if not individuals:
        raise RunError(f"the front of '{run}' has no individuals to begin from")
    wrong = next((len(genes) for genes in individuals if len(genes) != len(layout)), None)
    if wrong is not None:
        raise RunError(
            f"warm_start: individuals of '{run}' have {wrong} genes, this search's have {len(layout)}; use the same "
            "layers, criteria, n_clusters and allocation, or leave warm_start out"
        )
    places = np.unique(np.linspace(0, len(individuals) - 1, min(n, len(individuals))).round().astype(int))
    return [_clipped(individuals[i], layout) for i in places]


def _clipped(genes: Sequence[float], layout: Layout) -> tuple[float, ...]:
    return tuple(min(max(g, low), high) for g, low, high in zip(genes, layout.low, layout.high, strict=True))
