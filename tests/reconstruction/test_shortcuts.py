"""What gets lost on shortcuts without weights: made up for by the layer that meets them, against a plain fit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.reconstruction import Grams, collect_grams, compensate
from deap_prune.reconstruction.error import ReconstructionError
from deap_prune.reconstruction.shortcuts import _sources
from deap_prune.structure.layers import _TYPES, register_layer
from deap_prune.structure.space import LayerChannels
from deap_prune.zoo import PadShortcut
from tests.helpers.moments import EVERY, PADDED, grams_of, outputs_of


class Joined(nn.Module):
    """Two stages: what the second one's layer makes is added to the channels of the first."""

    def __init__(
        self,
        *,
        norm: nn.Module | None = nn.BatchNorm2d(10),  # noqa: B008  copied
        late: bool = True,
        shortcut: nn.Module | None = None,
        scale: float = 1.0,
        calls: int = 1,
        **host: Any,
    ) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 2, padding=1)
        self.host, self.norm = nn.Conv2d(8, 10, 3, padding=1, **{"bias": norm is None, **host}), copy.deepcopy(norm)
        self.shortcut = shortcut or PadShortcut(6, 10, 2)
        self.last, self.late, self.scale, self.calls = nn.Conv2d(10, 4, 1), late, scale, calls

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        brought = None if self.late else self.shortcut(x)
        made = self.host(F.relu(self.inner(x)))
        made = made if self.norm is None else self.norm(made)
        brought = self.shortcut(x) if brought is None else brought
        total = torch.add(made, brought, alpha=self.scale)
        for _ in range(self.calls - 1):
            total = torch.cat([total, self.shortcut(2 * x)], dim=1)
        return self.last(F.relu(total[:, :10] if self.calls > 1 else total))


def ready(**options: Any) -> tuple[Joined, dp.PruningSpace, Tensor]:
    torch.manual_seed(0)
    model, x = Joined(**options).double().eval(), torch.randn(60, 3, 8, 8).double()
    model.first.weight.data.mul_(5)  # as much on the shortcut as beside it
    if model.norm is not None and model.norm.affine:
        nn.init.uniform_(model.norm.weight, -2.0, -0.5), nn.init.normal_(model.norm.bias)
        variance, mean = torch.var_mean(rows(seen(model, "host", x)[1]), dim=0, correction=0)
        model.norm.running_mean.copy_(mean), model.norm.running_var.copy_(variance)
        model.norm.eps = 1e-12
    return model, dp.trace(model, x[:1]), x


def collected(model: nn.Module, space: dp.PruningSpace, x: Tensor, **options: Any) -> Grams:
    batches = [((part,), {}) for part in x.split((len(x) - 7, 1, 6))]
    return collect_grams(model, space, batches, forward=outputs_of, **{"mode": "full", "rows": EVERY, **options})


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
    keep = {"first": [0, 1, 1, 1, 0, 1], "inner": [1, 1, 0, 1, 0, 1, 1, 1], joined: [0, 1, 1, 1, 1, 1, 0, 1, 1, 1]}
    return dp.Masks({name: np.array(kept, dtype=bool) for name, kept in keep.items()})


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("statistics", [None, "closed form", "data"])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(10), None])
def test_the_host_makes_what_is_missing_as_a_plain_fit_does(
    norm: nn.Module | None, statistics: str | None, late: bool
) -> None:
    """Least squares, with a constant, of the dense sum less what the shortcut still brings.

    Where statistics are set, outputs have the variance of what all that the dense layer reads tells of it.
    """
    model, space, x = ready(norm=norm, late=late)
    name = "host" if late else "shortcut"
    masks, grams = some_masks(name), collected(model, space, x)
    small = dp.slim(model, space, masks)
    compensate(small, space, masks, grams, statistics=statistics == "closed form", ridge=1e-12)
    stays, made = torch.tensor(masks["inner"]), torch.tensor(masks[name])
    read = read_by_host(model, x, stays)
    expected = read @ torch.linalg.lstsq(read, added(model, x, masks)[:, made], driver="gelsd").solution
    with torch.no_grad():
        found = small.host(seen(model, "host", x)[0][:, stays])
        if small.norm is not None and statistics == "data":
            variance, mean = torch.var_mean(rows(found), dim=0, correction=0)
            small.norm.running_mean.copy_(mean), small.norm.running_var.copy_(variance)
        found = rows(found if small.norm is None else small.norm(found))
    if norm is None or statistics is None:
        assert torch.allclose(found, expected, atol=1e-6)
        return
    lost = F.pad(~torch.tensor(masks["first"]), (2, 2))[made]
    assert int(lost.sum()) == 1  # of the two channels one would go to an output that is not there any more
    dense = read_by_host(model, x, torch.ones(8, dtype=torch.bool))
    told = dense @ torch.linalg.lstsq(dense, added(model, x, masks)[:, made], driver="gelsd").solution
    (spread, middle), (plain, _), (whole, _) = (
        torch.std_mean(each[:, lost], dim=0, correction=0) for each in (found, expected, told)
    )
    assert torch.allclose((found[:, lost] - middle) / spread, (expected[:, lost] - middle) / plain, atol=1e-6)
    assert torch.allclose(spread, whole, rtol=0.01) and not torch.allclose(plain, whole, rtol=0.03)


