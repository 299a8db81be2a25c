"""Progress of a search: steps with sizes, an estimate after the first candidate, a bar of 80 columns, log lines."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import rich.console

from deap_prune.errors import ConfigError
from deap_prune.evolution.generation import Generation
from deap_prune.fitness import Counters
from deap_prune.fitness.trial import RefinementCost
from deap_prune.options import SearchOptions
from deap_prune.progress import console_of, track, training_bar
from deap_prune.search import progress as module
from deap_prune.search.progress import SearchProgress
from tests.helpers.fakes import individuals_of
from tests.helpers.runs import search


class Evaluator:
    """Counters that a test moves."""

    names, compensates = ("accuracy", "flops"), True

    def __init__(self) -> None:
        self.counters = Counters(candidates=3)

    def evaluate(self, seconds: float, count: int = 1) -> None:
        self.counters.seconds["forward"] += seconds * count
        self.counters.candidates += count


def state_of(number: int) -> Generation:
    state = Generation(number, [], individuals_of([(0.9, 0.8), (0.7, 0.4)]))
    state.logbook.record(gen=number, nevals=8, hypervolume=0.5, accuracy=0.9, flops=0.4)
    return state


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """The log; the thread looks often."""
    monkeypatch.setattr(module, "LOOK", 0.005)
    with caplog.at_level(logging.INFO, "deap_prune.progress"):
        yield caplog


def wait_for(log: pytest.LogCaptureFixture, pattern: str) -> str:
    """The first line with a pattern; fails if there is none after some seconds."""
    for _ in range(1000):
        if hits := [line for line in log.messages if re.search(pattern, line)]:
            return hits[0]
        time.sleep(0.01)
    raise AssertionError(log.messages[-20:])


ESTIMATES: list[tuple[dict[str, Any], str]] = [
    # 72 candidates at 3 s, 4 + 3 x 9 refinements
    ({}, "about 8 min: 72 candidates at 3 s, up to 31 refinements at 8 s; max_seconds= would bound it"),
    ({"refine": False}, "about 4 min: 72 candidates at 3 s; max_seconds= would bound it"),
    (
        {"max_seconds": 90.0},
        "about 90 s: 72 candidates at 3 s, up to 31 refinements at 8 s; max_seconds=90 bounds it",
    ),
    (
        {"objectives": ("loss",), "max_flops": 0.5},
        "about 6 min: 72 candidates at 3 s, up to 16 refinements at 8 s;",
    ),
]


@pytest.mark.parametrize(("changes", "line"), ESTIMATES)
def test_an_estimate_after_the_first_candidate(
    changes: dict[str, Any], line: str, log: pytest.LogCaptureFixture
) -> None:
    evaluator: Any = Evaluator()
    options = SearchOptions(population=8, generations=8, **changes)
    cost = RefinementCost(1.0, 8.0) if options.refine else None
    with SearchProgress(options, evaluator, cost, shown=True) as progress:
        progress.begin(None)
        assert not any(text.startswith("about") for text in log.messages)
        evaluator.evaluate(3.0)
        assert wait_for(log, "^about").startswith(line)
        evaluator.evaluate(30.0)
        progress(state_of(0))
    assert sum(text.startswith("about") for text in log.messages) == 1  # once


def test_an_estimate_of_what_is_left(log: pytest.LogCaptureFixture) -> None:
    """A run that goes on counts what is left."""
    evaluator: Any = Evaluator()
    options = SearchOptions(population=8, generations=8, compare="drafts")
    with SearchProgress(options, evaluator, RefinementCost(1.0, 8.0), shown=True) as progress:
        progress.begin(state_of(3))
        evaluator.counters.seconds["refine"] += 2.0
        evaluator.evaluate(1.0)
        assert wait_for(log, "^about").startswith("about 6 min: 40 candidates at 3 s, up to 31 refinements at 8 s")


def test_lines_while_a_generation_lasts(log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line when ten seconds have passed without one, with what is done and left."""
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.05)
    evaluator: Any = Evaluator()
    with SearchProgress(SearchOptions(population=8, generations=2), evaluator, shown=True) as progress:
        progress.begin(None)
        evaluator.evaluate(0.1, 6)
        wait_for(log, r"^candidate 6 of 24; \d+ s, about \d+ s left")
        progress(state_of(0))
        evaluator.evaluate(0.1, 20)  # more than a generation: shown as one
        wait_for(log, r"^candidate 16 of 24")
    expected = "generation 0 of 2: best accuracy 0.900, flops 0.800; hypervolume 0.5000; 9 evaluated, 0 cached; "
    assert any(line.startswith(expected) for line in log.messages)


def test_the_bar_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, original = io.StringIO(), rich.console.Console

    def console(**options: Any) -> rich.console.Console:
        return original(file=screen, force_terminal=True, width=80, color_system=None)

    monkeypatch.setattr(rich.console, "Console", console)
    monkeypatch.setattr(module, "LOOK", 0.005)
    evaluator: Any = Evaluator()
    with SearchProgress(SearchOptions(population=100, generations=99), evaluator, shown=True) as progress:
        progress.begin(None)
        evaluator.evaluate(0.1, 60)
        for number in range(4):
            progress(state_of(number))
        time.sleep(0.3)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n")
    bars = [line for line in shown.splitlines() if "gen 3/99" in line]
    assert bars and all(len(line) <= 80 for line in bars)
    assert re.search(r"gen 3/99 accuracy 0.900 flops 0.800 hv 0.5000 .* 400/10000 .* left", bars[-1])


def test_a_search_says_what_it_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "deap_prune.progress"):
        search(None, progress=True, generations=1, population=4, finalists=1)
    steps = ("tracing Head: 3,767 parameters", "scoring 36 filters in 4 groups by 4 criteria, on 30 images")
    lines = caplog.messages
    assert tuple(lines[:2]) == steps and any(
        line.startswith("evaluating the dense network, then moments") for line in lines
    )
    assert sum(line.startswith("generation ") for line in lines) == 2
    finalists = [line for line in lines if re.match(r"refining the .*: \d+ of \d+", line)]
    assert len(finalists) >= 3  # each has a line
    caplog.clear()
    search(None, progress=False, generations=0, population=2, refine=False)
    assert caplog.messages == []


def test_each_item_may_have_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "deap_prune.progress"):
        assert list(track("abc", "letters", shown=True, each=True)) == ["a", "b", "c"]
    assert [line.split(",")[0] for line in caplog.messages] == [
        "letters: 3 to do",
        *(f"letters: {number} of 3" for number in (1, 2, 3)),
    ]


def test_the_form_of_progress_can_be_chosen() -> None:
    console = console_of("bar")
    assert console is not None and console.is_terminal
    assert console_of("log") is console_of(False) is None
    with pytest.raises(ConfigError, match="progress is 'bars'; give True, False, 'bar' or 'log'"):
        search(None, progress="bars")


def test_lines_of_a_training(caplog: pytest.LogCaptureFixture) -> None:
    """Each epoch has a line, and the last step."""
    with caplog.at_level(logging.INFO, "deap_prune.progress"):
        with training_bar("epoch", 3, shown="log", completed=1) as report:
            for done in (1.5, 2.0):
                report(completed=done)
            report(completed=2, note="loss 0.5")
        with training_bar("step", 2, shown="log") as report:
            for done in (1, 2):
                report(completed=done, note="best 0.4")
        with training_bar("step", 1, shown=False) as report:
            report(completed=1)
    assert [re.sub(r"\d+ s", "t", line) for line in caplog.messages] == [
        "epoch: 2 of 3, t, about t left; loss 0.5",
        "step: 2 of 2, t; best 0.4",
    ]
