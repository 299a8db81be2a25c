"""Draws, races and the guard inside a search: they end in figures that hold, and resume bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Digits
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ConfigError, DataError, RunError
from deap_prune.evolution.checkpoint import Checkpoints
from deap_prune.evolution.first_population import StartingPoints
from deap_prune.evolution.problem import BlendProblem
from deap_prune.search.finalists import PreScreen, hold_out
from tests.helpers.networks import NETWORKS

OPTIONS: dict[str, Any] = {
    "criteria": ("l1", "fpgm", "bn_scale", "taylor_gate"),
    "population": 6,
    "generations": 3,
    "finalists": 1,
    "batch_size": 40,
    "device": "cpu",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "refined": {"refine_from": 2, "guard": 40},
    "drafts": {"refine_from": 0, "draft_images": 20, "prescreen": 3, "max_flops": 0.6, "objectives": ("loss",)},
    "redraw": {"images": 80, "augment": True, "redraw": True, "guard": 40},
    "racing": {"racing": 0.9, "guard": 40},
    "everything": {
        "images": 100,
        "redraw": True,
        "racing": 0.8,
        "objectives": ("loss",),
        "max_flops": 0.5,
        "seed": 1,  # one whose races drop somebody
    },
}


class Interruption(Exception):
    """What ends a run."""


def at(generation: int) -> Callable[[dp.algorithms.Generation], None]:
    def stop(state: dp.algorithms.Generation) -> None:
        if state.number == generation:
            raise Interruption

    return stop


def problem() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return NETWORKS["residual"]()


def images(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Images with the labels that the dense network gives them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    with torch.no_grad():
        return x, problem()[0].eval()(x).argmax(1)


DATA: dict[str, Any] = {"calibration": images(0, 30), "validation": images(1, 200), "progress": False}


def search(out: Path | None = None, **options: Any) -> dp.Result:
    return dp.search(*problem(), out=out, **{**OPTIONS, **DATA, **options})


@pytest.mark.parametrize("name", VARIANTS)
def test_stopped_and_resumed_is_never_stopped(name: str, tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", **VARIANTS[name])
    with pytest.raises(Interruption):
        search(tmp_path / "run", callbacks=[at(2)], **VARIANTS[name])
    again = dp.resume(tmp_path / "run", *problem(), **DATA)
    for file in ("front.json", "history.csv"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert list(again.logbook) == list(whole.logbook) and again.evaluations == whole.evaluations


@pytest.mark.parametrize("name", VARIANTS)
def test_the_front_is_judged_in_full(name: str) -> None:
    """Whatever the generations saw: figures are those of the network that is handed over, on all validation images."""
    result = search(**VARIANTS[name])
    x, y = DATA["validation"]
    count = len(y) - VARIANTS[name].get("guard", 0)
    names, data = result.evaluator.names, {"calibration": DATA["calibration"], "validation": (x[:count], y[:count])}
    plain = dp.Evaluator(problem()[0], result.space, objectives=names, batch_size=40, device="cpu", **data)
    for solution in result.front:
        values = plain.measure(result.slim(solution), solution.masks)
        assert values == pytest.approx(tuple(solution.values.values()), rel=1e-5)
    if name == "everything":
        assert result.evaluator.counters.dropped > 0


def search_digits(digits: Digits, **options: Any) -> dp.Result:
    data = {"calibration": digits.calibration, "validation": digits.validation, "progress": False}
    fixed = {**OPTIONS, **data, "generations": 1, "refine_images": 40}
    return dp.search(digits.model, digits.calibration[0], **{**fixed, **options})


def test_the_best_of_those_that_were_refined_wins(digits: Digits) -> None:
    """No single criterion of the finalists is better, refined, than what a search with one objective ends with."""
    options: dict[str, Any] = {"objectives": ("loss",), "max_flops": 0.2}
    alone, result = search_digits(digits, finalists=0, **options), search_digits(digits, finalists=4, **options)
    seeds = StartingPoints(BlendProblem(result.genome, result.evaluator))
    singles = [*seeds.singles(4), *seeds.ranked(4)]
    rivals = result.genome.decode_many([*singles, tuple(alone.best.individual)])
    losses = [result.evaluator.measure(result.slim(masks), masks)[0] for masks in rivals]
    assert result.best.values["loss"] <= min(losses)
    # Refined alone, it is this very network, unless it was better as it was searched: that depends on the machine.
    assert (alone.best.values["loss"] == losses[-1]) == alone.front.settings["refine"]
    assert alone.best.values["loss"] <= losses[-1]
    assert len(result.front) == 1 and result.front.settings["refine"]


def test_no_single_criterion_with_widths_of_its_own_is_above_the_front(digits: Digits) -> None:
    """Single criteria are refined beside a front, over the range of costs; those that nothing dominates are in it."""
    short = {"generations": 0, "population": 2}  # evolution alone has found next to nothing
    alone, result = search_digits(digits, finalists=0, **short), search_digits(digits, finalists=2, **short)
    seeds, count = StartingPoints(BlendProblem(result.genome, result.compared_by)), len(result.scores.criteria)
    balanced, ranked = seeds.balanced(count), seeds.ranked(count)
    masks = [*result.genome.decode_many([*balanced, *ranked]), *(s.masks for s in alone.front)]
    found = [tuple(s.values.values()) for s in result.front]
    for accuracy, flops in [result.evaluator.measure(result.slim(m), m) for m in masks]:
        assert any(one >= accuracy and other <= flops for one, other in found)
    assert result.front.hypervolume() > alone.front.hypervolume()
    assert {s.individual for s in result.front} & {tuple(ind) for ind in [*balanced, *ranked]}


def test_a_front_that_refinement_would_make_worse_is_given_as_it_was_searched() -> None:
    """An untrained network is a bad teacher: by the labels' loss its pruned networks are better than it."""
    options: dict[str, Any] = {"objectives": ("loss",), "max_flops": 0.5}
    result, searched = search(**options), search(refine=False, **options)
    assert result.best.values == searched.best.values and not result.front.settings["refine"]
    refined = result.compared_by.with_settings(refine=True)
    ranked = StartingPoints(BlendProblem(result.genome, refined)).ranked(4)
    for masks in (result.best.masks, *result.genome.decode_many(ranked)):
        assert refined.measure(refined.slim(masks), masks)[0] > result.best.values["loss"]


