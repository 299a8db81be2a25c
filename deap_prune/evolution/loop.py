"""The loop that all algorithms share. An algorithm says how children are made and which individuals survive.

An algorithm is a frozen record of functions, registered by name. A generation depends on the :class:`Generation` and
the global generators alone, so every algorithm resumes bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deap import algorithms, base

from deap_prune.arguments import Count, checked
from deap_prune.errors import ConfigError
from deap_prune.evolution.generation import Callback, Generation, check_population, check_state, evaluate_invalid
from deap_prune.evolution.in_flight import InFlight, workers_of
from deap_prune.evolution.returns import Returns
from deap_prune.evolution.steady_run import SteadyRun, Steps
from deap_prune.registry import Registry

Stop = Callable[[Generation], bool]
Vary = Callable[[list[Any], base.Toolbox, int, float, float], list[Any]]


@dataclass(frozen=True)
class Variation:
    """Number of children, and how they are varied.

    Attributes:
        children: Children per generation.
        cxpb: Probability that a child comes from two parents.
        mutpb: Probability that it is a mutant.
        budgets: Kept shares of the FLOPs to search one after the other (``successive``).
        generations_per_budget: Generations for each of them.
        vary: Function that makes the children of ``mu_plus_lambda`` and ``successive``, as ``algorithms.varOr`` does.

    Raises:
        ConfigError: If a probability is outside [0, 1].
    """

    children: int
    cxpb: float = 0.5
    mutpb: float = 0.5
    budgets: tuple[float, ...] = ()
    generations_per_budget: int = 1
    vary: Vary = algorithms.varOr

    def __post_init__(self) -> None:
        for name, value in (("cxpb", self.cxpb), ("mutpb", self.mutpb)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}; give a probability, from 0 to 1")

    def offspring(self, population: list[Any], toolbox: base.Toolbox) -> list[Any]:
        """Children of a population, made by ``vary``.

        Raises:
            ConfigError: If DEAP's ``varOr`` makes them and the probabilities are together above 1.
        """
        if self.vary is algorithms.varOr and self.cxpb + self.mutpb > 1:
            raise ConfigError(f"cxpb {self.cxpb} + mutpb {self.mutpb} is above 1; they are shares of the children")
        return self.vary(population, toolbox, self.children, self.cxpb, self.mutpb)


Children = Callable[[Generation, base.Toolbox, Variation], list[Any]]
Survivors = Callable[[Generation, base.Toolbox, list[Any]], list[Any]]
First = Callable[[base.Toolbox, int, Variation], list[Any]]


def _population(toolbox: base.Toolbox, n: int, variation: Variation) -> list[Any]:
    return list(toolbox.population(n=n))


def _selected(state: Generation, toolbox: base.Toolbox, children: list[Any]) -> list[Any]:
    return list(toolbox.select(state.population + children, len(state.population)))


@dataclass(frozen=True)
class Algorithm:
    """An evolutionary algorithm, or a baseline with the same interface.

    Attributes:
        children: Function of (state, toolbox, variation) to the next children; an empty list ends the run.
        survivors: Function of (state, toolbox, evaluated children) to the next population; by default
            ``toolbox.select`` from parents and children.
        first: Function of (toolbox, n, variation) to the initial population; by default ``toolbox.population``.
        genome: Key of ``GENOMES``: the kind of genome.
        steady: Whether children are made one by one, whenever a worker is free, and survivors are chosen after each.
    """

    name: str
    children: Children
    summary: str
    reference: str
    survivors: Survivors = _selected
    first: First = _population
    genome: str = "blend"
    steady: bool = False


ALGORITHMS: Registry[Algorithm] = Registry("algorithm", "algorithms")


def register_algorithm(
    name: str,
    *,
    reference: str = "",
    survivors: Survivors = _selected,
    first: First = _population,
    genome: str = "blend",
    steady: bool = False,
) -> Callable[[Children], Children]:
    """Register an algorithm by decorating the function that makes its children. See :class:`Algorithm`.

    Raises:
        RegistryError: If the name is taken.
    """

    def decorate(children: Children) -> Children:
        summary = (children.__doc__ or "").strip().split("\n")[0]
        ALGORITHMS.add(Algorithm(name, children, summary, reference, survivors, first, genome, steady))
        return children

    return decorate


@dataclass(frozen=True, eq=False)
class Loop:
    """An algorithm with a toolbox and options, ready to run.

    Attributes:
        algorithm: A registered name, or an algorithm of your own.
        toolbox: Aliases clone, evaluate, front, individual, map, mate, mutate, population, select.
        variation: Number of children, and how they are varied.
        callbacks: Called with the state after every generation, the initial one included.
        stops: Called before every generation; True ends the run.
        reference: Reference point of the hypervolume in the logbook.
        fresh_duplicates: Replace children that decode to masks of the population, or of another child, by random
            individuals (needs the alias decode).
        journal: Journal of returns, for a steady-state algorithm; what it has beyond the state is replayed first.
        cut: Function of (evaluated individuals, all individuals) that says whether the rest of the initial population
            is left out; asked while it is evaluated, except by steady-state algorithms. At least two stay.
    """

    algorithm: str | Algorithm
    toolbox: base.Toolbox
    variation: Variation
    callbacks: Sequence[Callback] = ()
    stops: Sequence[Stop] = ()
    reference: Sequence[float] | None = None
    fresh_duplicates: bool = False
    journal: Returns | None = None
    cut: Callable[[int, int], bool] | None = None
    _chosen: Algorithm = field(init=False)

    def __post_init__(self) -> None:
        chosen = ALGORITHMS[self.algorithm] if isinstance(self.algorithm, str) else self.algorithm
        object.__setattr__(self, "_chosen", chosen)

    def start(self, n: int) -> Generation:
        """The state after the initial population is evaluated; steady-state algorithms evaluate it in :meth:`run`.

        Args:
            n: Its size.
        """
        return self._begin(self._chosen.first(self.toolbox, n, self.variation))

    def _begin(self, population: list[Any]) -> Generation:
        check_population(population, self.toolbox, "evaluate")
        state = Generation(0, population)
        if self._chosen.steady:
            return state
        fresh = self._evaluate_first(population)
        state.advance(population, fresh, self.toolbox, self.reference)
        self._notify(state)
        return state

    def _evaluate_first(self, population: list[Any]) -> list[Any]:
        """Evaluate the initial population in parts, and remove what is cut; returns the individuals that were fresh."""
        if self.cut is None:
            return evaluate_invalid(population, self.toolbox)
        fresh: list[Any] = []
        for done in range(2, len(population) + 2, 2):
            fresh += evaluate_invalid(population[done - 2 : done], self.toolbox)
            if done < len(population) and self.cut(done, len(population)):
                del population[done:]
                break
        return fresh

    def run(self, state: Generation, ngen: int) -> Generation:
        """Continue from a state to generation ``ngen``, or until a callback or stop ends the run."""
        if self._chosen.steady:
            return self._run_steadily(state, ngen)
        while state.number < ngen and not state.stop and not any(stop(state) for stop in self.stops):
            children = self._chosen.children(state, self.toolbox, self.variation)
            if not children:
                break
            if self.fresh_duplicates:
                children = _without_duplicates(children, state.population, self.toolbox)
            state.number += 1
            fresh = evaluate_invalid(children, self.toolbox)
            survivors = self._chosen.survivors(state, self.toolbox, children)
            state.advance(survivors, fresh, self.toolbox, self.reference)
            self._notify(state)
        return state

    def _run_steadily(self, state: Generation, ngen: int) -> Generation:
        chosen, toolbox, one = self._chosen, self.toolbox, replace(self.variation, children=1)

        def child(state: Generation) -> Any:
            children = chosen.children(state, toolbox, one)
            return (_without_duplicates(children, state.population, toolbox) if self.fresh_duplicates else children)[0]

        def record(state: Generation, evaluated: list[Any]) -> None:
            state.advance(state.population, evaluated, toolbox, self.reference)

        def survivors(state: Generation, child: Any) -> list[Any]:
            return chosen.survivors(state, toolbox, [child])

        steps = Steps(child, survivors, record, self._notify, self.stops)
        in_flight = InFlight(toolbox, workers_of(toolbox))
        period = self.variation.children
        return SteadyRun(state, toolbox, steps, period=period, in_flight=in_flight, journal=self.journal).run(ngen)

    def _notify(self, state: Generation) -> None:
        number = state.number
        for callback in self.callbacks:
            callback(state)
            check_state(state, number)


def _without_duplicates(children: list[Any], population: list[Any], toolbox: base.Toolbox) -> list[Any]:
    """Replace duplicate children by random individuals (at most ten draws each)."""
    seen = set(toolbox.decode(population))
    distinct = []
    for child, masks in zip(children, toolbox.decode(children), strict=True):
        for _ in range(10):
            if masks not in seen:
                break
            child = toolbox.individual()
            (masks,) = toolbox.decode([child])
        seen.add(masks)
        distinct.append(child)
    return distinct


@checked
def eaBlend(
    population: list[Any],
    toolbox: base.Toolbox,
    lambda_: Count,
    cxpb: float,
    mutpb: float,
    ngen: int,
    *,
    callbacks: Sequence[Callback] = (),
    stops: Sequence[Stop] = (),
    state: Generation | None = None,
    vary: Vary = algorithms.varOr,
) -> Generation:
    """(mu + lambda) evolution with an archive of the non-dominated; eaMuPlusLambda's shape.

    Every generation makes ``lambda_`` children by ``algorithms.varOr`` and evaluates them through ``toolbox.map``; the
    best ``mu`` of parents and children survive (``toolbox.select``).
    Aliases needed: clone, evaluate, front, map, mate, mutate, select.

    Args:
        population: The initial individuals, mu of them.
        toolbox: The operators.
        lambda_: Children per generation.
        cxpb: Probability that a child comes from two parents.
        mutpb: Probability that it is a mutant; ``cxpb + mutpb`` is at most 1.
        ngen: Last generation's number.
        callbacks: Called with the state after every generation, the initial one included.
        stops: Called before every generation; True ends the run.
        state: State to continue from, in the place of ``population``.
        vary: Makes the children, as ``algorithms.varOr`` does.
    """
    variation = Variation(lambda_, cxpb, mutpb, vary=vary)
    loop = Loop("mu_plus_lambda", toolbox, variation, callbacks, stops)
    return loop.run(loop._begin(population) if state is None else state, ngen)


def _vary(state: Generation, toolbox: base.Toolbox, variation: Variation) -> list[Any]:
    """(mu + lambda): crossover, mutation or reproduction; NSGA-II's survivors with several objectives."""
    return variation.offspring(state.population, toolbox)


register_algorithm("mu_plus_lambda", reference="Beyer and Schwefel 2002; DEAP's eaMuPlusLambda")(_vary)
