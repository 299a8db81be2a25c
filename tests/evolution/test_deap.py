"""Unmodified DEAP on our toolbox: loops, seeds, pickles, selection."""

from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Digits
from deap import algorithms, tools

import deap_prune as dp
from deap_prune.evolution.generation import non_dominated
from tests.helpers.fakes import fake_toolbox, individuals_of

LOOPS = {
    "eaMuPlusLambda": lambda pop, tb, **k: algorithms.eaMuPlusLambda(pop, tb, 8, 8, 0.5, 0.4, 3, verbose=False, **k),
    "eaMuCommaLambda": lambda pop, tb, **k: algorithms.eaMuCommaLambda(pop, tb, 8, 12, 0.5, 0.4, 3, verbose=False, **k),
    "eaSimple": lambda pop, tb, **k: algorithms.eaSimple(pop, tb, 0.6, 0.4, 3, verbose=False, **k),
}


# ------------------------------------------------------------------ stock loops
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_stock_loops_run_unmodified(loop: str, objectives: int) -> None:
    budget = 0.5 if objectives == 1 else None
    toolbox = fake_toolbox(objectives, max_flops=budget)
    hall, best, statistics = tools.HallOfFame(5), tools.ParetoFront(), tools.Statistics(lambda ind: ind.fitness.values)
    statistics.register("best", np.max, axis=0)
    population, logbook = LOOPS[loop](toolbox.population(n=8), toolbox, stats=statistics, halloffame=hall)
    assert len(population) == 8 and len(logbook) == 4 and logbook[-1]["best"].shape == (objectives,)
    assert len(hall) == 5 and hall[0].fitness >= hall[-1].fitness
    best.update(population)
    front = toolbox.front(population)
    assert {tuple(s.values.values()) for s in front} == {ind.fitness.values for ind in best}
    if budget:
        assert len(front) == 1 and front.best().flops <= budget * front.dense["flops"]


def test_stock_loop_on_a_real_network(digits: Digits) -> None:
    """The lines of the public contract."""
    genome = digits.genome(allocation="evolved")
    evaluate = digits.evaluator()
    toolbox = dp.make_toolbox(genome, evaluate, seed=0)
    population, _ = algorithms.eaMuPlusLambda(toolbox.population(n=8), toolbox, 8, 8, 0.6, 0.4, 2, verbose=False)
    front = toolbox.front(population)
    solution = front.best(max_flops=0.6)
    assert solution.flops == dp.flops(digits.space, solution.masks) <= 0.6 * digits.space.flops
    assert solution.params == dp.params(digits.space, solution.masks)
    small = evaluate.slim(solution.masks)
    assert dp.accuracy(small, digits.validation, device="cpu") == pytest.approx(solution.values["accuracy"])
    assert sum(p.numel() for p in small.parameters()) == solution.params
    assert genome.decode(solution.individual) == solution.masks


@pytest.mark.parametrize("seed", [0, 7])
def test_same_seed_same_run(seed: int) -> None:
    def run() -> list[list[float]]:
        toolbox = fake_toolbox(seed=seed)
        population, _ = LOOPS["eaMuPlusLambda"](toolbox.population(n=8), toolbox)
        return [list(ind) for ind in population]

    first = run()
    random.random()
    assert run() == first


def test_seed_none_leaves_the_generators_alone() -> None:
    random.seed(5)
    state = random.getstate()
    fake_toolbox(seed=None)
    assert random.getstate() == state


def test_every_alias_can_be_registered_anew() -> None:
    """DEAP's own operators on our individuals."""
    toolbox = fake_toolbox()
    toolbox.register("mate", tools.cxTwoPoint)
    toolbox.register("mutate", tools.mutGaussian, mu=0, sigma=2, indpb=0.5)
    toolbox.register("select", tools.selNSGA2, nd="log")
    population, _ = LOOPS["eaMuPlusLambda"](toolbox.population(n=8), toolbox)
    assert all(type(ind) is dp.operators.BlendIndividual for ind in population)


# ------------------------------------------------------------------ individuals
def test_clone_and_pickle() -> None:
    toolbox = fake_toolbox(3)
    (individual,) = toolbox.population(n=1)
    individual.fitness.values = (0.5, 0.2, 0.1)
    for copied in (toolbox.clone(individual), copy.copy(individual), pickle.loads(pickle.dumps(individual))):
        assert type(copied) is dp.operators.BlendIndividual and list(copied) == list(individual)
        assert copied.fitness.values == (0.5, 0.2, 0.1) and copied.fitness.weights == (1, -1, -1)
    other = toolbox.clone(individual)
    other[0], before = 99, individual[0]
    del other.fitness.values
    assert individual[0] == before and individual.fitness.valid


def test_pickles_open_in_a_fresh_process(tmp_path: Path) -> None:
    """Fitness classes are imported by name: no creator, no declarations."""
    individual = dp.operators.BlendIndividual([1, 0.5], dp.operators.fitness_class((-1, 1, -1))())
    individual.fitness.values = (3.0, 2.0, 1.0)
    (tmp_path / "one.pickle").write_bytes(pickle.dumps(individual))
    code = "import pickle, sys; x = pickle.load(open(sys.argv[1], 'rb')); print(x, x.fitness.wvalues)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "one.pickle")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[1, 0.5] (-3.0, 2.0, -1.0)"


def test_fitness_classes() -> None:
    assert dp.operators.fitness_class((1, -1)) is dp.operators.fitness_class((1.0, -1.0))
    assert dp.operators.fitness_class((1, -1)).__name__ == "FitnessMaxMin" and dp.operators.fitness_class(
        (-1,)
    ).weights == (-1.0,)
    from deap_prune.evolution import individual

    for name in ("Fitness", "FitnessMid", "Nothing"):
        with pytest.raises(AttributeError):
            getattr(individual, name)


