"""Backward elimination: against a greedy search that solves each least-squares problem anew."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.reconstruction import (
    Elimination,
    Grams,
    collect_grams,
    eliminate,
    eliminate_all,
    reconstruction_error,
)
from deap_prune.reconstruction import elimination as elimination_module
from deap_prune.structure.space import FilterGroup
from tests.helpers.moments import EVERY, grams_of, read_by
from tests.helpers.pruning import prepared


class TwoReaders(nn.Module):
    """Filters that two convolutions read, of different size and scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 4, 3, padding=1), nn.Conv2d(7, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return torch.cat([self.one(x), 20 * self.two(x)], dim=1)


class Concatenated(nn.Module):
    """A layer that also reads channels of another group."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([F.relu(self.first(x)), F.relu(self.second(x))], dim=1))


CASES: dict[str, tuple[nn.Module, str]] = {
    "conv": (nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 4, 3, stride=2)), "0"),
    "no intercept": (nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 4, 3, bias=False)), "0"),
    "linear": (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5)), "0"),
    "flatten": (nn.Sequential(nn.Conv2d(3, 5, 6), nn.ReLU(), nn.Flatten(), nn.Linear(45, 4)), "0"),
    "grouped": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2)), "0"),
    "blocks, plain reader": (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        "1",
    ),
    "two readers": (TwoReaders(), "first"),
    "concatenated": (Concatenated(), "first"),
}


def made(case: str) -> tuple[nn.Module, dp.PruningSpace, FilterGroup, Tensor]:
    model, name = CASES[case]
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    shape = (500, 3) if case == "linear" else (60, 3, 8, 8)
    x = torch.randn(shape, dtype=torch.float64)
    model = model.double().eval()
    space = dp.trace(model, x[:2])
    return model, space, space.group(name), x


def rows_of(layer: nn.Module, x: Tensor) -> NDArray[np.float64]:
    """What each output position reads, (blocks, rows, channels, taps)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1], 1).numpy()
    assert isinstance(layer, nn.Conv2d)
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    patches = columns.transpose(1, 2).reshape(
        -1, layer.groups, x.shape[1] // layer.groups, columns.shape[1] // x.shape[1]
    )
    return patches.transpose(0, 1).numpy()


class Plain:
    """The error of a reader under a mask, by numpy's least squares on the rows."""

    def __init__(self, model: nn.Module, group: FilterGroup, x: Tensor) -> None:
        self.readers = []
        for member in group.layers("reader"):
            layer = model.get_submodule(member.layer)
            source, output = (t.detach() for t in read_by(model, member.layer, ((x,), {})))
            rows = rows_of(layer, source)
            wanted = (
                (output.movedim(1, -1) if output.dim() > 2 else output).reshape(rows.shape[1], len(rows), -1).numpy()
            )
            wanted = wanted.transpose(1, 0, 2)
            if layer.bias is not None:
                wanted = wanted - wanted.mean(axis=1, keepdims=True)
                rows = rows - rows.mean(axis=1, keepdims=True)
            self.readers.append((rows, wanted, member.positions))

    def __call__(self, keep: NDArray[np.bool_]) -> float:
        total = 0.0
        for rows, wanted, positions in self.readers:
            stays = np.ones(len(rows) * rows.shape[2], dtype=bool)
            stays[positions[~keep].flatten()] = False
            left = 0.0
            for x, y, own in zip(rows, wanted, stays.reshape(len(rows), -1), strict=True):
                read = x[:, own].reshape(len(x), -1)
                left += (
                    np.square(y - read @ np.linalg.lstsq(read, y, rcond=1e-12)[0]).sum() if own.any() else (y**2).sum()
                )
            total += left / np.square(wanted).sum()
        return total


