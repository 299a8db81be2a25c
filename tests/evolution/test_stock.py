"""DEAP's own selections, records, islands, CMA-ES and maps, unmodified, on our individuals."""

from __future__ import annotations

import multiprocessing
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
from tests.helpers.fakes import Fake, fake_genome, fake_toolbox, mu_plus_lambda

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
    """deap.cma on an all-factor genome, through eaGenerateUpdate."""
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
def test_threads_give_the_same_run() -> None:
    stock, _ = mu_plus_lambda(fake_toolbox())
    with ThreadPoolExecutor(2) as pool:
        toolbox = fake_toolbox()
        toolbox.register("map", pool.map)
        population, _ = mu_plus_lambda(toolbox)
    assert [list(ind) for ind in population] == [list(ind) for ind in stock]


@pytest.mark.parametrize("kind", ["multiprocessing", "concurrent.futures"])
def test_spawned_processes_give_the_same_run(kind: str, digits: Digits) -> None:
    """A stock loop on a real network with spawned workers: the same run as in one process."""

    def run(map_: Callable[..., Any] | None) -> list[tuple[Any, ...]]:
        toolbox = dp.make_toolbox(digits.genome(), digits.evaluator(), seed=0)
        if map_ is not None:
            toolbox.register("map", map_)
        population, _ = mu_plus_lambda(toolbox, ngen=1)
        return [(list(ind), ind.fitness.values) for ind in population]

    context = multiprocessing.get_context("spawn")
    if kind == "multiprocessing":
        with context.Pool(2) as pool:
            spawned = run(pool.map)
    else:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            spawned = run(pool.map)
    assert spawned == run(None)


def test_whole_populations_are_evaluated_at_once() -> None:
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
    """``toolbox.register("map", evaluate.map)``: a stock loop evaluates a generation in one call."""
    evaluate = digits.evaluator(objectives=("flops",))
    toolbox = dp.make_toolbox(digits.genome(), evaluate, seed=0)
    toolbox.register("map", evaluate.map)
    batches: list[int] = []
    many = evaluate.many
    monkeypatch.setattr(evaluate, "many", lambda masks: batches.append(len(masks)) or many(masks))
    _, logbook = mu_plus_lambda(toolbox, ngen=2)
    assert batches == [record["nevals"] for record in logbook]
    assert list(toolbox.map(len, [[1], [1, 2]])) == [1, 2]


def test_a_subclass_may_evaluate_in_its_own_way() -> None:
    """With every map; for example a budget as a penalty."""

    class Penalised(dp.algorithms.BlendProblem):
        def evaluate(self, individual: Sequence[float]) -> tuple[float, ...]:
            first, *rest = super().evaluate(individual)
            return (first - 100.0, *rest)

    genome = fake_genome()
    toolbox, problem = dp.make_toolbox(genome, Fake(genome.space), seed=0), Penalised(genome, Fake(genome.space))
    toolbox.register("evaluate", problem.evaluate)
    toolbox.register("map", problem.map)
    population = toolbox.population(n=4)
    values = toolbox.map(toolbox.evaluate, population)
    assert values == [toolbox.evaluate(ind) for ind in population] and all(first < -90 for first, *_ in values)


def test_given_genes_make_an_individual() -> None:
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


def test_a_front_refuses_another_number_of_values() -> None:
    genome = fake_genome()
    three, two = (dp.make_toolbox(genome, Fake(genome.space, number), seed=0) for number in (3, 2))
    one = three.individual()
    one.fitness.values = three.evaluate(one)
    with pytest.raises(ConfigError, match="an individual's fitness has 3 values; a front needs quality, flops"):
        two.front([one])


def test_survivors_can_be_parents_of_dcd() -> None:
    """Crowding distances are assigned even if nothing is dropped."""
    genome = fake_genome()
    toolbox = dp.make_toolbox(genome, Fake(genome.space), seed=0)
    one = toolbox.individual()
    one.fitness.values = toolbox.evaluate(one)
    survivors = toolbox.select([toolbox.clone(one) for _ in range(8)], 4)
    assert len(tools.selTournamentDCD(survivors, 4)) == 4
