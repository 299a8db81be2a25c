"""Between the loop and the fitness: images drawn for a generation, the guard, and the front judged in full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from deap import algorithms, base
from torch import Tensor

from deap_prune.data.batches import Data, count_samples
from deap_prune.data.draws import EVERYTHING
from deap_prune.errors import DataError
from deap_prune.evolution.first_population import Seeds
from deap_prune.evolution.front import ParetoFront, hypervolume
from deap_prune.evolution.generation import Generation, non_dominated
from deap_prune.evolution.problem import BlendProblem, front_of
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.progress import note, track
from deap_prune.structure.masks import Masks

if TYPE_CHECKING:
    from deap_prune.config import SearchConfig


class NextGeneration:
    """Before children are made: parents and archive are judged as those will be, on their images (``Loop.begin``).

    Args:
        evaluator: The fitness.
        problem: Decodes individuals.
    """

    def __init__(self, evaluator: Evaluator, problem: BlendProblem) -> None:
        self._evaluator, self._decode = evaluator, problem.genome.decode_many

    def __call__(self, state: Generation) -> None:
        """Give everybody who lives on the values of the new generation."""
        if not self._evaluator.options.by_generation:
            return
        parents, archive = self._decode(state.population), self._decode(state.archive)
        self._evaluator.next_generation(state.number + 1, parents, archive)
        for individuals, masks in ((state.population, parents), (state.archive, archive)):
            for individual, values in zip(individuals, self._evaluator.many(masks), strict=True):
                individual.fitness.values = values
        state.archive = non_dominated(state.archive)


class PreScreen:
    """Several children are made for each one that is judged; the evaluator's surrogate picks it (``Variation.vary``).

    It picks of networks that were not judged before, as far as there are such among the children.

    Where the surrogate learns from what was judged, one child in eight (none of one) is what it takes for the best
    there is: a single criterion with widths balanced by it. So it is put right where it errs, and widths take large
    steps.

    Args:
        evaluator: The fitness, with calibration data.
        problem: Decodes individuals.
        children: Made for each that is judged.
        propose: Whether there are such proposals; not where budgets change on the way.
    """

    def __init__(self, evaluator: Evaluator, problem: BlendProblem, children: int, *, propose: bool = True) -> None:
        self._evaluator, self._genome, self._seeds = evaluator, problem.genome, Seeds(problem)
        self._children, self._propose = children, propose
        self._decode = problem.genome.decode_many

    def __call__(
        self, population: list[Any], toolbox: base.Toolbox, lambda_: int, cxpb: float, mutpb: float
    ) -> list[Any]:
        """``lambda_`` children, as ``algorithms.varOr`` makes them."""
        error = self._evaluator.learned()
        count = min(-(-lambda_ // 8), lambda_ - 1) if self._propose and error is not None else 0
        proposed = self._proposals(count, error) if count and error is not None else []
        slots = lambda_ - len(proposed)
        children = self._new(algorithms.varOr(population, toolbox, slots * self._children, cxpb, mutpb), slots)
        chosen = self._evaluator.prescreen(self._decode(children), slots, error)
        return [*(children[k] for k in chosen), *proposed]

    def _new(self, children: list[Any], slots: int) -> list[Any]:
        """Networks not judged before, each once; other children only where slots are left.

        Otherwise unchanged copies of good parents would win their slots, and nothing new would be judged.
        """
        first = list(self._fresh(children).values())
        chosen = set(map(id, first))
        rest = (child for child in children if id(child) not in chosen)
        return [*first, *rest][: max(len(first), slots)]

    def _fresh(self, individuals: list[Any]) -> dict[Masks, Any]:
        """Those whose networks were not judged before, the first of equals."""
        found: dict[Masks, Any] = {}
        for masks, individual in zip(self._decode(individuals), individuals, strict=True):
            if masks not in self._evaluator.cache:
                found.setdefault(masks, individual)
        return found

    def _proposals(self, count: int, error: Callable[[Masks], float]) -> list[Any]:
        """The surrogate's own, at most so many, none judged before; over a range of costs where the budget is free."""
        genome = self._genome
        fresh = self._fresh(self._seeds.balanced(count * len(genome.criteria), error=error))
        left = list(fresh)
        if isinstance(genome.max_flops, (int, float)):
            return [fresh[masks] for masks in sorted(left, key=error)[:count]]
        chosen = self._evaluator.prescreen(left, min(count, len(left)), error) if left else []
        return [fresh[left[k]] for k in chosen]


class Guard:
    """A callback that logs, as ``guard``, what the best networks so far do on images that never decide anything.

    With one objective that is the best network's value, with several the hypervolume of the archive.

    Args:
        evaluator: The fitness, with guard images.
        problem: Decodes individuals.
        reference: Of the hypervolume.
    """

    def __init__(self, evaluator: Evaluator, problem: BlendProblem, reference: Sequence[float] | None = None) -> None:
        self._evaluator, self._problem, self._reference = evaluator, problem, reference

    def __call__(self, state: Generation) -> None:
        """Log the figure of a generation."""
        evaluator = self._evaluator
        values = [evaluator.on_guard(masks) for masks in self._problem.genome.decode_many(state.archive)]
        weights = evaluator.weights
        if len(weights) == 1:
            figure = weights[0] * max(weights[0] * found[0] for found in values)
        else:
            reference = self._problem.front([]).reference if self._reference is None else self._reference
            figure = hypervolume(-np.array(values) * weights, weights, reference)
        state.logbook[-1]["guard"] = figure


