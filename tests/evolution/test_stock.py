"""What DEAP users have, as it is, on our individuals; and DEAP's traps, each with its guard."""

from __future__ import annotations

import copy
import multiprocessing
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Digits
from deap import algorithms, base, cma, creator, tools

import deap_prune as dp
from deap_prune.errors import ConfigError
from tests.helpers.fakes import Fake, fake_genome, fake_toolbox

SELECTIONS: dict[str, Callable[..., Any]] = {
    "selNSGA2": partial(tools.selNSGA2, nd="log"),
    "selNSGA2, standard": partial(tools.selNSGA2, nd="standard"),
    "selNSGA3": partial(tools.selNSGA3, ref_points=tools.uniform_reference_points(3, 4)),
    "selSPEA2": tools.selSPEA2,
    "selBlendNSGA3": dp.operators.selBlendNSGA3,
    "selBest": tools.selBest,
    "selTournament": partial(tools.selTournament, tournsize=3),
    "selLexicase": tools.selAutomaticEpsilonLexicase,
}


@pytest.fixture(scope="module")
def own_classes() -> Iterator[type[Any]]:
    creator.create("StockFitness", base.Fitness, weights=(1.0, -1.0))
    creator.create("StockIndividual", list, fitness=creator.StockFitness)
    yield creator.StockIndividual
    del creator.StockFitness, creator.StockIndividual


def mu_plus_lambda(toolbox: base.Toolbox, ngen: int = 3, **options: Any) -> tuple[list[Any], tools.Logbook]:
    population = toolbox.population(n=8)
    return algorithms.eaMuPlusLambda(population, toolbox, 8, 8, 0.5, 0.4, ngen, verbose=False, **options)


# ------------------------------------------------------------------ selections, records
@pytest.mark.parametrize("name", SELECTIONS)
def test_stock_selections(name: str) -> None:
    toolbox = fake_toolbox(3)
    toolbox.register("select", SELECTIONS[name])
    population, _ = mu_plus_lambda(toolbox)
    assert len(population) == 8 and all(
        type(ind) is dp.operators.BlendIndividual and ind.fitness.valid for ind in population
    )


def test_stock_records() -> None:
    """MultiStatistics, Logbook, History, HallOfFame, ParetoFront, in one stock run."""
    toolbox = fake_toolbox()
    history = tools.History()
    toolbox.decorate("mate", history.decorator)
    toolbox.decorate("mutate", history.decorator)
    statistics = tools.MultiStatistics(
        fitness=tools.Statistics(lambda ind: ind.fitness.values), keep=tools.Statistics(lambda ind: sum(ind))
    )
    statistics.register("mean", np.mean)
    population, hall, best = toolbox.population(n=8), tools.HallOfFame(4), tools.ParetoFront()
    history.update(population)
    population, logbook = algorithms.eaMuPlusLambda(
        population, toolbox, 8, 8, 0.5, 0.4, 3, statistics, hall, verbose=False
    )
    best.update(population)
    assert len(logbook.chapters["fitness"]) == len(logbook.chapters["keep"]) == 4 and "mean" in logbook.stream
    assert len(hall) == 4 and len(history.genealogy_tree) > 8 and len(best) >= 1
    assert history.getGenealogy(population[0], max_depth=2)


def test_islands_exchange_their_best() -> None:
    toolbox = fake_toolbox(max_flops=0.5, objectives=1)
    islands = [toolbox.population(n=6) for _ in range(3)]
    for island in islands:
        for individual in island:
            individual.fitness.values = toolbox.evaluate(individual)
    bests = [tools.selBest(island, 1)[0] for island in islands]
    tools.migRing(islands, 1, tools.selBest, replacement=tools.selWorst)
    for number, best in enumerate(bests):
        assert any(best is ind for ind in islands[(number + 1) % 3])
    assert [len(island) for island in islands] == [6, 6, 6]


