"""Sequential selection: which groups it covers, that it keeps widths and laws, and what it selects."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from conftest import Digits
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ConfigError
from deap_prune.reconstruction import collect_grams, eliminate, refine, select_masks
from deap_prune.reconstruction.refine import Refiner
from deap_prune.structure.inputs import forward
from tests.helpers.networks import NETWORKS
from tests.helpers.pruning import assert_unchanged, draw_masks, gap, prepared, snapshot


def outputs_of(model: nn.Module, batch: object) -> tuple[list[Tensor], None]:
    return forward(model, batch), None


def refiner_of(name: str, rows: int = 300) -> tuple[nn.Module, dp.PruningSpace, Refiner, object]:
    _, _, space, random, call = prepared(name)
    return random, space, Refiner(random, space, [call], images=100, rows=rows, forward=outputs_of), call


def widths(space: dp.PruningSpace, masks: dp.Masks) -> list[list[int]]:
    return [np.reshape(masks[g.name], (g.blocks, -1)).sum(axis=1).tolist() for g in space.groups if g.name in masks]


# ------------------------------------------------------------------ laws
@pytest.mark.parametrize("name", NETWORKS)
def test_masked_is_slim_when_selected(name: str) -> None:
    """The network has the selected masks' shapes and is what these masks give; widths are those asked for."""
    random, space, refiner, call = refiner_of(name)
    masks = draw_masks(space, seed=11)
    start = dp.slim(random, space, masks)
    before, start_before = snapshot(random), snapshot(start)
    small, selected = refiner.refine(masks, start, select=True, prior=0)
    assert_unchanged(random, before)
    assert_unchanged(start, start_before)
    assert widths(space, selected) == widths(space, masks) and set(selected) == set(masks)
    plain = dp.slim(random, space, selected)
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert type(small) is type(plain) and not small.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    again = refiner.refine(selected, plain)[0]  # without selection, from the selected masks
    for network in (small, again):
        with torch.no_grad():
            narrow = forward(network, call)
            with dp.masked(random, space, selected, state=network):
                full = forward(random, call)
        assert all(bool(torch.isfinite(x).all()) for x in narrow)
        assert gap(narrow, full) < 1e-9


@pytest.mark.parametrize("name", ["residual", "grouped", "separable", "resnet20_b"])
def test_a_large_prior_keeps_the_masks(name: str) -> None:
    _, space, refiner, _ = refiner_of(name)
    masks = draw_masks(space, seed=3)
    assert refiner.select(masks, prior=1e12) == masks
    assert refiner.select(masks, prior=0) == refiner.select(masks, prior=0)
    everything = dp.Masks({group.name: np.ones(group.size, dtype=bool) for group in space.groups})
    assert refiner.select(everything) == everything


def test_masks_alone_decide_widths_without_a_prior() -> None:
    """Two masks of the same widths, in every group that is selected, lead to the same filters."""
    _, space, refiner, _ = refiner_of("plain", rows=2000)
    one, two = (dp.Masks.random(space, keep=0.5, seed=seed) for seed in (0, 1))
    assert one != two and refiner.select(one, prior=0) == refiner.select(two, prior=0)
    assert refiner.select(one, prior=0.5) != refiner.select(two, prior=1e12)


# ------------------------------------------------------------------ which groups
def test_groups_that_cannot_be_selected_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """Residual streams have several readers: their masks stay; inner groups are selected."""
    with caplog.at_level(logging.INFO, logger="deap_prune"):
        _, space, refiner, _ = refiner_of("resnet20_b")
        masks = dp.Masks.random(space, keep=0.5, seed=0)
        selected = refiner.select(masks, prior=0)
    assert "the masks decide: conv1" in caplog.text and "readers" in caplog.text
    for group in space.groups:
        inner = group.name.endswith("conv1") and group.name != "conv1"
        assert np.array_equal(selected[group.name], masks[group.name]) or inner
    assert any(not np.array_equal(selected[name], masks[name]) for name in masks)


