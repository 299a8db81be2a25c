"""The front: its solutions, choices among them, and its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import deap_prune as dp
from deap_prune import files
from deap_prune.errors import BudgetError, PruneError, RunError
from deap_prune.evolution.front import best_per_bin
from tests.helpers.fakes import fake_toolbox
from tests.helpers.runs import search


def solution(accuracy: float, flops: float, params: float = 0.5) -> dp.Solution:
    masks = dp.Masks({"g": np.arange(10) < round(10 * flops)})
    return dp.Solution(
        {"accuracy": accuracy, "flops": flops}, masks, round(1000 * flops), round(100 * params), (1, 0.25)
    )


def front_of(*solutions: dp.Solution) -> dp.ParetoFront:
    dense = {"flops": 1000, "params": 100, "values": {"accuracy": 0.95, "flops": 1.0}}
    return dp.ParetoFront.of(solutions, {"accuracy": 1.0, "flops": -1.0}, dense, {"recalibrate": "data"})


def test_front_is_non_dominated_and_sorted() -> None:
    front = front_of(
        solution(0.9, 0.8),
        solution(0.9, 0.8),
        solution(0.6, 0.3),
        solution(0.5, 0.4),
        solution(0.9, 0.9),
        solution(0.7, 0.3),
    )
    assert [tuple(s.values.values()) for s in front] == [(0.7, 0.3), (0.9, 0.8)]
    assert front[0] is front.solutions[0] and len(front) == 2 and "2 solutions" in str(front)


def test_best_under_a_cost() -> None:
    front = front_of(solution(0.6, 0.2, 0.1), solution(0.8, 0.5, 0.6), solution(0.9, 0.9, 0.3))
    assert front.best().values["accuracy"] == 0.9
    assert front.best(max_flops=0.5).values["accuracy"] == 0.8
    assert front.best(max_flops=0.49).values["accuracy"] == 0.6
    assert front.best(max_params=0.4, max_flops=0.5).values["accuracy"] == 0.6
    assert front.best(by="flops").values["flops"] == 0.2
    with pytest.raises(
        BudgetError, match=r"no solution is within max_flops 0.1; the cheapest keeps 0.2000 of the flops \(200\)$"
    ):
        front.best(max_flops=0.1)
    with pytest.raises(BudgetError, match="the front has no objective 'acc'; it has accuracy, flops"):
        front.best(by="acc")


def test_hypervolume_by_hand() -> None:
    one, two, three = solution(0.9, 0.5), solution(0.6, 0.2), solution(0.3, 0.1)
    assert front_of(one).hypervolume() == pytest.approx(0.45)
    assert front_of(one, two).hypervolume() == pytest.approx(0.45 + 0.6 * 0.3)
    assert front_of(one, two, three).hypervolume() == pytest.approx(0.45 + 0.6 * 0.3 + 0.3 * 0.1)
    assert front_of(one, two).hypervolume((0.5, 0.6)) == pytest.approx(0.4 * 0.1 + 0.1 * 0.3)
    assert front_of(one).hypervolume((0.95, 1.0)) == 0


def test_the_reference_of_a_minimised_objective_is_twice_the_dense_value() -> None:
    """With a reference of 1, no latency in milliseconds would count."""
    dense = {"flops": 100, "params": 10, "values": {"accuracy": 0.9, "latency": 8.0}}
    solutions = [dp.Solution({"accuracy": 0.8, "latency": 2.0}, dp.Masks({}), 50, 5)]
    front = dp.ParetoFront.of(solutions, {"accuracy": 1.0, "latency": -1.0}, dense)
    assert front.reference == (0.0, 16.0) and front.hypervolume() == pytest.approx(0.8 * 14)


@pytest.mark.parametrize("limit", [50, 0, -1, float("nan")])
def test_a_budget_is_a_share(limit: float) -> None:
    front = front_of(solution(0.9, 0.9))
    for cost in ("flops", "params"):
        with pytest.raises(BudgetError, match=rf"max_{cost} is .*the kept share of the .*, above 0 and at most 1"):
            front.best(**{f"max_{cost}": limit})


def test_knee_by_hand() -> None:
    front = front_of(solution(0.1, 0.1), solution(0.85, 0.3), solution(0.9, 0.6), solution(1.0, 1.0))
    assert front.knee().values["accuracy"] == 0.85
    assert front_of(solution(0.5, 0.5)).knee().values["flops"] == 0.5


def test_cheapest_solution_that_is_good_enough() -> None:
    front = front_of(solution(0.6, 0.2, 0.9), solution(0.8, 0.5, 0.3), solution(0.9, 0.9, 0.6))
    assert front.cheapest(at_least=0.7).values["flops"] == 0.5
    assert front.cheapest(at_least=0.0, cost="params").values["flops"] == 0.5
    assert front.cheapest(at_least=0.4, by="flops").values["accuracy"] == 0.6
    with pytest.raises(BudgetError, match=r"no solution reaches accuracy 0.95; the best has 0.9"):
        front.cheapest(at_least=0.95)
    with pytest.raises(BudgetError, match="the front does not hold the cost 'latency' of its networks; it is"):
        front.cheapest(at_least=0.5, cost="latency")


def test_pseudo_weights_by_hand() -> None:
    front = front_of(solution(0.1, 0.1), solution(0.6, 0.3), solution(0.9, 0.9))
    weights = front.pseudo_weights()
    assert weights[0] == pytest.approx([0, 1]) and weights[2] == pytest.approx([1, 0])
    up, down = 0.5 / 0.8, 0.6 / 0.8
    assert weights[1] == pytest.approx([up / (up + down), down / (up + down)])
    assert front.closest({"accuracy": 1}).values["accuracy"] == 0.9
    assert front.closest({"accuracy": 2, "flops": 2}).values["accuracy"] == 0.6
    for bad in ({"acc": 1.0}, {"accuracy": 0.0}, {"accuracy": -1.0}):
        with pytest.raises(BudgetError, match="give weights from 0 up, one of them above, to accuracy, flops"):
            front.closest(bad)


def test_best_network_per_bin_of_costs() -> None:
    """One for each part that holds an evaluated network; none in that part is better."""
    result = search(None, generations=2)
    solutions, space = best_per_bin(result.compared_by, bins=5), result.space

    def part(masks: dp.Masks) -> int:
        return min(4, dp.flops(space, masks) * 5 // space.flops)

    cache = result.compared_by.cache
    assert [part(s.masks) for s in solutions] == sorted({part(m) for m in cache}) and len(solutions) > 1
    for s in solutions:
        assert s.values["accuracy"] == max(v[0] for m, v in cache.items() if part(m) == part(s.masks))
        assert s.flops == dp.flops(space, s.masks) and s.params == dp.params(space, s.masks)
    with pytest.raises(BudgetError, match="bins is 0; give 1 or more"):
        best_per_bin(result.compared_by, bins=0)


def test_an_empty_front() -> None:
    """Individuals without fitness make an empty front; its choices raise an error that says so."""
    toolbox = fake_toolbox()
    front = toolbox.front(toolbox.population(n=3))
    assert len(front) == 0 and list(front) == [] and front.hypervolume() == 0
    for choice in (front.best, front.knee):
        with pytest.raises(PruneError, match="empty"):
            choice()


def test_individuals_without_fitness_are_left_out() -> None:
    toolbox = fake_toolbox()
    population = toolbox.population(n=4)
    population[0].fitness.values = toolbox.evaluate(population[0])
    assert [s.individual for s in toolbox.front(population)] == [tuple(population[0])]


def test_a_saved_front_loads_as_it_was(tmp_path: Path) -> None:
    front = front_of(solution(0.6, 0.2), solution(0.9, 1 / 3))
    front.save(tmp_path / "a")
    again = dp.ParetoFront.load(tmp_path / "a")
    again.save(tmp_path / "b")
    names = sorted(str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert [name[:10] for name in names] == ["front.csv", "front.json", "masks/0000", "masks/0001"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for one, other in zip(front, again, strict=True):
        assert (one.values, one.masks, one.flops, one.params) == (other.values, other.masks, other.flops, other.params)
        assert tuple(one.individual) == tuple(other.individual)
    assert (again.weights, again.dense, again.settings) == (front.weights, front.dense, front.settings)
    content = json.loads((tmp_path / "a/front.json").read_text())
    assert content["solutions"][1]["values"] == {"accuracy": 0.9, "flops": 1 / 3}
    assert content["dense"]["flops"] == 1000 and content["settings"] == {"recalibrate": "data"}
    with (tmp_path / "a/front.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["accuracy"]) for r in rows] == [0.6, 0.9] and rows[0]["masks"] == names[2]


def test_fronts_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no front.json; give the folder of a run"):
        dp.ParetoFront.load(tmp_path)
    front_of(solution(0.6, 0.2)).save(tmp_path)
    text = (tmp_path / "front.json").read_text()
    for broken in (text[:-20], "[]", text.replace('"masks"', '"mask"'), text.replace("masks/0000", "masks/0009")):
        (tmp_path / "front.json").write_text(broken)
        with pytest.raises(RunError, match="can't be read as a front"):
            dp.ParetoFront.load(tmp_path)
    (tmp_path / "front.json").write_text(text)
    next((tmp_path / "masks").iterdir()).write_text("{}")
    with pytest.raises(RunError, match="can't be read as a front"):
        dp.ParetoFront.load(tmp_path)


def test_a_crash_while_saving_leaves_the_old_front_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of the new front never belong to values of the old one; a finished save leaves no old masks."""
    old, new = front_of(solution(0.6, 0.2), solution(0.9, 0.3)), front_of(solution(0.7, 0.1))
    old.save(tmp_path)
    write = files.write_text

    def crash(path: Path, text: str) -> None:
        if path.name == "front.json":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr("deap_prune.evolution.front_files.write_text", crash)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path)
    again = dp.ParetoFront.load(tmp_path)
    assert [(s.values, s.masks) for s in again] == [(s.values, s.masks) for s in old]
    monkeypatch.undo()
    new.save(tmp_path)
    assert [s.masks for s in dp.ParetoFront.load(tmp_path)] == [s.masks for s in new]
    assert len(list((tmp_path / "masks").iterdir())) == 1
