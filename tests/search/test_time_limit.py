"""``max_seconds``: when generations end, what is kept for refinement, and what is given up."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Digits

import deap_prune as dp
from deap_prune.algorithms import Generation
from deap_prune.deadline import TimeIsUpError, check_deadline, until
from deap_prune.fitness.trial import RefinementCost, dense_seconds, refinement_cost
from deap_prune.search import final_front as end
from deap_prune.search import run, time_limit
from deap_prune.search.time_limit import TimeLimit
from tests.helpers.runs import labelled_search, search


class Clock:
    """A time that tests set."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "deap_prune.progress"):
        yield caplog


def last_generation(limit: TimeLimit, clock: Clock, seconds: float) -> int:
    """The last generation, if each one takes so long."""
    for number in range(100):
        clock.now += seconds
        if limit(Generation(number, [])):
            return number
    raise AssertionError("no end")


@pytest.mark.parametrize(
    ("cost", "networks", "last"),
    [
        (None, 1, 9),  # all 100 s are for generations of 10 s
        (RefinementCost(2.0, 5.0), 50, 5),  # 30 s, and a fifth more: 64 s
        (RefinementCost(2.0, 5.0), 1, 8),  # one network needs 7 s, and a fifth more: 91.6 s
        (RefinementCost(10.0, 40.0), 5, 3),  # 50 s, and a fifth more, since less is of no use: 40 s
        (RefinementCost(10.0, 95.0), 5, 9),  # it does not fit
        (RefinementCost(0.0, math.inf), 5, 9),  # its trial took too long
    ],
)
def test_generations_end_in_time_for_refinement(
    cost: RefinementCost | None, networks: int, last: int, clock: Clock
) -> None:
    limit = TimeLimit(100.0, 0.0, cost=cost, networks=networks)
    assert last_generation(limit, clock, 10.0) == last
    assert limit.room("refine") == (cost is None or last < 9 or clock.now + 50 < limit.latest)


def test_why_generations_end_is_said(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    for cost in (None, RefinementCost(2.0, 28.0), RefinementCost(10.0, 95.0)):
        clock.now = 0.0
        last_generation(TimeLimit(100.0, 0.0, cost=cost, networks=9, shown="log"), clock, 9.0)
    assert log.messages == [
        "stopping after generation 10: max_seconds=100 leaves no time for another one",
        "stopping after generation 6: max_seconds=100 leaves 37 s, which refinement needs",
        "no refinement: a network would take about 2 min, more than max_seconds=100 leaves",
        "stopping after generation 10: max_seconds=100 leaves no time for another one",
    ]


def test_what_networks_took_decides_on_the_next(clock: Clock) -> None:
    limit = TimeLimit(100.0, 0.0, cost=RefinementCost(2.0, 20.0))
    clock.now = 80.0
    assert limit.room("refine")  # the first one may use the grace
    limit.took("refine", 21.0)
    assert not limit.room("refine")
    clock.now = 79.0
    assert limit.room("refine") and limit.room("recover")
    clock.now = 100.5
    assert not limit.room("recover")


def test_the_first_population_is_cut(log: pytest.LogCaptureFixture) -> None:
    result = labelled_search(max_seconds=1e-6, generations=50, population=12, refine=False, progress="log")
    assert [record["nevals"] for record in result.logbook] == [2]
    assert "the first population has 2 of 12 networks: max_seconds=1e-06 leaves no more" in log.messages
    assert len(result.front)


def test_work_under_way_ends_at_its_deadline(digits: Digits) -> None:
    masks, evaluate = dp.Masks.random(digits.space, keep=0.6), digits.evaluator(refine=True)
    values = evaluate(masks)
    with until(time.monotonic() - 1.0):
        for work in (check_deadline, lambda: evaluate.compute(masks), lambda: evaluate.output_distance(masks)):
            with pytest.raises(TimeIsUpError):
                work()
        with until(None):
            check_deadline()
    assert evaluate.compute(masks) == values  # nothing of it stays


def test_a_refinement_that_takes_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """The estimate says nothing, so that one begins; the front is the search's."""

    def no_time(*args: Any, **how: Any) -> TimeLimit:
        return TimeLimit(1e-9, time.monotonic() + 5.0, shown="log")

    monkeypatch.setattr(run, "time_limit", no_time)
    monkeypatch.setattr(TimeLimit, "room", lambda self, what: True)
    monkeypatch.setattr(TimeLimit, "__call__", lambda self, state: True)
    monkeypatch.setattr(end, "until", lambda deadline: until(0.0))
    result = labelled_search(progress="log")
    assert not result.front.settings["refine"]
    assert "refining the first networks: ended by max_seconds after 0 of 3 networks" in log.messages
    assert any(line.startswith("not refined:") for line in log.messages)


def test_what_refinement_takes(digits: Digits) -> None:
    """More for more images, and nothing of the trials stays in the evaluator."""
    evaluate = digits.evaluator()
    dense = dense_seconds(evaluate)
    assert dense > 0
    before = dict(evaluate.cache), evaluate.counters.candidates
    few, many = (
        refinement_cost(evaluate, images=images, select=True, dense=1.0 * (images > 10), seconds=1.0)
        for images in (8, 10**6)
    )
    assert few.each > 0 and few.first > 0
    assert many.each > few.each + len(digits.validation[0]) * 0.9
    assert (dict(evaluate.cache), evaluate.counters.candidates) == before


@pytest.mark.parametrize("seconds", [None, 20.0])
def test_a_trial_that_takes_too_long_is_given_up(
    seconds: float | None, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(time_limit, "GIVE_UP", 1e-9)
    monkeypatch.setattr(time_limit, "REFINING", 1e-12)
    result = search(None, progress="log", refine_images=20, max_seconds=seconds)
    assert any(line.startswith("timing a refinement: given up after") for line in log.messages)
    refused = "no refinement: a network would take more than max_seconds=20 leaves"
    assert (refused in log.messages) == (seconds is not None) and len(result.front)
    assert not any("refinements at" in line for line in log.messages)


def test_trials_change_no_result() -> None:
    first, again = (search(None, progress=shown, refine_images=20) for shown in ("log", False))
    assert [s.values for s in first.front] == [s.values for s in again.front]
