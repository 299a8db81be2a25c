"""Moments: how they are collected, and solved with when the matrices are hard."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ConfigError, DataError, MaskError
from deap_prune.reconstruction import Grams, collect_grams, compensate
from deap_prune.reconstruction.matrix import pick, solve
from deap_prune.structure.layers import LayerSpec
from tests.helpers.moments import EVERY, grams_of, outputs_of
from tests.helpers.pruning import prepared


# ------------------------------------------------------------------ hard matrices
@given(rank=st.integers(0, 12), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_solve_is_safe_on_any_rank(rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, rank, 12, generator=generator)
    square = rows.transpose(1, 2) @ rows
    target = square @ torch.randn(2, 12, 3, generator=generator)
    x, ridge = solve(square.clone(), target, 1e-3)
    assert bool(torch.isfinite(x).all()) and (ridge > 0).all()
    scale = float(target.abs().max())
    assert torch.allclose(square @ x + ridge * x, target, atol=1e-3 * scale + 1e-12)


def test_solve_gives_up_on_values_that_are_not_finite() -> None:
    x, _ = solve(torch.full((1, 3, 3), torch.nan), torch.ones(1, 3, 2), 1e-3)
    assert torch.equal(x, torch.zeros(1, 3, 2))


def test_few_rows_get_a_larger_ridge() -> None:
    """Half as many rows as unknowns: the usual ridge fits the noise of the rows, this one does better on new ones."""
    model = nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)).eval()
    x = torch.randn(1032, 64, 1, 1)
    space = dp.trace(model, x[:1])
    masks = dp.Masks.random(space, keep=0.5)
    few, many = (collect_grams(model, space, [(part, None)]).layers["3"] for part in (x[:32], x[:1000]))
    assert few.scarcity == 300 * (64 / 32) ** 2 and many.scarcity == pytest.approx(300 * 0.064**2)
    with torch.no_grad():
        inputs, wanted = model[:3](x[32:]), model(x[32:])
        kept = torch.from_numpy(masks["0"].nonzero()[0])
        errors = []
        for ridge in (1e-3, 1e-3 / few.scarcity):
            small = dp.slim(model, space, masks)
            compensate(small, space, masks, Grams({"3": few}), ridge=ridge)
            errors.append(float((small[3](inputs[:, kept]) - wanted).square().mean()))
    assert errors[0] < errors[1]


def test_dead_channels_keep_their_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    with torch.no_grad():
        model[0].bias[:3] = -1e3  # these never fire
    x = torch.randn(4, 3, 8, 8)
    space = dp.trace(model, x)
    masks = dp.Masks({"0": np.array([True, True, True, True, False, False])})
    small = dp.slim(model, space, masks)
    compensate(small, space, masks, collect_grams(model, space, [(x, None)]))
    assert torch.equal(small[2].weight[:, :3], model[2].weight[:, :3])
    assert not torch.equal(small[2].weight[:, 3], model[2].weight[:, 3])
    assert bool(torch.isfinite(small(x)).all())


# ------------------------------------------------------------------ collecting
def test_rows_are_sampled_evenly_and_reproducibly() -> None:
    picks = pick(1000, 50, torch.Generator().manual_seed(0))
    assert len(set(picks.tolist())) == 50 and (picks // 20 == torch.arange(50)).all()
    assert torch.equal(pick(7, 50, torch.Generator()), torch.arange(7))
    _, _, space, random, call = prepared("residual")
    one, two, other = (
        collect_grams(random, space, [call], forward=outputs_of, rows=1, seed=seed).layers["body.conv1.0"].moments
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_batches_add_up() -> None:
    _, _, space, random, call = prepared("residual")
    halves = [((call[0][0][:2],), {}), ((call[0][0][2:],), {})]
    whole = grams_of("residual")
    parts = collect_grams(random, space, halves, forward=outputs_of, mode="full", rows=EVERY)
    for name, gram in whole.layers.items():
        assert torch.allclose(parts.layers[name].moments, gram.moments, atol=1e-12)


def test_auto_turns_the_largest_layers_to_channels(caplog: pytest.LogCaptureFixture) -> None:
    full = grams_of("resnet20_b")
    assert {g.form for g in full.layers.values()} == {"full"}
    assert grams_of("resnet20_b", mode="auto", memory=full.nbytes).nbytes == full.nbytes
    with caplog.at_level(logging.INFO, logger="deap_prune"):
        some = grams_of("resnet20_b", mode="auto", memory=full.nbytes // 2)
    forms = {name: gram.form for name, gram in some.layers.items()}
    assert some.nbytes <= full.nbytes // 2 and set(forms.values()) == {"full", "channel"}
    assert forms["layer3.1.conv2"] == "channel" and forms["layer1.0.conv2"] == "full"
    assert "by channel (memory" in caplog.text and "layer3.1.conv2" in caplog.text


def test_auto_goes_by_channel_where_positions_are_few(caplog: pytest.LogCaptureFixture) -> None:
    """A 3x3 layer of 8 channels has 72 unknowns for each output; 1 image of 8x8 has 64 positions, 2 have 128."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
    x = torch.randn(2, 3, 8, 8)
    space = dp.trace(model, x)
    with caplog.at_level(logging.INFO, logger="deap_prune"):
        found = [collect_grams(model, space, [(part, None)]).layers["2"].form for part in (x, x[:1])]
    assert found == ["full", "channel"] and "by channel (fewer positions than features) for 2" in caplog.text
    two = collect_grams(model, space, [(x[:1], None), (x[1:], None)])  # the batches count together
    assert two.layers["2"].form == "full"
    assert collect_grams(model, space, [(x[:1], None)], mode="full").layers["2"].form == "full"