def greedy(plain: Plain, group: FilterGroup) -> tuple[NDArray[np.intp], list[float]]:
    """Order and errors; of each block the filter whose removal alone costs least."""
    keep, order, errors = np.ones(group.size, dtype=bool), [], [0.0]
    for _ in range(group.size // group.blocks):
        step = []
        for block in np.arange(group.size).reshape(group.blocks, -1):
            filters = block[keep[block]]
            step.append(filters[np.argmin([plain(keep & (np.arange(group.size) != f)) for f in filters])])
        keep[step] = False
        order.append(step)
        errors.append(plain(keep))
    return np.array(order), errors


@pytest.mark.parametrize("case", CASES)
def test_elimination_is_the_greedy_search(case: str) -> None:
    model, space, group, x = made(case)
    assert group.blocks == (2 if case in ("grouped", "blocks, plain reader") else 1)
    grams = collect_grams(model, space, [(x, None)], rows=EVERY, mode="full")
    result = eliminate(group, grams, ridge=1e-11)
    order, errors = greedy(Plain(model, group, x), group)
    assert result is not None and np.array_equal(result.order, order)
    np.testing.assert_allclose(result.errors, errors, rtol=1e-5, atol=1e-7)
    if group.blocks == 1:
        np.testing.assert_allclose(result.costs[:, 0], np.diff(errors), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shrink", [0.0, 1.0])
@pytest.mark.parametrize("case", ["grouped", "blocks, plain reader", "concatenated", "flatten"])
def test_smaller_matrices_change_nothing(case: str, shrink: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices that are never cut down, and matrices that are cut down at every step."""
    model, space, group, x = made(case)
    grams = collect_grams(model, space, [(x, None)])
    expected = eliminate(group, grams)
    monkeypatch.setattr(elimination_module, "SHRINK", shrink)
    result = eliminate(group, grams)
    assert expected is not None and result is not None and np.array_equal(result.order, expected.order)
    np.testing.assert_allclose(result.errors, expected.errors, atol=1e-9)


@pytest.mark.parametrize("mode", ["full", "channel"])
@pytest.mark.parametrize("network", ["residual", "grouped", "concat", "flatten", "shuffle", "separable"])
def test_errors_are_those_of_compensation(network: str, mode: str) -> None:
    """The curve of each group is the reconstruction error under its masks, for either form of the moments."""
    space, grams = prepared(network).space, grams_of(network, mode=mode)
    results = eliminate_all(space, grams, ridge=1e-9)
    assert results
    for name, result in results.items():
        group = space.group(name)
        readers = {m.layer: grams.layers[m.layer] for m in group.layers("reader") if m.layer in grams.layers}
        assert sorted(result.order.flatten()) == list(range(group.size))
        assert (np.diff(result.scores[result.order].mean(axis=1)) >= 0).all()
        for step in range(len(result.order)):
            width = len(result.order) - step
            keep = result.keep(width)
            assert (keep.reshape(group.blocks, -1).sum(axis=1) == width).all()
            expected = reconstruction_error(space, dp.Masks({name: keep}), type(grams)(readers), ridge=1e-9)
            assert result.errors[step] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_factor_on_costs_protects_filters() -> None:
    """With a large factor the filters that have it are removed last; the costs reported are without it."""
    model, space, group, x = made("conv")
    grams = collect_grams(model, space, [(x, None)])
    gram = next(iter(grams.layers.values()))
    plain = eliminate(group, grams)
    assert plain is not None
    first = plain.order[:3, 0]
    factor = torch.ones(group.size, dtype=torch.float64)
    factor[torch.as_tensor(first)] = 1e9
    reader = elimination_module.Reader.of(gram, group.layers("reader")[0].positions)
    result = elimination_module.run_elimination([reader], group.size, width=3, factor=factor)
    assert len(result.order) == group.size - 3 and not np.isin(result.order, first).any()
    assert result.errors[-1] > plain.errors[len(result.order)]


def test_twins_are_removed_once() -> None:
    """Of two equal filters one is removed first, at almost no cost; the second is then worth what it is worth alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).double().eval()
    with torch.no_grad():
        model[0].weight[5], model[0].bias[5] = model[0].weight[0], model[0].bias[0]
    x = torch.randn(8, 3, 9, 9, dtype=torch.float64)
    space = dp.trace(model, x)
    result = eliminate(space.groups[0], collect_grams(model, space, [(x, None)]))
    assert result is not None and result.order[0, 0] in (0, 5)
    assert result.costs[0, 0] < 0.2 * result.costs[1, 0]


def test_layers_with_too_many_features_are_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, space, group, x = made("flatten")
    grams = collect_grams(model, space, [(x, None)])
    monkeypatch.setattr(elimination_module, "LARGEST", 44)
    with caplog.at_level(logging.INFO, logger="deap_prune"):
        assert eliminate(group, grams) is None
    assert "'3' reads 45 features" in caplog.text
    assert eliminate_all(space, grams) == {}


def test_moments_that_are_not_finite_give_no_order() -> None:
    model, space, group, x = made("conv")
    gram = collect_grams(model, space, [(x, None)]).layers["2"]
    result = eliminate(group, Grams({"2": replace(gram, moments=torch.full_like(gram.moments, torch.nan))}))
    assert result is not None and np.isnan(result.scores).any()


def test_widths_of_an_elimination() -> None:
    order = np.array([[2, 5], [0, 3], [1, 4]])
    costs = np.array([[0.1, 0.2], [0.3, 0.1], [0.5, 0.6]])
    result = Elimination(order, costs, np.array([0.0, 0.3, 0.7, 2.0]))
    for width, filters in ((1, {1, 4}), (2, {0, 1, 3, 4}), (3, set(range(6)))):
        assert set(np.flatnonzero(result.keep(width))) == filters
    np.testing.assert_allclose(result.scores, [0.6, 1.2, 0.1, 0.4, 1.3, 0.2])
    for earlier, later in product(order[0], order[1]):
        assert result.scores[earlier] < result.scores[later]
