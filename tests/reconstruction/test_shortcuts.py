"""What gets lost on shortcuts without weights: made up for by the layer that meets them, against a plain fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grams import EVERY, PADDED, grams_of, outputs_of
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.reconstruction import Grams, collect_grams, compensate
from deap_prune.reconstruction.surrogate import ReconstructionError
from deap_prune.zoo import PadShortcut


class Joined(nn.Module):
    """Two stages: what the second one's layer makes is added to the channels of the first."""

    def __init__(self, *, norm: bool = True, late: bool = True, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 7, 3, 2, padding=1)
        self.host = nn.Conv2d(7, 10, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(10) if norm else None
        self.shortcut = shortcut or PadShortcut(6, 10, 2)
        self.last, self.late = nn.Conv2d(10, 4, 1), late

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        brought = None if self.late else self.shortcut(x)
        made = self.host(F.relu(self.inner(x)))
        made = made if self.norm is None else self.norm(made)
        return self.last(F.relu(made + (self.shortcut(x) if brought is None else brought)))


def ready(**options: Any) -> tuple[Joined, dp.PruningSpace, Tensor]:
    torch.manual_seed(0)
    model, x = Joined(**options).double().eval(), torch.randn(12, 3, 8, 8).double()
    model.first.weight.data.mul_(5)  # as much on the shortcut as beside it
    if options.get("norm", True):
        nn.init.uniform_(model.norm.weight, 0.5, 2.0), nn.init.normal_(model.norm.bias)
        variance, mean = torch.var_mean(rows(seen(model, "host", x)[1]), dim=0, correction=0)
        model.norm.running_mean.copy_(mean), model.norm.running_var.copy_(variance)
        model.norm.eps = 1e-12
    return model, dp.trace(model, x[:1]), x


def collected(model: nn.Module, space: dp.PruningSpace, x: Tensor, **options: Any) -> Grams:
    return collect_grams(model, space, [((x,), {})], forward=outputs_of, **{"mode": "full", "rows": EVERY, **options})


def added(model: Joined, x: Tensor, masks: dp.Masks) -> Tensor:
    """What the layer is to make: its part of the sum, and what the shortcut no longer brings; (positions, outputs)."""
    brought = seen(model, "shortcut", x)[1].clone()
    brought[:, 2:8][:, torch.tensor(masks["first"])] = 0  # channels 2 to 7 are copies of the six
    return rows(seen(model, "host" if model.norm is None else "norm", x)[1] + brought)


def read_by_host(model: Joined, x: Tensor, stays: Tensor) -> Tensor:
    """Its patches, and ones for the constant."""
    read = F.unfold(seen(model, "host", x)[0][:, stays], 3, padding=1).transpose(1, 2).flatten(0, 1)
    return torch.cat([read, read.new_ones(len(read), 1)], dim=1)


def seen(model: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    found: list[Any] = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, args, out: found.append((args[0], out)))
    with torch.no_grad():
        model(x)
    handle.remove()
    return found[0]


def rows(image: Tensor) -> Tensor:
    return image.movedim(1, -1).flatten(0, -2)


def some_masks(joined: str = "host") -> dp.Masks:
    """Of the first stage, of what the host reads, and of the second stage, whose name is that of what comes first."""
    keep = {"first": [1, 0, 1, 1, 0, 1], "inner": [1, 1, 0, 1, 0, 1, 1], joined: [1, 1, 0, 1, 1, 1, 0, 1, 1, 1]}
    return dp.Masks({name: np.array(kept, dtype=bool) for name, kept in keep.items()})


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_the_host_makes_what_is_missing_as_a_plain_fit_does(norm: bool, late: bool) -> None:
    """Least squares, with a constant, of the dense sum less what the shortcut still brings."""
    model, space, x = ready(norm=norm, late=late)
    name = "host" if late else "shortcut"
    masks, grams = some_masks(name), collected(model, space, x)
    small = dp.slim(model, space, masks)
    compensate(small, space, masks, grams, ridge=1e-12)
    stays, made = torch.tensor(masks["inner"]), torch.tensor(masks[name])
    read = read_by_host(model, x, stays)
    expected = read @ torch.linalg.lstsq(read, added(model, x, masks)[:, made], driver="gelsd").solution
    with torch.no_grad():
        found = small.host(seen(model, "host", x)[0][:, stays])
        found = rows(found if small.norm is None else small.norm(found))
    assert torch.allclose(found, expected, atol=1e-6)


def test_statistics_from_data_leave_the_scale_as_it_is() -> None:
    """In closed form, or measured: outputs have the mean and the variance of what is to be made."""
    model, space, x = ready()
    masks, grams = some_masks(), collected(model, space, x)
    made, read = torch.tensor(masks["host"]), seen(model, "host", x)[0][:, torch.tensor(masks["inner"])]
    wanted = added(model, x, masks)[:, made]
    small = dp.slim(model, space, masks)
    compensate(small, space, masks, grams, statistics=True, ridge=1e-12)
    with torch.no_grad():
        host = small.host(read)
        closed = rows(small.norm(host))
        variance, mean = torch.var_mean(rows(host), dim=0, correction=0)
        small.norm.running_mean.copy_(mean), small.norm.running_var.copy_(variance)
        data = rows(small.norm(host))
    for found in (closed, data):
        assert torch.allclose(found.mean(0), wanted.mean(0), atol=1e-6)
        assert torch.allclose(found.std(0, correction=0), wanted.std(0, correction=0), rtol=1e-6)


def test_the_error_counts_what_no_fit_brings_back() -> None:
    """Relative squared error of the sum, over the kept outputs; 0 where nothing is missing."""
    model, space, x = ready()
    grams = collected(model, space, x)
    error = ReconstructionError(space, grams, ridge=1e-12)
    place = list(grams.layers).index("host")
    first = dp.Masks({"first": some_masks()["first"]})
    read, wanted = read_by_host(model, x, torch.ones(7, dtype=torch.bool)), added(model, x, first)
    left = wanted - read @ torch.linalg.lstsq(read, wanted, driver="gelsd").solution
    expected = left.square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert error.by_layer(first)[place] == pytest.approx(float(expected), rel=1e-3)
    assert error.by_layer(first)[place] > 0.01
    assert error(dp.Masks({})) == 0
    nothing = dp.Masks({"host": some_masks()["host"]})
    assert error.by_layer(nothing)[place] == 0  # what the host no longer makes is not missed by it


def test_outputs_come_closer() -> None:
    """With only the first stage narrower, the network is nearer to the dense one than the layers that read it alone."""
    model, space, x = ready()
    masks = dp.Masks({"first": some_masks()["first"]})
    grams = collected(model, space, x)
    without = {name: gram for name, gram in grams.layers.items() if gram.shortcut is None}
    errors = []
    for layers in (grams.layers, without):
        small = dp.slim(model, space, masks)
        compensate(small, space, masks, type(grams)(layers))
        with torch.no_grad():
            errors.append(float((small(x) - model(x)).square().mean()))
    assert errors[0] < 0.7 * errors[1]


def test_by_channel_only_the_mean_is_made_up_for() -> None:
    model, space, x = ready()
    masks = dp.Masks({"first": some_masks()["first"]})
    grams = collected(model, space, x, mode="channel")
    small = dp.slim(model, space, masks)
    compensate(small, space, masks, grams)
    missing = added(model, x, masks) - rows(seen(model, "norm", x)[1])
    assert torch.equal(small.host.weight, model.host.weight)
    assert torch.allclose(small.norm.bias - model.norm.bias, missing.mean(0), atol=1e-9)


class Mixed(nn.Module):
    """No copy: two channels are added up."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2] + x[:, :, ::2, ::2].flip(1), (0, 0, 0, 0, 2, 2))


@pytest.mark.parametrize("name", ["option_a", "residual", "resnet20_b"])
def test_shortcuts_whose_channels_stay_or_that_layers_read_are_left_alone(name: str) -> None:
    """Fixed padding ties both stages; identities share their channels; 1x1 convolutions are fitted themselves."""
    assert all(gram.shortcut is None for gram in grams_of(name).layers.values())


def test_layers_that_do_not_copy_are_left_alone() -> None:
    model, space, x = ready(shortcut=Mixed())
    grams = collected(model, space, x)
    assert all(gram.shortcut is None for gram in grams.layers.values())


@pytest.mark.parametrize(("name", "block"), zip(PADDED, (0, 1), strict=True))  # a sampling layer comes first there
def test_both_stages_are_found(name: str, block: int) -> None:
    hosts = {layer for layer, gram in grams_of(name, rows=2).layers.items() if gram.shortcut is not None}
    assert hosts == {f"layer{stage}.{block}.conv2" for stage in (2, 3)}


def test_a_host_that_reads_no_filters_is_fitted_too() -> None:
    """Where the inner layer may not be pruned, the host reads all it did, and stands in for the shortcut still."""
    model, _, x = ready()
    space = dp.trace(model, x[:1], ignore=["inner"])
    masks = dp.Masks({"first": some_masks()["first"]})
    grams = collected(model, space, x)
    small = dp.slim(model, space, masks)
    compensate(small, space, masks, grams)
    assert "inner" not in {group.name for group in space.groups}
    assert not torch.equal(small.host.weight, model.host.weight)