def test_a_pickled_evaluate_gives_the_same_values(digits: Digits) -> None:
    """pool.map pickles toolbox.evaluate: the copy gives the same values."""
    toolbox = dp.make_toolbox(digits.genome(), digits.evaluator(), seed=0)
    (individual,) = toolbox.population(n=1)
    again = pickle.loads(pickle.dumps(toolbox.evaluate))
    assert again(individual) == toolbox.evaluate(individual)


def test_initial_population_spans_the_costs() -> None:
    toolbox = fake_toolbox()
    population = toolbox.population(n=30)
    costs = [toolbox.evaluate(ind)[1] for ind in population]
    assert len(population) == 30 and min(costs) < 0.2 and max(costs) > 0.6
    assert not any(ind.fitness.valid for ind in population)


# ------------------------------------------------------------------ selection
def test_survivors_are_the_first_fronts() -> None:
    individuals = individuals_of([(0.9, 0.9), (0.5, 0.5), (0.1, 0.1), (0.4, 0.6), (0.05, 0.2), (0.3, 0.7)])
    assert {ind[0] for ind in dp.operators.selBlend(individuals, 3)} == {0, 1, 2}
    assert {ind[0] for ind in dp.operators.selBlend(individuals, 5)} == {0, 1, 2, 3, 4}
    single = individuals_of([(0.1,), (0.9,), (0.5,), (0.7,)])
    assert [ind[0] for ind in dp.operators.selBlend(single, 2)] == [1, 3]


def test_repeated_values_survive_last() -> None:
    individuals = individuals_of([(0.9, 0.9), (0.9, 0.9), (0.9, 0.9), (0.4, 0.95), (0.1, 0.1)])
    assert sorted(ind[0] for ind in dp.operators.selBlend(individuals, 3)) == [0, 3, 4]
    assert sorted(ind[0] for ind in dp.operators.selBlend(individuals, 4)) == [0, 1, 3, 4]


def test_parents_are_drawn_by_rank() -> None:
    individuals = individuals_of([(i / 10, 0.5) for i in range(10)])
    random.seed(0)
    drawn = [int(ind[0]) for _ in range(200) for ind in dp.operators.selBlend(individuals, 10)]
    counts = np.bincount(drawn, minlength=10)
    assert counts[9] > 3 * counts[1] and np.corrcoef(counts, range(10))[0, 1] > 0.95
    assert all(any(ind is p for p in individuals) for ind in dp.operators.selBlend(individuals, 10))


def test_selection_keeps_its_number_with_the_same_individual_twice() -> None:
    """DEAP's varOr puts parents among the children uncloned."""
    made = [dp.operators.BlendIndividual([float(i)], dp.operators.fitness_class((1.0,))()) for i in range(6)]
    for i, individual in enumerate(made):
        individual.fitness.values = (float(i // 2),)
    for k in range(1, 12):
        assert len(dp.operators.selBlend(made + made, k)) == k


def test_archive_is_mutually_non_dominated() -> None:
    rng = np.random.default_rng(0)
    individuals = individuals_of([tuple(np.round(v, 1)) for v in rng.random((60, 2))])
    kept = non_dominated(individuals)
    values = [ind.fitness.values for ind in kept]
    assert len(set(values)) == len(values)
    for a in values:
        assert not any(b[0] >= a[0] and b[1] <= a[1] and b != a for b in (ind.fitness.values for ind in individuals))
    for ind in individuals:  # an individual that is left out is dominated or repeated
        assert any(v[0] >= ind.fitness.values[0] and v[1] <= ind.fitness.values[1] for v in values)


def test_our_loop_equals_the_stock_loop() -> None:
    """eaBlend is eaMuPlusLambda with an archive: the same survivors, and an archive that never gets worse."""
    toolbox = fake_toolbox()
    stock, _ = algorithms.eaMuPlusLambda(toolbox.population(n=8), toolbox, 8, 6, 0.5, 0.4, 4, verbose=False)
    toolbox = fake_toolbox()
    seen: list[int] = []
    state = dp.algorithms.eaBlend(
        toolbox.population(n=8), toolbox, 6, 0.5, 0.4, 4, callbacks=[lambda s: seen.append(s.number)]
    )
    assert [list(ind) for ind in state.population] == [list(ind) for ind in stock]
    assert seen == [0, 1, 2, 3, 4] and [r["gen"] for r in state.logbook] == seen
    volumes = [r["hypervolume"] for r in state.logbook]
    assert volumes == sorted(volumes)
    assert toolbox.front(state.archive).hypervolume() == volumes[-1]
    assert toolbox.front(stock).hypervolume() <= volumes[-1]


def test_a_callback_stops_the_loop() -> None:
    toolbox = fake_toolbox()

    def stop(state: dp.algorithms.Generation) -> None:
        state.stop = state.number == 2

    state = dp.algorithms.eaBlend(toolbox.population(n=6), toolbox, 6, 0.5, 0.5, 50, callbacks=[stop])
    assert state.number == 2 and len(state.logbook) == 3


# ------------------------------------------------------------------ search
def test_search_reaches_a_hypervolume(digits: Digits) -> None:
    """60 networks. Seeds 0, 1 and 2 reach 0.748, 0.756 and 0.750; their first populations 0.710, 0.704 and 0.703."""
    toolbox = dp.make_toolbox(digits.genome(), digits.evaluator(), seed=0)
    state = dp.algorithms.eaBlend(toolbox.population(n=12), toolbox, 12, 0.5, 0.5, 4)
    volumes = [r["hypervolume"] for r in state.logbook]
    assert volumes[0] < volumes[-1] <= 1
    assert volumes[-1] > 0.725