def test_pieces_of_patches_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little memory patches may take, the sums are the same."""
    whole = grams_of("residual")
    monkeypatch.setattr("deap_prune.reconstruction.matrix.PIECE", 10_000)
    for name, gram in grams_of("residual").layers.items():
        assert torch.allclose(gram.moments, whole.layers[name].moments, atol=1e-12)


class Standardised(nn.Conv2d):
    """A convolution whose output is not its weight times its patches."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_layers_with_a_forward_of_their_own_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Standardised(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    x = torch.randn(2, 3, 8, 8)
    space = dp.trace(model, x)
    with caplog.at_level(logging.INFO, logger="deap_prune"):
        grams = collect_grams(model, space, [(x, None)])
    assert list(grams.layers) == ["4"] and "'2' is not its patches" in caplog.text


def test_layers_without_patches_are_left_out() -> None:
    class Plain(nn.Linear):
        """A layer that users registered without patches."""

    @dp.register_layer(Plain)
    def _plain(layer: Plain) -> LayerSpec:
        return LayerSpec(
            in_channels=layer.in_features,
            out_channels=layer.out_features,
            tensors={"weight": ("out", "in"), "bias": ("out",)},
            widths={"in_features": "in", "out_features": "out"},
            role="filter",
            channel_dim=-1,
            flops=lambda x, y: {"in*out": x[0]},
        )

    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), Plain(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(2, 3)
    space = dp.trace(model, x)
    assert list(collect_grams(model, space, [(x, None)]).layers) == ["4"]


def test_errors() -> None:
    _, _, space, random, call = prepared("plain")
    with pytest.raises(ConfigError, match=r"mode='half'.*'auto', 'full', 'channel'"):
        collect_grams(random, space, [call], mode="half")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="memory=0"):
        collect_grams(random, space, [call], memory=0)
    with pytest.raises(DataError, match="no calibration batches"):
        collect_grams(random, space, [])
    with pytest.raises(MaskError, match="traced on another network"):
        collect_grams(prepared("residual").model, space, [call])
    with pytest.raises(MaskError, match="no filter group"):
        compensate(random, space, dp.Masks({"x": np.ones(2, dtype=bool)}), Grams({}))
