"""The surrogate remembers layers, not networks; what it remembers never shows in a value."""

from typing import Any

import numpy as np
import pytest
from conftest import Digits
from scipy.stats import kendalltau

import deap_prune as dp
from deap_prune.reconstruction import LayerGram, ReconstructionError, collect_grams, reconstruction_error
from deap_prune.reconstruction import error as error_module
from deap_prune.reconstruction.compensate import Refit, refit


def test_what_is_remembered_changes_nothing(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_module, "REMEMBERED", 3)
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

    monkeypatch.setattr(error_module, "refit", counted)
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


def test_learned_weights_are_those_that_made_the_values(digits: Digits) -> None:
    """Values that are a weighted sum of the layers' errors are ranked as they are; without any, nothing changes."""
    space, grams = digits.space, collect_grams(digits.model, digits.space, [digits.calibration])
    error, rng = ReconstructionError(space, grams), np.random.default_rng(0)
    masks = [dp.Masks.random(space, keep=float(k), seed=s) for s, k in enumerate(rng.uniform(0.1, 0.9, 200))]
    weights = np.linspace(-2, 2, len(grams.layers)).clip(0)
    values = [float(np.dot(weights, error.by_layer(m))) for m in masks]
    learned = error.learned(zip(masks, values, strict=True))
    found = np.array(learned.weights)
    assert (found >= 0).all() and np.corrcoef(found, weights)[0, 1] > 0.95
    by_learned, by_sum = (kendalltau([each(m) for m in masks], values)[0] for each in (learned, error))
    assert by_learned > 0.97 and by_learned > by_sum
    assert error.weights == [1.0] * len(weights)
    unchanged = (error.learned([]), error.learned([(masks[0], 1.0)]), error.learned([(m, 1.0) for m in masks]))
    assert all(each(masks[1]) == error(masks[1]) for each in unchanged)
    for odd in (np.nan, np.inf, 1e6):  # a network that broke down, and one that gave no figure
        learned = error.learned(zip([*masks[:50], masks[60]], [*values[:50], odd], strict=True))
        assert kendalltau([learned(m) for m in masks[100:]], values[100:])[0] > 0.9


def test_learned_weights_minimise_what_they_say(digits: Digits) -> None:
    """Squared error of the fit, and of the distance to equal weights; by a search that knows nothing of the solver."""
    rng = np.random.default_rng(1)
    errors, values = rng.uniform(size=(6, 3)), rng.uniform(size=6)  # no value is far above the others
    found = error_module._weights(errors, values)
    x, y = errors - errors.mean(axis=0), values - values.mean()
    x = x / x.std(axis=0).mean()
    equal = max(0.0, float(x.sum(axis=1) @ y / (x.sum(axis=1) ** 2).sum()))

    def cost(w: Any) -> float:
        return float(((x @ w - y) ** 2).sum() + error_module.PRIOR * ((w - equal) ** 2).sum())

    grid = np.stack(np.meshgrid(*[np.linspace(0, 0.4, 41)] * 3), axis=-1).reshape(-1, 3)
    assert min(map(cost, grid)) >= cost(found) - 1e-9
    assert found.shape == (3,) and (found >= 0).all()
