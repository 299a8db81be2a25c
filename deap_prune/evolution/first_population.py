"""Individuals that are known before any search: single criteria, and their widths; a first population of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from deap_prune.blending.balance import WidthCurves
from deap_prune.blending.genome import Genome
from deap_prune.errors import DataError
from deap_prune.evolution.operators import initBlend
from deap_prune.evolution.problem import BlendProblem, Decoder, Genes
from deap_prune.structure.masks import Masks

# Of the logarithms of the weights that random widths are balanced with; benchmarks/RESULTS.md has what was tried.
SPREAD, SPREAD_REFINED = 0.5, 2.0
Estimate = Callable[[Masks], float]


class Seeds:
    """Individuals that need no search: what one may begin with, or refine beside what it found.

    Single criteria have uniform widths, balanced ones (``genome.balanced``, by an error of masks), or those of one
    threshold over all groups (``genome.affine``).

    Args:
        problem: Makes individuals. The surrogate of its evaluator, where that compensates, is the error that balances.
    """

    def __init__(self, problem: BlendProblem) -> None:
        self._problem = problem  # pickled lightly, by itself

    # -------------------------------------------------------------- a population
    def population(self, n: int) -> list[Any]:
        """``n`` different individuals: single criteria in the first half (over a range of costs), then others.

        Where widths evolve, single criteria with widths of their own come next. Where the fitness compensates, these
        are balanced: of every criterion; with a free budget of the best third, over a range of costs. Where nothing is
        compensated, a quarter are by one threshold. Where the fitness refines, an eighth are balanced and an eighth by
        one threshold: which layers refinement makes up for is yet to be learned. What is left is random blends, where
        there are balanced widths with such, by random weights of the groups; where the fitness refines these are far
        from even, which teaches most.

        Args:
            n: Size.
        """
        refines, singles = self._refines, self._uniform(n // 2)
        shaped = self._refined_widths(n) if refines else self._own_widths(n, n - len(singles))
        found = self._distinct([*singles, *shaped])
        seen = {tuple(ind) for ind in found}
        while len(found) < n:
            for _ in range(10):  # a genome of few genes may have no more different ones
                fresh = self._random(SPREAD_REFINED if refines else SPREAD)
                if tuple(fresh) not in seen:
                    break
            seen.add(tuple(fresh))
            found.append(fresh)
        return found

    def _own_widths(self, n: int, left: int) -> list[Any]:
        """Single criteria with widths of their own, for a population of ``n`` that has ``left`` places."""
        if not (names := self._best_first):
            return self.ranked(n // 4)
        if self._fixed:
            return self.balanced(min(left, len(names)), criteria=names)
        return self.balanced(left, criteria=names[: -(-len(names) // 3)])

    def _refined_widths(self, n: int) -> list[Any]:
        """The same, where the fitness refines."""
        balanced = self.balanced(n // 8)
        return [*balanced, *self.ranked(n // 4 - len(balanced))]

    def _random(self, spread: float) -> Any:
        """A random blend, its widths balanced with random weights of the groups where there are curves."""
        genome, fresh = self._evolving, initBlend(self._problem.individual, self._genome.layout)
        if genome is None or (curves := self._curves) is None:
            return fresh
        weights = np.exp(np.random.normal(0, spread, len(genome.space.groups)))
        low, high = sorted(self._range)
        share = float(np.random.uniform(low, high))
        widths = genome.balanced(genome.criteria[0], curves.weighed(weights.tolist()), share=share)
        for place in genome.layout.of_kind("keep", "budget"):
            fresh[place] = widths[place]
        return fresh

    # -------------------------------------------------------------- single criteria
    def singles(self, n: int) -> list[Any]:
        """The single criteria, each once; where the budget is free, ``n`` in turn over a range of costs, or one each.

        Args:
            n: At most so many, but every criterion once.
        """
        return self._uniform(max(n, len(self._genome.criteria)))

    def _uniform(self, n: int) -> list[Any]:
        """At most ``n`` single criteria with uniform widths."""
        genome = self._genome
        count = min(n, len(genome.criteria)) if self._fixed else n
        shares = np.ones(count) if self._fixed else np.linspace(*self._range, count)
        pairs = zip(itertools.cycle(genome.criteria), shares.tolist(), strict=False)
        return self._distinct(genome.single(name, share=share) for name, share in pairs)

    def balanced(self, n: int, *, criteria: Sequence[str] = (), error: Estimate | None = None) -> list[Any]:
        """Single criteria with balanced widths (``genome.balanced``), over a range of costs where the budget is free.

        None where widths don't evolve, or where there is nothing to balance by.

        Args:
            n: How many.
            criteria: In turn; all of them if left out.
            error: What is balanced; the evaluator's surrogate (if it compensates) if left out.
        """
        genome, curves = self._evolving, None
        if n:
            curves = self._curves if error is None else self._measured(error, self._by_error(error))
        if genome is None or curves is None:
            return []
        return self._distinct(genome.balanced(name, curves, share=share) for name, share in self._costs(n, criteria))

    def ranked(self, n: int) -> list[Any]:
        """Single criteria with widths by one threshold over all groups (``genome.affine``), as :meth:`balanced`.

        None where widths don't evolve.

        Args:
            n: How many.
        """
        genome = self._evolving
        if genome is None:
            return []
        same = [1.0] * len(genome.space.groups), [0.0] * len(genome.space.groups)
        return self._distinct(genome.affine(name, *same, share=share) for name, share in self._costs(n))

    def _costs(self, n: int, criteria: Sequence[str] = ()) -> Iterator[tuple[str, float]]:
        """``n`` criteria in turn, each with a share of the FLOPs out of the range."""
        shares = np.linspace(*self._range, n)
        # A share s of every layer costs about s² of the FLOPs: what a layer reads and what it makes both shrink.
        flops = shares if self._genome.max_flops is not None else shares**2
        return zip(itertools.cycle(criteria or self._genome.criteria), flops.tolist(), strict=False)

    # -------------------------------------------------------------- what they are chosen by
    @property
    def _genome(self) -> Decoder:
        return self._problem.genome

    @property
    def _fixed(self) -> bool:
        return isinstance(self._genome.max_flops, (int, float))

    @property
    def _evolving(self) -> Genome | None:
        """The genome, where it has widths that evolve."""
        genome = self._genome
        return genome if isinstance(genome, Genome) and genome.allocation.genes else None

    @property
    def _range(self) -> tuple[float, float]:
        """The largest and the smallest share that a population begins with where the budget is free."""
        budget = self._genome.max_flops
        return (budget[1], budget[0]) if isinstance(budget, tuple) else (0.95, 0.25)

    @property
    def _refines(self) -> bool:
        """Whether the fitness refines, so that its surrogate has to learn which layers count."""
        learned = getattr(self._problem.evaluator, "learned", None)
        return learned is not None and learned() is not None

    @property
    def _surrogate(self) -> Estimate | None:
        """The evaluator's, where it compensates."""
        evaluator = self._problem.evaluator
        error = getattr(evaluator, "surrogate", None)
        return None if error is None or evaluator.settings.get("compensate") is None else error

    @cached_property
    def _best_first(self) -> list[str]:
        """The criteria in the order of the surrogate."""
        return self._by_error(self._surrogate)

    @cached_property
    def _curves(self) -> WidthCurves | None:
        """By the surrogate."""
        return self._measured(self._surrogate, self._best_first)

    def _measured(self, error: Estimate | None, names: Sequence[str]) -> WidthCurves | None:
        """For the first of the criteria; all share them."""
        genome = self._evolving
        return None if genome is None or error is None or not names else genome.width_curves(names[0], error)

    def _by_error(self, error: Estimate | None) -> list[str]:
        """The criteria, that of the smallest error first; none where there is nothing to balance, or to balance by."""
        genome = self._evolving
        if genome is None or error is None:
            return []
        try:
            return sorted(genome.criteria, key=lambda name: error(genome.decode(genome.single(name, share=0.5))))
        except DataError:  # no calibration data: fine for objectives that are counted from masks alone
            return []

    def _distinct(self, genes: Iterable[Genes]) -> list[Any]:
        return [self._problem.individual(g) for g in dict.fromkeys(map(tuple, genes))]