# ------------------------------------------------------------------ what is selected
def test_the_last_layer_reads_the_filters_of_a_greedy_search() -> None:
    """One hidden layer: elimination on the rows themselves, against least squares solved anew at every step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 4)).double().eval()
    x = torch.randn(4000, 5, dtype=torch.float64)
    space = dp.trace(model, x[:2])
    masks = dp.Masks({"0": np.arange(9) < 4})
    selected = select_masks(model, space, masks, (x, torch.zeros(4000)), images=4000, prior=0)
    read, target = (t.detach().numpy() for t in (model[:2](x), model(x)))
    read, target = read - read.mean(axis=0), target - target.mean(axis=0)
    keep = np.ones(9, dtype=bool)

    def error(left: np.ndarray) -> float:
        fit = read[:, left] @ np.linalg.lstsq(read[:, left], target, rcond=None)[0]
        return float(np.square(target - fit).sum())

    for _ in range(5):
        keep[min(np.flatnonzero(keep), key=lambda f: error(keep & (np.arange(9) != f)))] = False
    assert np.array_equal(selected["0"], keep)


@pytest.mark.parametrize("normalised", [False, True])
def test_the_fit_begins_with_compensated_weights(normalised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept weights make up for the others as a ridge regression on all rows does, and the mean stays."""
    for place, value in (
        ("sequential.fit_layer", lambda *parts, **options: None),
        ("selection.ROWS_PER_FEATURE", 1000),
        ("targets.LEAST_ROWS", 4000),
    ):
        monkeypatch.setattr(f"deap_prune.reconstruction.{place}", value)
    torch.manual_seed(0)
    norm = [nn.BatchNorm1d(4)] if normalised else []
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 4), *norm).double().eval()
    x = torch.randn(4000, 5, dtype=torch.float64)
    space = dp.trace(model, x[:2])
    masks = dp.Masks({"0": np.arange(9) < 4})
    refiner = Refiner(model, space, (x, torch.zeros(4000)), images=4000, rows=4000)
    small, selected = refiner.refine(masks, dp.slim(model, space, masks), select=True, prior=1e6)
    assert selected == masks
    read, weight = model[:2](x).detach().numpy(), model[2].weight.detach().numpy().T
    square = np.cov(read.T, bias=True)
    kept, lost = square[:4, :4], square[:4, 4:]
    ridge = 1e-3 * np.diag(kept).mean() * np.eye(4)
    expected = weight[:4] + np.linalg.solve(kept + ridge, lost @ weight[4:])
    assert np.allclose(small[2].weight.detach().numpy().T, expected, atol=1e-8)
    assert torch.allclose(small(x).mean(dim=0), model(x).mean(dim=0), atol=1e-8)


def test_what_an_earlier_layer_has_lost_counts() -> None:
    """The second filter weighs more, but what it reads is pruned: the dense cost keeps it, the live cost does not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
        model[4].weight.copy_(torch.tensor([[1.0, 1.5]]))
    x = torch.randn(3000, 2, dtype=torch.float64)
    space = dp.trace(model, x[:2])
    masks = dp.Masks({"0": [True, False], "2": [False, True]})
    dense = eliminate(space.group("2"), collect_grams(model, space, [(x, None)]))
    assert dense is not None and dense.keep(1).tolist() == [False, True]
    refiner = Refiner(model, space, (x, torch.zeros(3000)), images=3000, rows=3000)
    refiner._choices = tuple(choice for choice in refiner._choices if choice.group.name == "2")
    selected = refiner.select(masks, prior=0)
    assert selected["0"].tolist() == [True, False] and selected["2"].tolist() == [True, False]


def test_data_that_give_no_order_keep_the_masks() -> None:
    _, space, refiner, _ = refiner_of("plain")
    for target in refiner._plan.targets.values():
        target.values.fill_(torch.nan)
    masks = dp.Masks.random(space, keep=0.5, seed=0)
    assert refiner.select(masks, prior=0) == masks


def test_selecting_gains_on_new_images(digits: Digits) -> None:
    """The distance of the logits to the dense network's, summed over four draws of masks."""
    masks = [dp.Masks.random(digits.space, keep=0.4, seed=seed) for seed in range(4)]
    refiner = Refiner(digits.model.eval(), digits.space, digits.calibration, images=300, rows=4000)
    errors = np.zeros((4, 2))
    for number, mask in enumerate(masks):
        start = dp.slim(digits.model, digits.space, mask)
        for arm, select in enumerate((False, True)):
            small = refiner.refine(mask, start, select=select)[0]
            with torch.no_grad():
                difference = small(digits.validation[0]) - digits.model(digits.validation[0])
            errors[number, arm] = float(difference.square().mean())
    assert errors[:, 1].sum() < 0.95 * errors[:, 0].sum(), errors


def test_errors(digits: Digits) -> None:
    with pytest.raises(ConfigError, match=r"images=1.*at least 2"):
        select_masks(digits.model, digits.space, dp.Masks({}), digits.calibration, images=1)
    with pytest.raises(ConfigError, match=r"prior=-1.*from 0 up"):
        select_masks(digits.model, digits.space, dp.Masks({}), digits.calibration, prior=-1)
    small = refine(digits.model, digits.space, dp.Masks({}), digits.calibration, images=20)
    assert isinstance(small, nn.Module)
