"""Fixtures: a trained network on real images, shared by all tests, and small data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

import deap_prune as dp
from deap_prune import zoo
from deap_prune.data import Splits, load_data

torch.set_num_threads(1)
settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

CRITERIA = ("l1", "l2", "fpgm", "bn_scale", "taylor_gate", "taylor_weight", "mean_activation", "apoz")


@dataclass(frozen=True)
class Digits:
    """A digits network, trained for a few seconds, with its images, scores and clusters."""

    model: nn.Module
    splits: Splits

    @cached_property
    def calibration(self) -> tuple[Tensor, Tensor]:
        return self.splits.calibration[0][:100], self.splits.calibration[1][:100]

    @cached_property
    def validation(self) -> tuple[Tensor, Tensor]:
        return self.splits.validation[0][:200], self.splits.validation[1][:200]

    @cached_property
    def example(self) -> Tensor:
        return self.splits.calibration[0][:1]

    @cached_property
    def space(self) -> dp.PruningSpace:
        return dp.trace(self.model, self.example)

    @cached_property
    def scores(self) -> dp.ScoreTable:
        return dp.score(self.model, self.space, self.calibration, criteria=CRITERIA)

    @cached_property
    def clusters(self) -> dp.CriteriaClusters:
        return dp.cluster(self.scores, n_clusters=3)

    def genome(self, **options: object) -> dp.Genome:
        return dp.Genome(self.space, self.scores, self.clusters, **options)  # type: ignore[arg-type]

    def evaluator(self, **options: object) -> dp.Evaluator:
        data = {"calibration": self.calibration, "validation": self.validation, "device": "cpu"}
        return dp.Evaluator(self.model, self.space, **{**data, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def digits() -> Digits:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.digits_resnet()
    splits = load_data(format="digits")
    recipe = dp.Recipe(lr=0.1, batch_size=64)
    dp.finetune(model, splits.train, epochs=4, recipe=recipe, device="cpu", progress=False)
    digits = Digits(model, splits)
    assert dp.accuracy(model, digits.validation, device="cpu") > 0.9
    return digits


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture
def two_classes() -> tuple[Tensor, Tensor]:
    """Images that are brighter on the left (label 0) or on the right (label 1)."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(2, (101,), generator=generator)
    inputs = torch.randn(101, 1, 4, 4, generator=generator)
    inputs[..., :2] += (1 - targets).float()[:, None, None, None]
    inputs[..., 2:] += targets.float()[:, None, None, None]
    return inputs, targets


@pytest.fixture
def left_brightness(two_classes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Images, and the brightness of their left half, shape (N, 1)."""
    return two_classes[0], two_classes[0][..., :2].mean((1, 2, 3)).unsqueeze(1)