def test_fronts_of_uniform_widths_have_single_criteria_beside_them_too() -> None:
    result = search(finalists=1, allocation="uniform", generations=0, population=2, max_flops=(0.2, 0.9))
    assert len(result.front) > 2


def test_guard_is_logged_and_changes_nothing() -> None:
    x, y = DATA["validation"]
    guarded = search(guard=60, refine=False)
    plain = search(validation=(x[:-60], y[:-60]), refine=False)
    assert [dict(s.values) for s in guarded.front] == [dict(s.values) for s in plain.front]
    figures = [record["guard"] for record in guarded.logbook]
    assert all(0 < f < 1 for f in figures)
    values = [guarded.evaluator.measure(guarded.slim(s), s.masks, (x[-60:], y[-60:])) for s in guarded.front]
    front = dp.ParetoFront.of(
        [dp.Solution(dict(zip(("accuracy", "flops"), v, strict=True)), dp.Masks({}), 0, 0) for v in values],
        guarded.front.weights,
        guarded.front.dense,
    )
    assert figures[-1] == pytest.approx(front.hypervolume(), rel=1e-6)


def test_patience_stops_a_run_and_its_resumption(tmp_path: Path) -> None:
    """Three guard images soon get no better."""
    options = {"guard": 3, "patience": 1, "generations": 30, "population": 4}
    result = search(tmp_path / "run", **options)
    assert 2 <= len(result.logbook) < 31
    assert result.logbook[-1]["guard"] <= max(record["guard"] for record in list(result.logbook)[:-1])
    again = dp.resume(tmp_path / "run", *problem(), **DATA)
    assert list(again.logbook) == list(result.logbook)


def test_hold_out() -> None:
    x, y = torch.arange(10), torch.arange(10)
    (rest, _), guard = hold_out((x, y), 4)
    assert guard is not None and rest.tolist() == list(range(6)) and next(iter(guard)).tolist() == [6, 7, 8, 9]
    batches = [(x[k : k + 3], y[k : k + 3]) for k in (0, 3, 6)]
    assert hold_out(iter(batches), 4) == (batches[:1], batches[1:])
    assert hold_out((x, y), 0) == ((x, y), None)
    for data in ((x, y), batches):
        with pytest.raises(DataError, match="guard=10 leaves no validation images"):
            hold_out(data, 10)


def test_messages() -> None:
    with pytest.raises(ConfigError, match="patience follows the guard images"):
        search(patience=3)
    with pytest.raises(ConfigError, match="sampling: redraw changes nothing"):
        search(redraw=True)
    with pytest.raises(ConfigError, match="executor is 'gpu'"):
        search(executor="gpu")


