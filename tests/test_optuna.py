"""A genome as an objective of Optuna: every gene is a parameter inside its bounds."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Digits

import deap_prune as dp
from deap_prune.errors import ConfigError


class Trial:
    """A trial that takes the lower bound of every parameter."""

    def __init__(self) -> None:
        self.parameters: dict[str, tuple[float, float]] = {}
        self.attributes: dict[str, Any] = {}

    def suggest_float(self, name: str, low: float, high: float) -> float:
        self.parameters[name] = (low, high)
        return low

    def suggest_int(self, name: str, low: int, high: int) -> int:
        assert isinstance(low, int) and isinstance(high, int)
        return int(self.suggest_float(name, low, high))

    def set_user_attr(self, name: str, value: Any) -> None:
        self.attributes[name] = value


@pytest.mark.parametrize("objectives", [("accuracy", "flops"), ("loss",)])
def test_a_trial_is_an_individual(digits: Digits, objectives: tuple[str, ...]) -> None:
    genome = digits.genome(max_flops=(0.3, 0.6))
    evaluate, trial = digits.evaluator(objectives=objectives), Trial()
    value = dp.optuna_objective(genome, evaluate)(trial)
    layout = genome.layout
    assert list(trial.parameters.values()) == list(zip(layout.low, layout.high, strict=True))
    assert [name.split()[1] for name in trial.parameters] == list(layout.kinds)
    expected = evaluate(genome.decode(trial.attributes["individual"]))
    assert value == (expected if len(expected) > 1 else expected[0])


def test_another_space_is_refused(digits: Digits) -> None:
    space = dp.trace(digits.model, digits.example)
    evaluate = dp.Evaluator(digits.model, space, calibration=digits.calibration, validation=digits.validation)
    with pytest.raises(ConfigError, match=r"from the result of one dp\.trace"):
        dp.optuna_objective(digits.genome(), evaluate)
