"""A small search that tests interrupt, resume and compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deap_prune as dp
from tests.helpers.networks import NETWORKS

CRITERIA = ("l1", "fpgm", "bn_scale", "taylor_gate")
OPTIONS: dict[str, Any] = {"criteria": CRITERIA, "population": 6, "generations": 4, "finalists": 1}
FILES = ("front.json", "front.csv", "history.csv", "config.yaml")


def problem() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return NETWORKS["residual"]()


def images(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(30, 3, 8, 8, generator=generator), torch.randint(0, 5, (30,), generator=generator)


def search(out: Path | None, **options: Any) -> dp.Result:
    model, example = problem()
    data = {"calibration": images(0), "validation": images(1), "device": "cpu", "progress": False}
    return dp.search(model, example, out=out, **{**OPTIONS, **data, **options})


def resume(out: Path, model: nn.Module | None = None, **options: Any) -> dp.Result:
    data = {"calibration": images(0), "validation": images(1), "progress": False}
    return dp.resume(out, model or problem()[0], problem()[1], **{**data, **options})


class Interruption(Exception):
    """What ends a run."""


def at(generation: int) -> Callable[[dp.algorithms.Generation], None]:
    def stop(state: dp.algorithms.Generation) -> None:
        if state.number == generation:
            raise Interruption

    return stop


def interrupted(out: Path, generation: int = 3, **options: Any) -> None:
    with pytest.raises(Interruption):
        search(out, callbacks=[at(generation)], **options)


def files(folder: Path) -> dict[str, bytes]:
    """Everything that a run leaves, but for pictures and checkpoints."""
    masks = sorted(str(p.relative_to(folder)) for p in (folder / "masks").iterdir())
    return {name: (folder / name).read_bytes() for name in (*FILES, *masks)}