def test_the_error_counts_what_no_fit_brings_back() -> None:
    """Relative squared error of the sum, over the kept outputs; 0 where nothing is missing."""
    model, space, x = ready()
    grams = collected(model, space, x)
    error = ReconstructionError(space, grams, ridge=1e-12)
    place = list(grams.layers).index("host")
    first = dp.Masks({"first": some_masks()["first"]})
    read, wanted = read_by_host(model, x, torch.ones(8, dtype=torch.bool)), added(model, x, first)
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
    """The rest is in the error."""
    model, space, x = ready()
    masks = dp.Masks({"first": some_masks()["first"]})
    grams = collected(model, space, x, mode="channel")
    small = dp.slim(model, space, masks)
    compensate(small, space, masks, grams)
    missing = added(model, x, masks) - rows(seen(model, "norm", x)[1])
    assert torch.equal(small.host.weight, model.host.weight)
    assert torch.allclose(small.norm.bias - model.norm.bias, missing.mean(0), atol=1e-9)
    gram = grams.layers["host"]
    own = gram.energy * (model.norm.weight.square() / model.norm.running_var).detach()
    lost = missing.var(0, correction=0).sum()
    place = list(grams.layers).index("host")
    assert ReconstructionError(space, grams).by_layer(masks)[place] == pytest.approx(float(lost / (own.sum() + lost)))