def test_a_setting_that_an_older_version_did_not_know_is_off(tmp_path: Path) -> None:
    """A run goes on after an update that adds an option, unless the option is set."""
    search(tmp_path / "run", generations=0)
    stored = Checkpoints(tmp_path / "run", {}).newest()
    assert stored is not None
    identity, settings = stored["fingerprint"], json.loads(stored["fingerprint"]["settings"])
    for value in (None, 2):
        newer = {**identity, "settings": json.dumps({**settings, "brand_new": value}, sort_keys=True)}
        found = Checkpoints(tmp_path / "run", newer)
        if value is None:
            assert found.newest() == stored
        else:
            with pytest.raises(RunError, match="other settings: brand_new None, now 2;"):
                found.newest()


def made(children: int, **options: Any) -> tuple[dp.Result, list[Any], list[Any]]:
    """A search's first population, children of it, and those of them that keep one criterion in every group."""
    found = search(generations=0, population=8, **options)
    evaluate, genome = found.compared_by, found.genome
    problem, toolbox = BlendProblem(genome, evaluate), dp.make_toolbox(genome, evaluate, seed=0)
    population = toolbox.population(n=8)
    for individual in population:
        individual.fitness.values = toolbox.evaluate(individual)
    vary = PreScreen(evaluate, problem, 2)
    children_made = vary(population, toolbox, children, 0.5, 0.5)
    error = evaluate.learned()
    drawn = min(-(-children // 8), children - 1) * len(genome.criteria)
    own = StartingPoints(problem).balanced(drawn, error=error) if error is not None else []
    return found, children_made, [ind for ind in children_made if ind in own]


@pytest.mark.parametrize(("children", "proposed"), [(1, 0), (2, 1), (8, 1), (9, 2), (16, 2)])
def test_the_learned_surrogates_own_are_among_the_children(children: int, proposed: int) -> None:
    """One in eight, the best of all criteria by what was learned, and none that was judged before."""
    found, brood, own = made(children, objectives=("loss",), max_flops=0.6, refine_from=0)
    evaluate, genome, learned = found.compared_by, found.genome, found.compared_by.learned()
    assert len(brood) == children and len(own) == proposed and learned is not None
    assert not any(genome.decode(ind) in evaluate.cache for ind in own)
    every = [genome.decode(ind) for ind in StartingPoints(BlendProblem(genome, evaluate)).balanced(4, error=learned)]
    fresh = sorted(learned(masks) for masks in set(every) if masks not in evaluate.cache)
    assert [learned(genome.decode(ind)) for ind in own] == fresh[:proposed]


def test_where_the_budget_is_free_they_cover_a_range_of_costs() -> None:
    found, _, own = made(24, refine_from=0)
    shares = [dp.flops(found.space, found.genome.decode(ind)) / found.space.flops for ind in own]
    assert len(own) == 3 and shares == sorted(shares, reverse=True) and shares[0] > 0.5 > 0.25 > shares[-1]


def test_compensated_candidates_teach_nothing() -> None:
    found, brood, own = made(8, objectives=("loss",), max_flops=0.6)
    assert found.compared_by.learned() is None and len(brood) == 8 and not own


def parents(n: int, **options: Any) -> tuple[PreScreen, list[Any], Any, dp.Result]:
    """A pre-screen of sixteen children for one, and parents that were judged."""
    found = search(generations=0, population=8)
    evaluate, genome = found.compared_by, found.genome
    toolbox = dp.make_toolbox(genome, evaluate, seed=0, **options)
    population = toolbox.population(n=n)
    for individual in population:
        individual.fitness.values = toolbox.evaluate(individual)
    return PreScreen(evaluate, BlendProblem(genome, evaluate), 16), population, toolbox, found


def test_what_was_judged_is_not_picked_again() -> None:
    """Most children of small steps stand for their parent's network; they are left out as long as there are others."""
    vary, population, toolbox, found = parents(4, indpb=0.02, sigma=0.05)
    masks = [found.genome.decode(child) for child in vary(population, toolbox, 8, 0.0, 1.0)]
    assert len(set(masks)) == len(masks) == 8 and not any(m in found.compared_by.cache for m in masks)


def test_copies_are_picked_where_there_is_nothing_else() -> None:
    vary, population, toolbox, _ = parents(4)
    copies = vary(population, toolbox, 6, 0.0, 0.0)  # parents as they are
    assert len(copies) == 6 and {tuple(c) for c in copies} <= {tuple(ind) for ind in population}