def test_generate_update_with_cma() -> None:
    """deap.cma on an all-factor genome, through eaGenerateUpdate as it is."""
    genome = fake_genome(candidates="medoid", max_flops=0.5)
    toolbox = dp.make_toolbox(genome, Fake(genome.space, 1), seed=0)
    strategy = cma.Strategy(centroid=[0.5] * len(genome.layout), sigma=0.2, lambda_=10)
    individual = toolbox.individual.args[0]
    toolbox.register("generate", strategy.generate, individual)
    toolbox.register("update", strategy.update)
    hall = tools.HallOfFame(1)
    population, _ = algorithms.eaGenerateUpdate(toolbox, ngen=12, halloffame=hall, verbose=False)
    assert len(population) == 10 and type(hall[0]) is dp.operators.BlendIndividual
    first = dp.make_toolbox(genome, Fake(genome.space, 1), seed=0)
    start = max(first.evaluate(ind)[0] for ind in first.population(n=10))
    assert hall[0].fitness.values[0] > start
    assert dp.flops(genome.space, genome.decode(hall[0])) <= 0.5 * genome.space.flops


def test_creator_classes(own_classes: type[Any]) -> None:
    """The user's own individuals, in stock loops and in ours, with our operators."""

    def individual(genes: Any) -> Any:
        return own_classes(genes)

    toolbox = fake_toolbox(individual=individual)
    population, _ = mu_plus_lambda(toolbox)
    assert all(type(ind) is own_classes for ind in population) and len(toolbox.front(population)) >= 1
    state = dp.algorithms.eaBlend(toolbox.population(n=6), toolbox, 6, 0.5, 0.5, 2)
    assert all(type(ind) is own_classes for ind in state.archive)
    with pytest.raises(ConfigError, match=r"weights \(1.0, -1.0\); the objectives quality need \(1.0,\): \+1"):
        fake_toolbox(1, individual=individual)


# ------------------------------------------------------------------ other processes and threads
def test_threads_judge_alike() -> None:
    stock, _ = mu_plus_lambda(fake_toolbox())
    with ThreadPoolExecutor(2) as pool:
        toolbox = fake_toolbox()
        toolbox.register("map", pool.map)
        population, _ = mu_plus_lambda(toolbox)
    assert [list(ind) for ind in population] == [list(ind) for ind in stock]


@pytest.mark.parametrize("kind", ["multiprocessing", "concurrent.futures"])
def test_spawned_processes_judge_alike(kind: str, digits: Digits) -> None:
    """Stock loop, real network, two spawned workers: the very run of one process."""

    def run(map_: Callable[..., Any] | None) -> list[tuple[Any, ...]]:
        toolbox = dp.make_toolbox(digits.genome(), digits.evaluator(), seed=0)
        if map_ is not None:
            toolbox.register("map", map_)
        population, _ = mu_plus_lambda(toolbox, ngen=1)
        return [(list(ind), ind.fitness.values) for ind in population]

    context = multiprocessing.get_context("spawn")
    if kind == "multiprocessing":
        with context.Pool(2) as pool:
            found = run(pool.map)
    else:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found = run(pool.map)
    assert found == run(None)


def test_whole_populations_are_judged_at_once() -> None:
    """Stock loops call toolbox.map(toolbox.evaluate, ...): ours decodes together and calls ``many``."""

    class Many(Fake):
        def many(self, masks: list[dp.Masks]) -> list[tuple[float, ...]]:
            batches.append(len(masks))
            return [self(m) for m in masks]

    batches: list[int] = []
    genome = fake_genome()
    toolbox = dp.make_toolbox(genome, Many(genome.space), seed=0)
    population, logbook = mu_plus_lambda(toolbox)
    assert batches == [record["nevals"] for record in logbook]
    assert [ind.fitness.values for ind in population] == [toolbox.evaluate(ind) for ind in population]
    assert list(toolbox.map(len, population)) == [len(ind) for ind in population]
    assert list(toolbox.map(lambda a, b: a + b, [1, 2], [3, 4])) == [4, 6]