class Odd(nn.Module):
    """Shortcuts that are no copies, or that take more than a tensor."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "picky" and x.dtype == torch.float32:
            raise TypeError("float64 alone")
        odd = {
            "mixed": lambda: x + x.flip(1),
            "scaled": lambda: 0.5 * x,
            "shifted": lambda: x + 1,
            "uneven": lambda: x * torch.arange(1, x.shape[2] + 1).view(-1, 1),
            "squared": lambda: x.square(),
            "picky": lambda: x,
        }
        return F.pad(odd[self.kind]()[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


@pytest.fixture
def _known() -> Iterator[None]:
    register_layer(Odd)(lambda layer: dp.LayerSpec(in_channels=6, out_channels=10, whole=True, narrow=lambda *_: None))
    yield
    del _TYPES[Odd]


@pytest.mark.parametrize("name", ["option_a", "residual", "resnet20_b"])
def test_shortcuts_whose_channels_stay_or_that_layers_read_are_left_alone(name: str) -> None:
    """Fixed padding ties both stages; identities share their channels; 1x1 convolutions are fitted themselves."""
    assert all(gram.shortcut is None for gram in grams_of(name).layers.values())


@pytest.mark.usefixtures("_known")
@pytest.mark.parametrize("kind", ["mixed", "scaled", "shifted", "uneven", "squared", "picky"])
def test_layers_that_do_not_copy_are_left_alone(kind: str) -> None:
    entry = LayerChannels("shortcut", np.arange(6), np.arange(6, 16))
    assert _sources(Odd(kind), entry, (12, 6, 8, 8), torch.device("cpu")) is None
    copied = _sources(PadShortcut(6, 10, 2), entry, (12, 6, 8, 8), torch.device("cpu"))
    assert copied is not None and copied.tolist() == [-1, -1, 0, 1, 2, 3, 4, 5, -1, -1]


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.5},
        {"calls": 2},
        {"bias": True},
        {"norm": nn.BatchNorm2d(10, affine=False)},
        {"norm": None, "bias": False},
    ],
    ids=["a scaled addition", "a shortcut used twice", "bias and normalisation", "no shift", "no constant"],
)
def test_meetings_that_nothing_can_stand_in_for_are_left_alone(options: dict[str, Any]) -> None:
    model, space, x = ready(**options)
    assert any(group.name == "first" for group in space.groups)
    assert all(gram.shortcut is None for gram in collected(model, space, x).layers.values())


def test_blocks_are_fitted_each_on_its_own() -> None:
    """A grouped host: what an output misses is made of the inputs of its own block."""
    model, space, x = ready(groups=2)
    masks, grams = dp.Masks({"first": some_masks()["first"]}), collected(model, space, x)
    small = dp.slim(model, space, masks)
    compensate(small, space, masks, grams, ridge=1e-12)
    read, wanted = seen(model, "host", x)[0], added(model, x, masks)
    with torch.no_grad():
        found = rows(small.norm(small.host(read)))
    for block in range(2):
        own = F.unfold(read[:, 4 * block : 4 * block + 4], 3, padding=1).transpose(1, 2).flatten(0, 1)
        own = torch.cat([own, own.new_ones(len(own), 1)], dim=1)
        outputs = slice(5 * block, 5 * block + 5)
        expected = own @ torch.linalg.lstsq(own, wanted[:, outputs], driver="gelsd").solution
        assert torch.allclose(found[:, outputs], expected, atol=1e-6)


@pytest.mark.parametrize("dead", ["scale", "filter"])
@pytest.mark.parametrize("statistics", [True, False])
def test_a_host_that_is_dead_there_gives_the_mean_alone(statistics: bool, dead: str) -> None:
    """No scale, or no variance, to make it with: what is not made up for is in the error."""
    model, space, x = ready()
    with torch.no_grad():
        if dead == "scale":
            model.norm.weight.zero_()
        else:
            model.host.weight.zero_(), model.norm.running_mean.fill_(0), model.norm.running_var.fill_(1)
    masks, grams = dp.Masks({"first": some_masks()["first"]}), collected(model, space, x)
    small = dp.slim(model, space, masks)
    compensate(small, space, masks, grams, statistics=statistics)
    assert torch.equal(small.norm.weight, model.norm.weight)
    missing = added(model, x, masks) - rows(seen(model, "norm", x)[1])
    assert torch.allclose(small.norm.bias - model.norm.bias, missing.mean(0), atol=1e-9)
    place = list(grams.layers).index("host")
    error = ReconstructionError(space, grams).by_layer(masks)[place]
    assert error == pytest.approx(1.0)


def test_an_input_that_is_written_to_is_not_looked_at() -> None:
    """The host ran on what was there before; the shortcut comes later."""

    class Written(Joined):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            inner = F.relu(self.inner(x))
            made = self.norm(self.host(inner))
            inner.mul_(2)
            return self.last(F.relu(made + self.shortcut(x))) + inner.mean()

    torch.manual_seed(0)
    model, x = Written().double().eval(), torch.randn(12, 3, 8, 8).double()
    space = dp.trace(model, x[:1])
    assert all(gram.shortcut is None for gram in collected(model, space, x).layers.values())


@pytest.mark.parametrize(("name", "block"), [(PADDED[0], 0), (PADDED[1], 1)])  # there a sampling layer comes first
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
