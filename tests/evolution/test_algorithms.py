"""Every registered algorithm searches, stays within its budget, and resumes bit for bit."""

from __future__ import annotations

import array
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deap import base, creator

import deap_prune as dp
from deap_prune.blending import GENOMES
from deap_prune.errors import ConfigError, RegistryError
from deap_prune.evolution import ALGORITHMS
from tests.helpers.fakes import Fake, Table, fake_genome, fake_toolbox
from tests.helpers.pruning import prepared
from tests.helpers.runs import files, interrupted, resume, search

NAMES = [a.name for a in ALGORITHMS]
BASELINES = {"singles", "borda"}
EXTRA: dict[str, dict[str, Any]] = {
    "successive": {"max_flops": (0.7, 0.5, 0.3), "generations": 5},
    "cma": {"max_flops": 0.5, "objectives": ("agreement",)},
    "aging": {"max_flops": 0.5, "objectives": ("agreement",)},
    "legr": {"max_flops": 0.5, "objectives": ("agreement",)},
    "nsga3": {"objectives": ("accuracy", "flops", "params")},
}


def toolbox_for(name: str, **options: Any) -> Any:
    space = prepared("residual").space
    plain = fake_genome(space)
    genome = GENOMES[ALGORITHMS[name].genome](space, Table(space), plain.clusters, **options)
    return dp.make_toolbox(genome, Fake(space, 2), seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_algorithm_contract(name: str) -> None:
    """Within the budget; the population keeps its size; the archive never gets worse; one seed, one run."""
    budgets = (0.7, 0.5, 0.3)

    def run() -> tuple[Any, Any]:
        toolbox = toolbox_for(name, max_flops=(0.3, 0.7) if name == "successive" else 0.5)
        variation = dp.algorithms.Variation(8, 0.5, 0.5, budgets if name == "successive" else (), 2)
        loop = dp.algorithms.Loop(name, toolbox, variation)
        return toolbox, loop.run(loop.start(8), 5)

    toolbox, state = run()
    _, again = run()
    assert [list(ind) for ind in again.population] == [list(ind) for ind in state.population]
    assert list(again.logbook) == list(state.logbook)
    space = toolbox.evaluate.func.__self__.genome.space
    most = 0.7 if name == "successive" else 0.5
    assert all(dp.flops(space, m) <= most * space.flops for m in toolbox.decode(state.archive))
    volumes = [record["hypervolume"] for record in state.logbook]
    assert volumes == sorted(volumes)
    if name not in BASELINES:
        assert state.number == 5 and len(state.population) == 8 and volumes[-1] > volumes[0]
    assert ALGORITHMS[name].summary and ALGORITHMS[name].reference


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    options = {"algorithm": name, **EXTRA.get(name, {})}
    search(tmp_path / "whole", **options)
    if name in BASELINES:
        interrupted(tmp_path / "run", 0, **options)
    else:
        interrupted(tmp_path / "run", 2, **options)
    random.seed(1), np.random.seed(2)
    resume(tmp_path / "run")
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert (tmp_path / "run/cache.jsonl").read_bytes() == (tmp_path / "whole/cache.jsonl").read_bytes()


def test_successive_budgets_in_one_run(tmp_path: Path) -> None:
    """One run, networks for 70, 50 and 30 % of the FLOPs."""
    result = search(tmp_path / "run", algorithm="successive", max_flops=(0.7, 0.5, 0.3), generations=5)
    for budget in (0.7, 0.5, 0.3):
        assert result.front.best(max_flops=budget).flops <= budget * result.space.flops
    shares = [record["flops"] for record in result.logbook]
    assert shares[0] > 0.6 and shares[-1] <= 0.3
    for max_flops in (None, 0.5, (0.5,)):
        with pytest.raises(ConfigError, match="algorithm 'successive' needs several budgets, such as"):
            search(None, algorithm="successive", max_flops=max_flops)
    with pytest.raises(ConfigError, match="with several budgets the objectives end with 'flops'"):
        search(None, algorithm="successive", max_flops=(0.7, 0.5), objectives=("accuracy",))


def test_successive_gives_each_budget_an_equal_part_of_the_generations() -> None:
    result = search(None, algorithm="successive", max_flops=(0.7, 0.4), generations=5, refine=False)
    shares = [record["flops"] for record in result.logbook]
    assert all(0.4 < share <= 0.7 for share in shares[:3]) and all(share <= 0.4 for share in shares[3:])


def test_aging_drops_the_oldest() -> None:
    toolbox = toolbox_for("aging", max_flops=0.5)
    loop = dp.algorithms.Loop("aging", toolbox, dp.algorithms.Variation(1))
    state = loop.start(6)
    first = [list(ind) for ind in state.population]
    loop.run(state, 2)
    assert [list(ind) for ind in state.population[:4]] == first[2:]


def test_legr_moves_scales_by_shrinking_steps() -> None:
    """As published: log-normal steps of 1 - i / 500 after i evaluations, down to 0.2; shifts by one deviation."""

    def moves(evaluations: int) -> tuple[float, float, set[int]]:
        toolbox = toolbox_for("legr", max_flops=0.5)
        state = dp.algorithms.Loop("legr", toolbox, dp.algorithms.Variation(1)).start(4)
        for individual in state.population:
            individual[:] = [1.0, 0.0] * (len(individual) // 2)
        state.logbook.clear()
        state.logbook.record(gen=0, nevals=evaluations)
        children = np.array(ALGORITHMS["legr"].children(state, toolbox, dp.algorithms.Variation(800)))
        changed = {int(n) for n in (children != [1.0, 0.0] * (children.shape[1] // 2)).sum(axis=1)}
        scales, shifts = np.log(children[:, ::2]), children[:, 1::2]
        return float(scales[scales != 0].std()), float(shifts[shifts != 0].std()), changed

    for evaluations, step in ((0, 1.0), (250, 0.5), (400, 0.2), (4000, 0.2)):
        scale, shift, changed = moves(evaluations)
        assert scale == pytest.approx(step, rel=0.08) and shift == pytest.approx(1.0, rel=0.1)
        assert changed == {2}  # few groups: one of them, its scale and its shift


def test_cma_moves_arrays_too() -> None:
    """An ``array.array`` takes no list as a slice."""
    genome = fake_genome(candidates="medoid", max_flops=0.5)
    creator.create("FitnessArray", base.Fitness, weights=(1.0,))
    creator.create("ArrayOfGenes", array.array, typecode="d", fitness=creator.FitnessArray)
    try:
        toolbox = dp.make_toolbox(genome, Fake(genome.space, 1), seed=0, individual=creator.ArrayOfGenes)
        loop = dp.algorithms.Loop("cma", toolbox, dp.algorithms.Variation(6))
        state = loop.run(loop.start(6), 2)
        assert all(isinstance(ind, array.array) for ind in state.population)
    finally:
        del creator.FitnessArray, creator.ArrayOfGenes


def test_cma_learns() -> None:
    """On a sphere of factors its distribution shrinks around the optimum."""
    genome = fake_genome(candidates="medoid", max_flops=0.5)

    class Sphere(Fake):
        def __call__(self, masks: dp.Masks) -> tuple[float, ...]:
            return (0.0,)

    toolbox = dp.make_toolbox(genome, Sphere(genome.space, 1), seed=0)
    toolbox.register("evaluate", lambda ind: (-sum((g - 0.3) ** 2 for g in ind),))
    toolbox.register("map", map)
    loop = dp.algorithms.Loop("cma", toolbox, dp.algorithms.Variation(12))
    state = loop.start(12)
    begin = state.logbook[0]["quality"]
    loop.run(state, 60)
    assert state.logbook[-1]["quality"] > begin / 20
    with pytest.raises(ConfigError, match="cma with 3 children a generation can't estimate a distribution; give 4"):
        dp.algorithms.Loop("cma", toolbox, dp.algorithms.Variation(3)).run(loop.start(4), 1)


def test_singles_are_every_criterion() -> None:
    toolbox = toolbox_for("singles", max_flops=0.5)
    loop = dp.algorithms.Loop("singles", toolbox, dp.algorithms.Variation(4))
    state = loop.run(loop.start(2), 9)
    genome = toolbox.evaluate.func.__self__.genome
    assert [list(ind) for ind in state.population] == [genome.single(c) for c in "abc"] and state.number == 0
    free = dp.algorithms.Loop("singles", toolbox_for("singles"), dp.algorithms.Variation(4))
    assert len(free.start(9).population) == 9


def test_an_algorithm_of_your_own() -> None:
    @dp.algorithms.register_algorithm("always_dense", reference="this test")
    def dense(state: dp.algorithms.Generation, toolbox: Any, variation: dp.algorithms.Variation) -> list[Any]:
        """Children that keep everything."""
        child = toolbox.individual()
        child[:] = list(toolbox.layout.high)
        return [child]

    try:
        assert "always_dense" in dp.algorithms.describe()
        loop = dp.algorithms.Loop("always_dense", fake_toolbox(), dp.algorithms.Variation(1))
        state = loop.run(loop.start(4), 1)
        assert max(ind.fitness.values[1] for ind in state.archive) == 1.0
    finally:
        ALGORITHMS.remove("always_dense")
    with pytest.raises(RegistryError, match="unknown algorithm 'nsga4'; did you mean 'nsga3'"):
        dp.algorithms.Loop("nsga4", fake_toolbox(), dp.algorithms.Variation(1))
    with pytest.raises(ConfigError, match="the population is empty"):
        dp.algorithms.eaBlend([], fake_toolbox(), 1, 0.5, 0.5, 1)
    with pytest.raises(ConfigError, match=r"mutpb is 1\.5; give a probability"):
        dp.algorithms.Variation(4, 0.1, 1.5)
    loop = dp.algorithms.Loop("mu_plus_lambda", fake_toolbox(), dp.algorithms.Variation(4, 0.9, 0.5))
    with pytest.raises(ConfigError, match=r"cxpb 0\.9 \+ mutpb 0\.5 is above 1; they are shares"):
        loop.run(loop.start(4), 1)
    loop = dp.algorithms.Loop(
        "nsga2", fake_toolbox(), dp.algorithms.Variation(4, 0.9, 0.5)
    )  # one after the other, as published
    assert loop.run(loop.start(4), 1).number == 1


# ------------------------------------------------------------------ other options of a search
def test_a_reference_of_your_own() -> None:
    """It changes the hypervolumes of the logbook, and nothing else."""

    def first(reference: tuple[float, ...] | None) -> float:
        variation = dp.algorithms.Variation(6)
        return (
            dp.algorithms.Loop("nsga2", fake_toolbox(), variation, reference=reference)
            .start(6)
            .logbook[0]["hypervolume"]
        )

    assert first(None) == first((0, 1)) < first((0, 2))
    with pytest.raises(ConfigError, match=r"reference is \(0,\); give one value for each of"):
        first((0,))


def test_operators_by_name() -> None:
    search(None, mate="cxBlendStages", mutate="mutBlendTrade", generations=1)
    with pytest.raises(RegistryError, match="unknown mutation 'mutTrade'; did you mean 'mutBlendTrade'"):
        search(None, mutate="mutTrade")


def test_history_is_written_as_the_run_goes(tmp_path: Path) -> None:
    interrupted(tmp_path / "run", 2)
    assert (tmp_path / "run/history.csv").read_text().count("\n") in (3, 4)


def test_callbacks_see_every_generation() -> None:
    seen: list[int] = []
    search(None, generations=2, callbacks=[lambda state: seen.append(state.number)])
    assert seen == [0, 1, 2]
