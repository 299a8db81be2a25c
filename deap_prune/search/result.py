"""The result of a search."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from deap import tools
from torch import nn

from deap_prune.arguments import checked
from deap_prune.blending.baselines import AnyGenome
from deap_prune.blending.clusters import CriteriaClusters
from deap_prune.criteria.table import ScoreTable
from deap_prune.display import MOST_LINES
from deap_prune.errors import RunError
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The result of a search.

    Attributes:
        front: The Pareto front (one solution with a single objective).
        logbook: DEAP's logbook, one record per generation.
        space: What could be pruned.
        scores: Scores of all filters by all criteria.
        clusters: The criteria clusters.
        genome: Decodes individuals to masks.
        evaluator: Evaluates as the front was evaluated (refined, on all images): its networks are those of the values.
        compared_by: The evaluator that the search compared candidates with; its cache holds them all.
    """

    front: ParetoFront
    logbook: tools.Logbook
    space: PruningSpace
    scores: ScoreTable
    clusters: CriteriaClusters
    genome: AnyGenome
    evaluator: Evaluator
    compared_by: Evaluator

    def __str__(self) -> str:
        return f"{self.front}\n{self._summary}"

    def __repr__(self) -> str:
        return "\n".join([*repr(self.front).splitlines()[: MOST_LINES - 1], self._summary])

    def _repr_html_(self) -> str:
        return f"{self.front._repr_html_()}<p>{escape(self._summary)}</p>"

    @property
    def _summary(self) -> str:
        return f"{self.evaluations} evaluations; .front, .best, .slim(solution), .plot(), .logbook, .space"

    def plot(self, axes: Any = None) -> Any:
        """Draw the front over all candidates; with one objective, its best value by generation.

        Args:
            axes: matplotlib axes to draw on; new ones if left out.

        Returns:
            The matplotlib axes.
        """
        from deap_prune.plot import draw_history, new_axes

        first, *others = self.front.weights
        if not others:
            axes = new_axes() if axes is None else axes
            return draw_history(axes, [(record["gen"], record[first]) for record in self.logbook], label=first)
        candidates = [(values[0], values[1]) for values in self.compared_by.cache.values()]
        return self.front.plot(axes, points={"candidates, as they were compared": candidates})

    @property
    def best(self) -> Solution:
        """The best solution by the first objective (with one objective: the best inside the budget)."""
        return self.front.best()

    @property
    def evaluations(self) -> int:
        """Number of networks that were built and evaluated."""
        return self.compared_by.counters.candidates

    @checked
    def slim(self, solution: Solution | Masks | int) -> nn.Module:
        """The smaller network of a solution, exactly as it was evaluated.

        Args:
            solution: A solution, its place in the front, or masks.

        Raises:
            RunError: If the front has no such place.
        """
        if isinstance(solution, int):
            if not -len(self.front) <= solution < len(self.front):
                raise RunError(f"the front has solutions 0 to {len(self.front) - 1}; solution is {solution}")
            solution = self.front.solutions[solution]
        return self.evaluator.slim(solution.masks if isinstance(solution, Solution) else solution)
