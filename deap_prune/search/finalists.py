"""Which networks are refined at the end of a search."""

from __future__ import annotations

from typing import Any

from deap_prune.evolution.first_population import StartingPoints
from deap_prune.evolution.generation import Generation
from deap_prune.evolution.problem import BlendProblem
from deap_prune.fitness.evaluator import Evaluator


def finalists(problem: BlendProblem, evaluator: Evaluator, state: Generation, count: int) -> list[Any]:
    """Individuals to refine in addition to the archive, since refinement may change their order.

    With several objectives: ``count`` networks of every single criterion, over the range of costs, half of them with
    balanced widths, half with the widths of one threshold. With one objective: see :func:`_rivals`; none if it is
    searched for under several budgets.

    Args:
        problem: Decodes individuals.
        evaluator: The fitness of the search.
        state: The search's last state.
        count: Option ``finalists``; 0: none.
    """
    if not count:
        return []
    if len(evaluator.names) > 1:
        points, number = StartingPoints(problem), count * len(problem.genome.criteria)
        shaped = [*points.balanced(number - number // 2, refined=True), *points.ranked(number // 2)]
        return shaped or points.singles(number)
    return _rivals(problem, evaluator, state, count) if problem.genome.budget.is_fixed else []


def _rivals(problem: BlendProblem, evaluator: Evaluator, state: Generation, count: int) -> list[Any]:
    """The ``count`` best of the last population, and as many single criteria that are best before refinement.

    The single criteria have uniform and balanced widths, and are compared by the learned surrogate, or else evaluated.
    Half as many with widths balanced for refinement, and as many with those of one threshold, are all taken: they
    score badly before refinement but often best after it.
    """
    best = sorted(state.population, key=lambda ind: ind.fitness, reverse=True)[:count]
    error, weight = evaluator.learned(), evaluator.weights[0]
    points, number = StartingPoints(problem), len(problem.genome.criteria)
    singles = [*points.singles(count), *points.balanced(number, error=error)]
    masks = problem.genome.decode_many(singles)
    if error is None:
        other = evaluator.with_settings(refine=False, select=False, augment=False, precision="fp32")
        costs = [-weight * values[0] for values in other.many(masks)]
    else:
        costs = [error(candidate) for candidate in masks]
    order = sorted(range(len(singles)), key=costs.__getitem__)
    suited = [*points.balanced(number - number // 2, refined=True), *points.ranked(number // 2)]
    return [*best, *(singles[k] for k in order[:count]), *suited]
