"""Calibration and validation data without labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import deap_prune as dp
from deap_prune.errors import DataError

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FORMS: dict[str, Any] = {
    "tensor": IMAGES,
    "batches": [IMAGES[:8], IMAGES[8:16], IMAGES[16:]],
    "loader": DataLoader(IMAGES, batch_size=8),
    "loader of a TensorDataset": DataLoader(TensorDataset(IMAGES), batch_size=8),
}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(6, 4)).eval()


@pytest.fixture(scope="module")
def space(network: nn.Module) -> dp.PruningSpace:
    return dp.trace(network, IMAGES[:1])


@pytest.mark.parametrize("form", FORMS)
def test_scores_need_no_labels(network: nn.Module, space: dp.PruningSpace, form: str) -> None:
    chosen = {"criteria": ("mean_activation", "apoz"), "labels": False}
    scores = dp.score(network, space, FORMS[form], **chosen)
    labelled = dp.score(network, space, (IMAGES, torch.zeros(24, dtype=torch.int64)), **chosen)
    for group in space.groups:
        for name in labelled[group.name]:
            assert np.allclose(scores[group.name][name], labelled[group.name][name], rtol=1e-5)


def test_gradient_criteria_ask_for_labels(network: nn.Module, space: dp.PruningSpace) -> None:
    with pytest.raises(DataError, match=r"calibration data: .*labels=False to do without"):
        dp.score(network, space, FORMS["loader"], criteria=("group_fisher",))
    scores = dp.score(network, space, FORMS["loader"], criteria=("group_fisher",), labels=False)
    assert np.isfinite(scores["0"]["group_fisher"]).all()


def test_search_without_labels(network: nn.Module) -> None:
    options: dict[str, Any] = {"labels": False, "objectives": ("agreement", "flops"), "criteria": ("l1", "l2")}
    options |= {"population": 4, "generations": 1, "progress": False, "n_clusters": 1}
    data = FORMS["loader"]
    result = dp.search(network, IMAGES[:1], calibration=data, validation=FORMS["tensor"], **options)
    assert result.front and all(np.isfinite(solution.values["agreement"]) for solution in result.front)


def test_a_batch_of_another_form_names_the_data(network: nn.Module, space: dp.PruningSpace) -> None:
    triples = [(IMAGES, torch.zeros(24), torch.zeros(24))]
    with pytest.raises(DataError, match=r"calibration: a batch is a tuple of 3 entries; .* \(forward=\)"):
        dp.score(network, space, triples, criteria=("mean_activation",))
    with pytest.raises(DataError, match="calibration is empty"):
        dp.score(network, space, IMAGES[:0], criteria=("mean_activation",), labels=False)
