"""One layer fitted to wanted outputs: the normalisation after it, noise, a rectifier that reads it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from deap_prune.reconstruction import fit
from deap_prune.reconstruction.fit import choose, fit_layer


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_normalisation_takes_up_the_fit(affine: bool, bias: bool) -> None:
    """Layer and normalisation together give the fit; with a scale, the statistics are those of the data."""
    layer = nn.Conv2d(4, 3, 1, bias=bias).double()
    norm = nn.BatchNorm2d(3, affine=affine).double().eval()
    x = torch.randn(500, 4, 1, 1, dtype=torch.float64)
    wanted = x[:, :, 0, 0] @ torch.randn(4, 3, dtype=torch.float64) * torch.tensor([1.0, 30.0, 1e-3]) + 5
    fit_layer(layer, norm, x[:, :, 0, 0].unsqueeze(0), wanted)
    y = layer(x).detach()
    assert torch.allclose(norm(y)[:, :, 0, 0], wanted, atol=1e-2 * float(wanted.std()))
    if affine:
        assert torch.allclose(norm.running_mean, y.mean((0, 2, 3)), atol=1e-9)
        assert torch.allclose(norm.running_var, y.var((0, 2, 3), correction=0), rtol=1e-9)


def test_noise_changes_nothing() -> None:
    """Outputs that no fit on some rows predicts on the others: the layer stays as it is."""
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 2), torch.randn(1, 50, 40)
    before = copy.deepcopy(layer.state_dict())
    fit_layer(layer, None, x, layer(x[0]).detach() + torch.randn(50, 2))
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    fit_layer(layer, None, x[:, :1], torch.zeros(1, 2))  # a single row: nothing to hold out
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ([0.30, 0.29, 0.31, 0.1], 1.0),  # nearly the best; errors after a rise are not read
        ([0.95, 0.70, 0.50, 0.55], 3.0),  # the first ones bring too little
        ([1.2, 1.1, 0.9, 1.0], 3.0),
        ([1.3, 1.2, 1.1, 1.0], None),
    ],
)
def test_the_smallest_ridge_that_brings_most(errors: list[float], chosen: float | None) -> None:
    assert choose(zip((1.0, 2.0, 3.0, 4.0), errors, strict=True), 1.0) == chosen


# ------------------------------------------------------------------ before a rectifier
def one_sided(made: Tensor, wanted: Tensor, floor: Tensor) -> Tensor:
    """What counts before a rectifier: above the floor the square, below it what rises above it."""
    return torch.where(wanted > floor, made - wanted, (made - floor).clamp(min=0)).square().mean()


@pytest.mark.parametrize("given", [False, True])
def test_before_a_rectifier_the_fit_is_one_sided(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rounds are between least squares and the optimum that gradients find; many rounds are at the optimum."""
    torch.manual_seed(0)
    x = torch.randn(4000, 6, dtype=torch.float64)
    wanted = torch.tanh(x @ torch.randn(6, 3, dtype=torch.float64)) + x[:, :3] ** 2 - 1
    floor = torch.randn_like(wanted) if given else torch.zeros_like(wanted)

    def fitted(rounds: int) -> float:
        layer = nn.Linear(6, 3).double()
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        monkeypatch.setattr(fit, "ROUNDS", rounds)
        fit_layer(layer, None, x.unsqueeze(0), wanted, floor=floor)
        return float(one_sided(layer(x).detach(), wanted, floor))

    squares, few, many = (fitted(rounds) for rounds in (0, fit.ROUNDS, 300))
    best = nn.Linear(6, 3).double()
    descent = torch.optim.LBFGS(best.parameters(), max_iter=500, tolerance_grad=1e-10)

    def loss() -> Tensor:
        descent.zero_grad()
        value = one_sided(best(x), wanted, floor)
        value.backward()
        return value

    descent.step(loss)  # type: ignore[arg-type]
    optimum = float(loss().detach())
    assert optimum < few < 0.95 * squares
    assert many < optimum * 1.001
