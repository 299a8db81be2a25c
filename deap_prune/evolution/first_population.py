"""Individuals that need no search: single criteria with several kinds of widths, and a first population of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from deap_prune.blending.balance import WidthCurves
from deap_prune.blending.genome import Genome
from deap_prune.errors import ConfigError, DataError
from deap_prune.evolution.fitness import Error
from deap_prune.evolution.operators import initBlend
from deap_prune.evolution.problem import BlendProblem, Decoder, Genes

# Standard deviation of the logarithms of the group weights that random widths are balanced with, without and with
# refined candidates; benchmarks/results/notes.json names the measurement.
SPREAD, SPREAD_REFINED = 0.5, 2.0


class StartingPoints:
    """Individuals that need no search: a search begins with them, or refines them beside its front.

    Single criteria have uniform widths, balanced widths (``genome.balanced``, by an error of masks), or the widths of
    one threshold over all groups (``genome.affine``).

    Args:
        problem: Makes individuals. If its fitness compensates, the fitness's surrogate balances the widths; if it
            refines, the distance of outputs makes the errors of different groups comparable.
    """

    def __init__(self, problem: BlendProblem) -> None:
        self._problem = problem  # has a light pickle of its own

    # -------------------------------------------------------------- a population
    def population(self, n: int) -> list[Any]:
        """``n`` different individuals: single criteria in the first half (over a range of costs), then others.

        If widths evolve, single criteria with widths of their own follow. If candidates are compensated, these widths
        are balanced: for every criterion, or with a free budget for the best third of the criteria, over a range of
        costs. If nothing is compensated, a quarter has the widths of one threshold. If candidates are refined, an
        eighth is balanced and an eighth has the widths of one threshold. The rest are random blends. If width curves
        exist, their widths are balanced with random group weights, which vary more if candidates are refined: that
        teaches the surrogate most.

        Args:
            n: Size.

        Raises:
            ConfigError: If ``n`` is no whole number from 1 up.
        """
        if not isinstance(n, int) or not 1 <= n < 2**31:
            raise ConfigError(f"n is {n!r:.40}; give a whole number of individuals from 1 up")
        learns, singles = self._problem.fitness.learns, self._uniform(n // 2)
        shaped = self._widths_if_refined(n) if learns else self._widths_if_not_refined(n, n - len(singles))
        individuals = self._distinct([*singles, *shaped])
        seen = {tuple(ind) for ind in individuals}
        while len(individuals) < n:
            for _ in range(10):  # a genome of few genes may have no more different individuals
                fresh = self._random(SPREAD_REFINED if learns else SPREAD)
                if tuple(fresh) not in seen:
                    break
            seen.add(tuple(fresh))
            individuals.append(fresh)
        return individuals

    def _widths_if_not_refined(self, n: int, places: int) -> list[Any]:
        """Single criteria with widths of their own, for a population of ``n`` that has ``places`` left."""
        if not (names := self._criteria_by_error):
            return self.ranked(n // 4)
        if self._genome.budget.is_fixed:
            return self.balanced(min(places, len(names)), criteria=names)
        return self.balanced(places, criteria=names[: -(-len(names) // 3)])

    def _widths_if_refined(self, n: int) -> list[Any]:
        """Single criteria with widths of their own, if the fitness refines candidates."""
        balanced = self.balanced(n // 8)
        return [*balanced, *self.ranked(n // 4 - len(balanced))]

    def _random(self, spread: float) -> Any:
        """A random blend; if there are width curves, its widths are balanced with random weights of the groups."""
        genome, fresh = self._genome_with_widths, initBlend(self._problem.individual, self._genome.layout)
        if genome is None or (curves := self._curves) is None:
            return fresh
        weights = np.exp(np.random.normal(0, spread, len(genome.space.groups)))
        low, high = sorted(self._share_range)
        share = float(np.random.uniform(low, high))
        widths = genome.balanced(genome.criteria[0], curves.weighed(weights.tolist()), share=share)
        for place in genome.layout.of_kind("keep", "budget"):
            fresh[place] = widths[place]
        return fresh

    # -------------------------------------------------------------- single criteria
    def singles(self, n: int) -> list[Any]:
        """The single criteria with uniform widths, each once; with a free budget ``n`` in turn over a range of costs.

        Args:
            n: Number of individuals with a free budget; every criterion occurs at least once.
        """
        return self._uniform(max(n, len(self._genome.criteria)))

    def _uniform(self, n: int) -> list[Any]:
        """At most ``n`` single criteria with uniform widths."""
        genome, fixed = self._genome, self._genome.budget.is_fixed
        count = min(n, len(genome.criteria)) if fixed else n
        shares = np.ones(count) if fixed else np.linspace(*self._share_range, count)
        pairs = zip(itertools.cycle(genome.criteria), shares.tolist(), strict=False)
        return self._distinct(genome.single(name, share=share) for name, share in pairs)

    def balanced(
        self, n: int, *, criteria: Sequence[str] = (), error: Error | None = None, refined: bool = False
    ) -> list[Any]:
        """Single criteria with balanced widths, over a range of costs if the budget is free.

        An empty list if widths don't evolve, or if there is no error to balance.

        Args:
            n: Number of individuals.
            criteria: Criteria to take in turn; all by default.
            error: Error of masks; by default the fitness's surrogate, if candidates are compensated.
            refined: Whether the widths are for networks that are refined, though the fitness does not refine them.
        """
        genome, curves = self._genome_with_widths, None
        if n and error is None:
            curves = self._anchored_curves if refined else self._curves
        elif n:
            curves = self._measured(error, self._sorted_by(error))
        if genome is None or curves is None:
            return []
        pairs = self._criteria_and_costs(n, criteria)
        return self._distinct(genome.balanced(name, curves, share=share) for name, share in pairs)

    def ranked(self, n: int) -> list[Any]:
        """Single criteria with the widths of one threshold over all groups, over a range of costs like ``balanced``.

        An empty list if widths don't evolve.

        Args:
            n: Number of individuals.
        """
        genome = self._genome_with_widths
        if genome is None:
            return []
        same = [1.0] * len(genome.space.groups), [0.0] * len(genome.space.groups)
        pairs = self._criteria_and_costs(n)
        return self._distinct(genome.affine(name, *same, share=share) for name, share in pairs)

    def _criteria_and_costs(self, n: int, criteria: Sequence[str] = ()) -> Iterator[tuple[str, float]]:
        """``n`` criteria in turn, each with a kept share of the FLOPs from the range."""
        shares = np.linspace(*self._share_range, n)
        # Keeping a share s of every layer costs about s² of the FLOPs: a layer's inputs and outputs both shrink.
        flops = shares**2 if self._genome.budget.is_free else shares
        return zip(itertools.cycle(criteria or self._genome.criteria), flops.tolist(), strict=False)

    # -------------------------------------------------------------- what widths are balanced by
    @property
    def _genome(self) -> Decoder:
        return self._problem.genome

    @property
    def _genome_with_widths(self) -> Genome | None:
        """The genome if it has widths that evolve."""
        genome = self._genome
        return genome if isinstance(genome, Genome) and genome.allocation.genes else None

    @property
    def _share_range(self) -> tuple[float, float]:
        """The largest and the smallest share in a first population with a budget that is not fixed."""
        budget = self._genome.budget
        lowest, highest = budget.shares if budget.is_range else (0.25, 0.95)
        return highest, lowest

    @property
    def _surrogate(self) -> Error | None:
        """The fitness's surrogate, if candidates are compensated."""
        fitness = self._problem.fitness
        return fitness.surrogate if fitness.compensates else None

    @cached_property
    def _criteria_by_error(self) -> list[str]:
        return self._sorted_by(self._surrogate)

    @cached_property
    def _curves(self) -> WidthCurves | None:
        if self._problem.fitness.learns:
            return self._anchored_curves
        return self._measured(self._surrogate, self._criteria_by_error)

    @cached_property
    def _anchored_curves(self) -> WidthCurves | None:
        """The width curves of networks that are refined."""
        return self._measured(self._surrogate, self._criteria_by_error, self._problem.fitness.output_distance)

    def _measured(self, error: Error | None, names: Sequence[str], anchor: Error | None = None) -> WidthCurves | None:
        """The width curves of the first of the criteria, which all criteria share."""
        genome = self._genome_with_widths
        if genome is None or error is None or not names:
            return None
        return genome.width_curves(names[0], error, anchor=anchor)

    def _sorted_by(self, error: Error | None) -> list[str]:
        """The criteria, smallest error first; an empty list without widths that evolve or without an error."""
        genome = self._genome_with_widths
        if genome is None or error is None:
            return []
        try:
            return sorted(genome.criteria, key=lambda name: error(genome.decode(genome.single(name, share=0.5))))
        except DataError:  # no calibration data, which objectives of masks alone don't need
            return []

    def _distinct(self, genes: Iterable[Genes]) -> list[Any]:
        return [self._problem.individual(g) for g in dict.fromkeys(map(tuple, genes))]
