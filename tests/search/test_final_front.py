"""The end of a search under a deadline, and the refined networks that a run folder keeps."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from conftest import Digits

import deap_prune as dp
from deap_prune.algorithms import BlendProblem, Generation
from deap_prune.options import EndOptions
from deap_prune.search.final_front import Ending, final_front
from deap_prune.search.refined import Refined, RefinedNetworks, spread
from deap_prune.search.time_limit import TimeLimit

END = EndOptions(finalists=0, refine_images=40, select=None)


def ending(digits: Digits, count: int, folder: Path | None = None, seconds: float | None = None) -> Ending:
    """A search on the digits network that ends with ``count`` single criteria."""
    evaluate, genome = digits.evaluator(), digits.genome()
    problem, toolbox = BlendProblem(genome, evaluate), dp.make_toolbox(genome, evaluate, seed=0)
    individuals = toolbox.population(n=count)
    for individual in individuals:
        individual.fitness.values = toolbox.evaluate(individual)
    state = Generation(0, individuals, individuals)
    limit = None if seconds is None else TimeLimit(seconds, time.monotonic())
    return Ending(problem, evaluate, state, END, folder, limit)


def test_networks_are_refined_as_far_as_the_time_allows(digits: Digits) -> None:
    late, whole = final_front(ending(digits, 4, seconds=-1.0)), final_front(ending(digits, 4, seconds=600.0))
    assert not late.front.settings["refine"] and whole.front.settings["refine"]
    assert [s.values for s in whole.front] == [s.values for s in final_front(ending(digits, 4)).front]


def test_a_second_end_refines_no_network_again(digits: Digits, tmp_path: Path) -> None:
    first, again = (final_front(ending(digits, 3, tmp_path)) for _ in range(2))
    assert [dict(s.values) for s in again.front] == [dict(s.values) for s in first.front]
    assert [s.masks for s in again.front] == [s.masks for s in first.front]
    assert first.evaluator.counters.seconds["refine"] > 0 == again.evaluator.counters.seconds["refine"]


def refined(digits: Digits, seed: int) -> Refined:
    return Refined((float(seed), 1), dp.Masks.random(digits.space, seed=seed), (0.5, seed / 7))


def test_refined_networks_are_read_back(digits: Digits, tmp_path: Path) -> None:
    evaluate, path = digits.evaluator(refine=True), tmp_path / "refined.jsonl"
    networks = RefinedNetworks(path, evaluate)
    for seed in (3, 1):
        networks.add(dp.Masks.random(digits.space, keep=0.3, seed=seed), refined(digits, seed))
    again = RefinedNetworks(path, evaluate)
    assert len(again) == 2
    for network, seed in zip(again, (3, 1), strict=True):
        assert vars(network) == vars(refined(digits, seed))
    assert again.get(dp.Masks.random(digits.space, keep=0.3, seed=1)) is list(again)[1]
    assert again.get(dp.Masks.random(digits.space, seed=1)) is None


def test_a_line_that_a_kill_cut_costs_one_network(digits: Digits, tmp_path: Path) -> None:
    evaluate, path = digits.evaluator(refine=True), tmp_path / "refined.jsonl"
    networks = RefinedNetworks(path, evaluate)
    for seed in range(2):
        networks.add(refined(digits, seed).masks, refined(digits, seed))
    path.write_text(path.read_text()[:-20])
    again = RefinedNetworks(path, evaluate)
    assert len(again) == 1
    again.add(refined(digits, 5).masks, refined(digits, 5))
    assert [network.individual for network in RefinedNetworks(path, evaluate)] == [(0.0, 1), (5.0, 1)]


def test_networks_of_other_settings_are_not_read(digits: Digits, tmp_path: Path) -> None:
    path = tmp_path / "refined.jsonl"
    RefinedNetworks(path, digits.evaluator(refine=True)).add(refined(digits, 0).masks, refined(digits, 0))
    assert len(RefinedNetworks(path, digits.evaluator(refine=True, refine_images=30))) == 0
    (head,) = path.read_text().splitlines()
    assert json.loads(head)["settings"]["refine_images"] == 30


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 13])
def test_every_beginning_of_a_spread_is_spread(count: int) -> None:
    order = spread(range(count))
    assert sorted(order) == list(range(count))
    if count > 2:
        assert order[:3] == [0, count - 1, (count - 1) // 2]