def final_front(
    problem: BlendProblem,
    evaluator: Evaluator,
    state: Generation,
    options: SearchConfig,
    *,
    progress: bool = False,
) -> tuple[ParetoFront, Evaluator]:
    """The front of a run, its figures measured on all validation images in fp32, and the evaluator that they are from.

    Refinement brings a network nearer to the dense one. Where that is no gain (a dense network that is hardly trained),
    and candidates were compared before it, the front as it was searched is given (``settings["refine"]`` tells); not
    where something is timed, which differs from one measurement to the next.

    Args:
        problem: Decodes individuals.
        evaluator: The fitness of the search.
        state: Where the search ended.
        options: ``refine``: networks are refined before they are measured. ``finalists``: with refinement, which may
            turn an order round, others are refined as well. One objective and one budget: so many of the last
            population, so many single criteria, and those with widths by one threshold. Several objectives: so many
            networks of every single criterion, over the range of costs. ``reference``: of the hypervolume.
        progress: Show a bar.
    """
    # With redraw each was best on a draw of its own.
    individuals = [*state.archive, *(state.population if evaluator.options.sampling.redraw else ())]
    if not options.refine:
        return _measured(problem, evaluator, individuals, progress)
    others = _finalists(problem, evaluator, state, options.finalists) if options.finalists else []
    judge = evaluator.in_full(refine=True)
    refined = _judged(problem, judge, [*individuals, *others], "refining the front" if progress else "")
    if options.refine_from is None and not any(o.of_network for o in evaluator.objectives):
        searched, as_searched = _measured(problem, evaluator, individuals, progress)
        before, after = (_worth(front, options.reference) for front in (searched, refined))
        if before > after:
            figure = "hypervolume" if len(evaluator.names) > 1 else evaluator.names[0]
            note(
                f"not refined: that would make the front worse ({figure} {abs(before):.4g}, refined {abs(after):.4g})",
                shown=progress,
            )
            return searched, as_searched
    return refined, judge


def _worth(front: ParetoFront, reference: Sequence[float] | None) -> float:
    """The hypervolume, or the best value of one objective, larger being better."""
    ((name, weight), *others) = front.weights.items()
    return front.hypervolume(reference) if others else weight * front.best().values[name]


def _measured(
    problem: BlendProblem, evaluator: Evaluator, individuals: Sequence[Any], progress: bool
) -> tuple[ParetoFront, Evaluator]:
    """The front without refinement; nothing is judged again where the search saw all images in fp32."""
    if evaluator.options.sampling == EVERYTHING and evaluator.options.precision == "fp32":
        masks = problem.genome.decode_many(individuals)
        values = [ind.fitness.values for ind in individuals]
        return front_of(evaluator, problem.genome.space, individuals, masks, values), evaluator
    judge = evaluator.in_full(refine=False)
    return _judged(problem, judge, individuals, "judging the front" if progress else ""), judge


def _judged(problem: BlendProblem, judge: Evaluator, individuals: Sequence[Any], bar: str) -> ParetoFront:
    """The front by another evaluator, each network measured once; with a bar of that name."""
    distinct: dict[Masks, Any] = {}
    for masks, individual in zip(problem.genome.decode_many(individuals), individuals, strict=True):
        distinct.setdefault(masks, individual)
    values = [judge.measure(judge.slim(masks), masks) for masks in track([*distinct], bar, shown=bool(bar))]
    return front_of(judge, problem.genome.space, [*distinct.values()], [*distinct], values)


def _finalists(problem: BlendProblem, evaluator: Evaluator, state: Generation, count: int) -> list[Any]:
    """Who is refined beside the archive; nobody where one objective is searched for under several budgets."""
    if len(evaluator.names) > 1:
        seeds, number = Seeds(problem), count * len(problem.genome.criteria)
        widths = [*seeds.balanced(number - number // 2, error=evaluator.learned()), *seeds.ranked(number // 2)]
        return widths or seeds.singles(number)
    if isinstance(problem.genome.max_flops, (int, float)):
        return _rivals(problem, evaluator, state, count)
    return []


def _rivals(problem: BlendProblem, evaluator: Evaluator, state: Generation, count: int) -> list[Any]:
    """The best of the last population, and the best single criteria before they are refined, ``count`` of each.

    Single criteria: with uniform and with balanced widths; the best are told by the learned surrogate, or judged. Those
    with widths by one threshold all are: they are bad before refinement, and often the best after it.
    """
    best = sorted(state.population, key=lambda ind: ind.fitness, reverse=True)[:count]
    error, weight = evaluator.learned(), evaluator.weights[0]
    seeds, number = Seeds(problem), len(problem.genome.criteria)
    singles = [*seeds.singles(count), *seeds.balanced(number, error=error)]
    masks = problem.genome.decode_many(singles)
    if error is None:
        costs = [-weight * values[0] for values in evaluator.in_full(refine=False).many(masks)]
    else:
        costs = [error(each) for each in masks]
    order = sorted(range(len(singles)), key=costs.__getitem__)
    return [*best, *(singles[k] for k in order[:count]), *seeds.ranked(number)]


def hold_out(validation: Data, count: int) -> tuple[Data, Data | None]:
    """The validation data without its last ``count`` samples (batches that hold at least so many), and those.

    Raises:
        DataError: If nothing would be left.
    """
    if not count:
        return validation, None
    rest: Any
    guard: Any
    if (
        isinstance(validation, (tuple, list))
        and len(validation) == 2
        and all(isinstance(x, Tensor) for x in validation)
    ):
        inputs, targets = validation
        rest, guard = (inputs[:-count], targets[:-count]), (inputs[-count:], targets[-count:])
        left = len(rest[0])
    else:
        rest, guard = list(validation), []
        while rest and sum(map(count_samples, guard)) < count:
            guard.insert(0, rest.pop())
        left = len(rest)
    if not left:
        raise DataError(f"guard={count} leaves no validation images; hold out fewer, or give more")
    return rest, guard