def test_evaluate_map_reaches_many(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """``toolbox.register("map", evaluate.map)``: a stock loop judges a generation in one call."""
    evaluate = digits.evaluator(objectives=("flops",))
    toolbox = dp.make_toolbox(digits.genome(), evaluate, seed=0)
    toolbox.register("map", evaluate.map)
    batches: list[int] = []
    many = evaluate.many
    monkeypatch.setattr(evaluate, "many", lambda masks: batches.append(len(masks)) or many(masks))
    _, logbook = mu_plus_lambda(toolbox, ngen=2)
    assert batches == [record["nevals"] for record in logbook]
    assert list(toolbox.map(len, [[1], [1, 2]])) == [1, 2]


def test_a_subclass_that_judges_in_its_own_way_is_asked() -> None:
    """Whatever the map: a budget as a penalty, say."""

    class Penalised(dp.algorithms.BlendProblem):
        def evaluate(self, individual: Sequence[float]) -> tuple[float, ...]:
            first, *rest = super().evaluate(individual)
            return (first - 100.0, *rest)

    genome = fake_genome()
    toolbox, problem = dp.make_toolbox(genome, Fake(genome.space), seed=0), Penalised(genome, Fake(genome.space))
    toolbox.register("evaluate", problem.evaluate)
    toolbox.register("map", problem.map)
    population = toolbox.population(n=4)
    found = toolbox.map(toolbox.evaluate, population)
    assert found == [toolbox.evaluate(ind) for ind in population] and all(values[0] < -90 for values in found)


def test_genes_that_are_at_hand_make_an_individual() -> None:
    genome = fake_genome()
    toolbox = dp.make_toolbox(genome, Fake(genome.space), seed=0)
    guess = toolbox.individual_guess(genome.single(genome.criteria[0]))
    assert list(guess) == genome.single(genome.criteria[0]) and not guess.fitness.valid


def test_genes_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    genome = fake_genome()
    toolbox = dp.make_toolbox(genome, Fake(genome.space), seed=0)
    population = toolbox.population(n=4)
    for ind in population:
        ind[:] = [np.int64(g) if isinstance(g, int) else np.float32(g) for g in ind]
        ind.fitness.values = toolbox.evaluate(ind)
    toolbox.front(population).save(tmp_path)
    assert len(dp.ParetoFront.load(tmp_path)) == len(toolbox.front(population))


def test_a_front_of_another_fitness_says_so() -> None:
    genome = fake_genome()
    three, two = (dp.make_toolbox(genome, Fake(genome.space, number), seed=0) for number in (3, 2))
    one = three.individual()
    one.fitness.values = three.evaluate(one)
    with pytest.raises(ConfigError, match="an individual's fitness has 3 values; a front needs quality, flops"):
        two.front([one])


def test_survivors_can_be_parents_of_dcd() -> None:
    """Crowding distances are assigned where there is nothing to drop, too."""
    genome = fake_genome()
    toolbox = dp.make_toolbox(genome, Fake(genome.space), seed=0)
    one = toolbox.individual()
    one.fitness.values = toolbox.evaluate(one)
    survivors = toolbox.select([toolbox.clone(one) for _ in range(8)], 4)
    assert len(tools.selTournamentDCD(survivors, 4)) == 4


# ------------------------------------------------------------------ traps
def judged(values: list[tuple[float, ...]]) -> list[dp.operators.BlendIndividual]:
    fitness = dp.operators.fitness_class((1.0, -1.0)[: len(values[0])])
    found = [dp.operators.BlendIndividual([float(i)], fitness()) for i in range(len(values))]
    for individual, value in zip(found, values, strict=True):
        individual.fitness.values = value
    return found


def test_crowding_distance_survives_a_clone() -> None:
    """DEAP's own fitness loses it, and selTournamentDCD then fails."""
    people = judged([(i / 8, i / 9) for i in range(8)])
    tools.emo.assignCrowdingDist(people)
    clones = [copy.deepcopy(ind) for ind in people]
    assert [ind.fitness.crowding_dist for ind in clones] == [ind.fitness.crowding_dist for ind in people]
    assert len(tools.selTournamentDCD(clones, 8)) == 8
    clones[0].fitness.values = (0.0, 1.0)
    assert people[0].fitness.values == (0.0, 0.0)


@pytest.mark.parametrize("size", [5, 6, 7, 9, 11])
def test_any_population_size(size: int) -> None:
    """selTournamentDCD needs multiples of four; our parents don't."""
    toolbox = fake_toolbox()
    loop = dp.algorithms.Loop("nsga2", toolbox, dp.algorithms.Variation(size + 1))
    state = loop.run(loop.start(size), 2)
    assert len(state.population) == size
    assert len(dp.operators.selBlendParents(state.population, 2 * size + 1)) == 2 * size + 1


def test_nan_never_wins(digits: Digits) -> None:
    """DEAP lets a NaN replace the best in HallOfFame(1), and onto the ParetoFront: it never gets there."""
    dp.register_objective("often_nan", maximise=True, worst=-1.0)(
        lambda out, y, dense: out[:, 0] * (float("nan") if out.shape[0] else 1.0)
    )
    try:
        evaluate = digits.evaluator(objectives=("often_nan", "flops"))
        toolbox = dp.make_toolbox(digits.genome(), evaluate, seed=0)
        hall = tools.HallOfFame(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            population, _ = mu_plus_lambda(toolbox, ngen=1, halloffame=hall)
        assert {ind.fitness.values[0] for ind in population} == {-1.0} and hall[0].fitness.values[0] == -1.0
    finally:
        from deap_prune.fitness import OBJECTIVES

        OBJECTIVES.remove("often_nan")


def test_genes_of_any_operator_are_judged() -> None:
    """mutGaussian leaves the bounds, cxBlend mixes candidates to fractions: decoded all the same, and never complex."""
    toolbox = fake_toolbox()
    toolbox.register("mate", tools.cxBlend, alpha=2.0)
    toolbox.register("mutate", tools.mutGaussian, mu=0, sigma=9, indpb=0.8)
    population, _ = mu_plus_lambda(toolbox)
    assert len(toolbox.front(population)) >= 1
    layout = toolbox.layout
    toolbox.register("mutate", tools.mutPolynomialBounded, eta=20.0, low=layout.low, up=layout.high, indpb=0.8)
    toolbox.decorate("mutate", dp.operators.bounded(layout))
    toolbox.decorate("mate", dp.operators.bounded(layout))
    population, _ = mu_plus_lambda(toolbox)
    assert all(lo <= g <= hi for ind in population for g, lo, hi in zip(ind, layout.low, layout.high, strict=True))


def test_two_point_crossover_changes_both_children() -> None:
    """On numpy individuals it changes one; ours are lists, and others' arrays are refused."""
    toolbox = fake_toolbox()
    one, two = toolbox.population(n=2)
    before = list(one), list(two)
    random.seed(1)
    tools.cxTwoPoint(one, two)
    assert list(one) != before[0] and list(two) != before[1]
    assert sorted([*one, *two]) == sorted([*before[0], *before[1]])

    class Vector(np.ndarray):
        fitness = one.fitness

    with pytest.raises(ConfigError, match=r"individuals are NumPy arrays, .* derive the class from list"):
        fake_toolbox(individual=lambda genes: np.array(list(genes)).view(Vector))
    with pytest.raises(ConfigError, match=r"individuals of list have no fitness; make their class with DEAP's creator"):
        fake_toolbox(individual=list)


def test_selection_sorts_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """DEAP's default, nd="standard", takes seconds for a population of 1,000: ours never calls it."""
    monkeypatch.setattr(tools.emo, "sortNondominated", lambda *args, **options: pytest.fail("the slow sort"))
    for objectives in (2, 3):
        population, _ = mu_plus_lambda(fake_toolbox(objectives))
        assert len(dp.operators.selBlend(population, 4)) == len(dp.operators.selBlendNSGA3(population, 4)) == 4
        assert len(dp.operators.selBlendParents(population, 9)) == 9


def test_a_seeded_population_has_distinct_members() -> None:
    """Also where several criteria are one individual, the medoid of their cluster (NNCF's LeGR drew one 63 times)."""
    for options in ({"max_flops": 0.5, "candidates": "medoid", "objectives": 1}, {}, {"max_flops": (0.3, 0.8)}):
        toolbox = fake_toolbox(**{"objectives": 2, **options})
        population = toolbox.population(n=40)
        assert len(population) == 40 and len({tuple(ind) for ind in population}) == 40
        assert len({tuple(ind) for ind in toolbox.singles(n=12)}) == len(toolbox.singles(n=12))


def test_a_genome_of_few_genes_still_fills_its_population() -> None:
    genome = fake_genome(allocation="uniform", max_flops=0.5)
    few = dp.operators.Layout(("candidate",), (0.0,), (1.0,), (0,))
    genome.layout = few
    assert len(dp.make_toolbox(genome, Fake(genome.space, 1)).population(n=9)) == 9


def test_duplicates_cost_nothing(digits: Digits) -> None:
    """eaSimple re-evaluates its duplicates; masks are the key, so that other genes of the same network are free too."""
    evaluate = digits.evaluator()
    genome = digits.genome()
    toolbox = dp.make_toolbox(genome, evaluate, seed=0)
    one = toolbox.individual()
    factors = genome.layout.of_kind("factor")
    same = toolbox.clone(one)
    for i in factors:
        same[i] /= 2  # factors count only up to scale
    assert list(same) != list(one) and genome.decode(same) == genome.decode(one)
    assert toolbox.map(toolbox.evaluate, [one, same, one]) == [toolbox.evaluate(one)] * 3
    assert evaluate.counters.candidates == 1


def test_duplicates_are_replaced_when_asked() -> None:
    def doubles(fresh: bool) -> int:
        toolbox = fake_toolbox()
        toolbox.register("mutate", lambda ind: (ind,))  # every child is its parent
        loop = dp.algorithms.Loop(
            "mu_plus_lambda", toolbox, dp.algorithms.Variation(8, 0.0, 1.0), fresh_duplicates=fresh
        )
        state = loop.start(8)
        loop.run(state, 3)
        return state.logbook[-1]["nevals"], len({tuple(ind) for ind in state.population})

    assert doubles(True)[1] == 8
    toolbox = fake_toolbox()
    seen = toolbox.population(n=6)
    from deap_prune.evolution.loop import _renewed

    renewed = _renewed([toolbox.clone(seen[0]), seen[1], toolbox.individual()], seen, toolbox)
    masks = toolbox.decode([*seen, *renewed])
    assert len(set(masks)) == 9 and not any(ind.fitness.valid for ind in renewed)


def test_register_keeps_the_evaluator_small(digits: Digits) -> None:
    """``toolbox.register`` copies a callable's __dict__ into the partial: a bound method has none."""
    toolbox = dp.make_toolbox(digits.genome(), digits.evaluator(), seed=0)
    assert vars(toolbox.evaluate) == {"__name__": "evaluate", "__doc__": toolbox.evaluate.func.__doc__}


def test_constrained_fitness_is_not_needed() -> None:
    """DEAP's ConstrainedFitness is unhashable and forgets its violation on clone: budgets hold by decoding instead."""
    toolbox = fake_toolbox(max_flops=0.4, objectives=1)
    toolbox.register("mutate", tools.mutGaussian, mu=0, sigma=9, indpb=1.0)
    population, _ = mu_plus_lambda(toolbox)
    space = toolbox.evaluate.func.__self__.genome.space
    assert all(dp.flops(space, m) <= 0.4 * space.flops for m in toolbox.decode(population))
    assert len({ind.fitness for ind in population}) >= 1
