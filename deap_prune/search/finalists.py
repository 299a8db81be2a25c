"""The end of a search: which networks are refined, and the front of their final values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deap_prune.evolution.first_population import StartingPoints
from deap_prune.evolution.front import ParetoFront
from deap_prune.evolution.generation import Generation
from deap_prune.evolution.problem import BlendProblem, front_of
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.options import EndOptions
from deap_prune.progress import note, track
from deap_prune.structure.masks import Masks


@dataclass(frozen=True, eq=False)
class FinalFront:
    """The front of a search, and the evaluator that its values and networks come from."""

    front: ParetoFront
    evaluator: Evaluator


def final_front(
    problem: BlendProblem, evaluator: Evaluator, state: Generation, options: EndOptions, *, progress: bool = False
) -> FinalFront:
    """The front of a search, evaluated on all validation images as they are, in fp32, and refined if that helps.

    Refinement moves a network towards the dense one. That is no gain if the dense network is poor (hardly trained).
    Then the front is returned as the search compared it, and ``settings["refine"]`` is false. Nothing is compared if
    candidates were refined during the search, or if an objective is a time, which differs between measurements.

    Args:
        problem: Decodes individuals.
        evaluator: The fitness of the search.
        state: The search's last state.
        options: Whether and how networks are refined; see :func:`finalists` for ``finalists``.
        progress: Show a bar.
    """
    if not options.refine:
        return _not_refined(problem, evaluator, state.archive, progress)
    individuals = [*state.archive, *finalists(problem, evaluator, state, options.finalists)]
    refining = evaluator.with_settings(
        refine=True, refine_images=options.refine_images, augment=False, precision="fp32"
    )
    refined = _evaluated(problem, refining, individuals, "refining the front" if progress else "")
    if not evaluator.options.refine and not evaluator.is_timed:
        searched = _not_refined(problem, evaluator, state.archive, progress)
        before, after = _worth(searched.front), _worth(refined)
        if before > after:
            name = "hypervolume" if len(evaluator.names) > 1 else evaluator.names[0]
            note(
                f"not refined: that would make the front worse ({name} {abs(before):.4g}, refined {abs(after):.4g})",
                shown=progress,
            )
            return searched
    return FinalFront(refined, refining)


def _worth(front: ParetoFront) -> float:
    """The hypervolume, or the best value of one objective, larger being better."""
    ((name, weight), *others) = front.weights.items()
    return front.hypervolume() if others else weight * front.best().values[name]


def _not_refined(problem: BlendProblem, evaluator: Evaluator, individuals: Sequence[Any], progress: bool) -> FinalFront:
    """The front without refinement; evaluated again only if the search used other images or another precision."""
    if not evaluator.options.augment and evaluator.options.precision == "fp32" and not evaluator.options.refine:
        masks = problem.genome.decode_many(individuals)
        values = [ind.fitness.values for ind in individuals]
        return FinalFront(front_of(evaluator, problem.genome.space, individuals, masks, values), evaluator)
    other = evaluator.with_settings(refine=False, augment=False, precision="fp32")
    return FinalFront(_evaluated(problem, other, individuals, "evaluating the front" if progress else ""), other)


def _evaluated(problem: BlendProblem, evaluator: Evaluator, individuals: Sequence[Any], bar: str) -> ParetoFront:
    """The front by another evaluator, each network evaluated once; with a progress bar of that name, if any."""
    distinct: dict[Masks, Any] = {}
    for masks, individual in zip(problem.genome.decode_many(individuals), individuals, strict=True):
        distinct.setdefault(masks, individual)
    values = [evaluator.measure(evaluator.slim(masks), masks) for masks in track([*distinct], bar, shown=bool(bar))]
    return front_of(evaluator, problem.genome.space, [*distinct.values()], [*distinct], values)


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
        shaped = [*points.balanced(number - number // 2, error=evaluator.learned()), *points.ranked(number // 2)]
        return shaped or points.singles(number)
    return _rivals(problem, evaluator, state, count) if problem.genome.budget.is_fixed else []


def _rivals(problem: BlendProblem, evaluator: Evaluator, state: Generation, count: int) -> list[Any]:
    """The ``count`` best of the last population, and as many single criteria that are best before refinement.

    The single criteria have uniform and balanced widths, and are compared by the learned surrogate, or else evaluated.
    Those with the widths of one threshold are all taken: they score badly before refinement but often best after it.
    """
    best = sorted(state.population, key=lambda ind: ind.fitness, reverse=True)[:count]
    error, weight = evaluator.learned(), evaluator.weights[0]
    points, number = StartingPoints(problem), len(problem.genome.criteria)
    singles = [*points.singles(count), *points.balanced(number, error=error)]
    masks = problem.genome.decode_many(singles)
    if error is None:
        other = evaluator.with_settings(refine=False, augment=False, precision="fp32")
        costs = [-weight * values[0] for values in other.many(masks)]
    else:
        costs = [error(candidate) for candidate in masks]
    order = sorted(range(len(singles)), key=costs.__getitem__)
    return [*best, *(singles[k] for k in order[:count]), *points.ranked(number)]
