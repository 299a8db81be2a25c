"""The surrogate remembers layers, not networks; what it remembers never shows in a value."""

from typing import Any

import numpy as np
import pytest
from conftest import Digits

import deap_prune as dp
from deap_prune.reconstruction import LayerGram, ReconstructionError, collect_grams, reconstruction_error, surrogate
from deap_prune.reconstruction.compensate import Refit, refit


def test_what_is_remembered_changes_nothing(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "REMEMBERED", 3)
    space, grams = digits.space, collect_grams(digits.model, digits.space, [digits.calibration])
    error = ReconstructionError(space, grams)
    masks = [dp.Masks.random(space, keep=0.5, seed=seed) for seed in range(5)]
    for seed in (0, 1, 0, 2, 3, 4, 0, 4):
        assert error(masks[seed]) == reconstruction_error(space, masks[seed], grams)


def test_a_child_costs_the_layers_in_which_it_differs(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    space, grams = digits.space, collect_grams(digits.model, digits.space, [digits.calibration])
    solved: list[LayerGram] = []

    def counted(gram: LayerGram, *rest: Any) -> Refit | None:
        solved.append(gram)
        return refit(gram, *rest)

    monkeypatch.setattr(surrogate, "refit", counted)
    error = ReconstructionError(space, grams)
    parent = dp.Masks.random(space, keep=0.5, seed=0)
    error(parent)
    assert len(solved) == len(grams.layers)
    name = space.groups[0].name
    child = dp.Masks({**parent, name: np.roll(parent[name], 1)})
    solved.clear()
    error(child)
    touched = {m.layer for m in space.groups[0].members}
    assert 0 < len(solved) <= len(touched)
