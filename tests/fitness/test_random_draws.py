"""Networks and forward functions that draw random numbers: values depend on the masks alone, and runs resume."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import DataError, PruneWarning
from deap_prune.randomness import random_states
from tests.helpers.bodies import conv_bn
from tests.helpers.runs import Interruption, at


class Dropped(nn.Module):
    """Dropout that stays on in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 8), nn.ReLU(), conv_bn(8, 8), nn.ReLU())
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.dropout(self.body(x).mean((2, 3)), 0.3))


def plain() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


def noisy(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Noise from the three global generators, as in the training of a denoiser."""
    x, targets = batch
    scale = 1 + 0.1 * random.random() + 0.1 * float(np.random.rand())
    return model(x + 0.3 * scale * torch.randn_like(x)), targets


def images(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(30, 3, 6, 6, generator=generator), torch.randint(0, 4, (30,), generator=generator)


CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {"dropout": (Dropped, None), "noise": (plain, noisy)}
HOW: dict[str, Any] = {"objectives": ("loss", "agreement"), "device": "cpu", "batch_size": 12}


def network(case: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CASES[case][0]().eval()


def evaluator(case: str, model: nn.Module, space: dp.PruningSpace, **options: Any) -> dp.Evaluator:
    data = {"calibration": images(0), "validation": images(1), "forward": CASES[case][1]}
    with pytest.warns(PruneWarning, match="draws random numbers in evaluation"):
        return dp.Evaluator(model, space, **data, **HOW, **options)


@pytest.mark.parametrize("how", [{}, {"recalibrate": "data"}, {"refine": True, "refine_images": 30, "recover": 2}])
@pytest.mark.parametrize("case", CASES)
def test_values_depend_on_the_masks_alone(case: str, how: dict[str, Any]) -> None:
    model = network(case)
    space = dp.trace(model, images(0)[0][:1])
    first, second = (dp.Masks.random(space, keep=0.6, seed=seed) for seed in (0, 1))
    evaluate, again = (evaluator(case, model, space, **how) for _ in range(2))
    before = random_states()
    values = evaluate.many([first, second])
    assert random_states() == before
    torch.manual_seed(7)
    torch.rand(3)
    assert again.many([second, first]) == values[::-1]
    assert evaluate.compute(first) == values[0]
    weights = [small.state_dict() for small in (evaluate.slim(first), again.slim(first))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(case: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"calibration": images(0), "validation": images(1), "forward": CASES[case][1]}
    options: dict[str, Any] = {"population": 4, "generations": 2, "finalists": 1, "refine_images": 30, "device": "cpu"}
    options |= {"criteria": ("l1", "taylor_gate", "mean_activation"), "objectives": ("loss", "flops")}
    example = images(0)[0][:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PruneWarning)
        dp.search(network(case), example, **given, **options, out=tmp_path / "whole", progress=False)
        with pytest.raises(Interruption):
            callbacks = [at(1)]
            dp.search(
                network(case), example, **given, **options, out=tmp_path / "cut", callbacks=callbacks, progress=False
            )
        torch.rand(5)
        dp.resume(tmp_path / "cut", network(case), example, **given, progress=False)
    for name in ("front.json", "history.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_draws_of_a_generator_of_its_own_are_refused() -> None:
    model, own = network("noise"), torch.Generator().manual_seed(0)
    space = dp.trace(model, images(0)[0][:1])

    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        return model(batch[0] + torch.randn(batch[0].shape, generator=own)), batch[1]

    with pytest.raises(DataError, match=r"runs on the same batch again.*global generators"):
        dp.Evaluator(model, space, calibration=images(0), validation=images(1), forward=forward, **HOW)


def test_networks_without_draws_give_no_warning() -> None:
    model = network("noise")
    space = dp.trace(model, images(0)[0][:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dp.Evaluator(model, space, calibration=images(0), validation=images(1), **HOW)


def test_scores_do_not_depend_on_what_was_drawn_before() -> None:
    model = network("noise")
    space = dp.trace(model, images(0)[0][:1])
    tables = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        table = dp.score(model, space, images(0), criteria=("taylor_gate", "mean_activation"), forward=noisy)
        tables.append(table.scores)
    for group, scores in tables[0].items():
        assert all(np.array_equal(values, tables[1][group][name]) for name, values in scores.items())
