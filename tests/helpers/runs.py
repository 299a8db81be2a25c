"""Small searches that tests interrupt, resume and compare."""

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
OPTIONS: dict[str, Any] = {"criteria": CRITERIA, "population": 6, "generations": 4, "finalists": 0, "select": None}
FILES = ("front.json", "front.csv", "history.csv", "config.yaml")


def problem() -> tuple[nn.Module, Tensor]:
    """An untrained network, and example inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return NETWORKS["residual"]()


# ------------------------------------------------------------------ random labels
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


# ------------------------------------------------------------------ labels of the dense network
def labelled_images(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Images with the labels that the dense network gives them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    with torch.no_grad():
        return x, problem()[0].eval()(x).argmax(1)


def labelled_data() -> dict[str, Any]:
    return {"calibration": labelled_images(0, 30), "validation": labelled_images(1, 200), "progress": False}


def labelled_search(out: Path | None = None, **options: Any) -> dp.Result:
    fixed = {"generations": 3, "finalists": 1, "select": "sequential", "batch_size": 40, "device": "cpu"}
    return dp.search(*problem(), out=out, **{**OPTIONS, **fixed, **labelled_data(), **options})


# ------------------------------------------------------------------ interruptions
class Interruption(Exception):
    """Ends a run."""


def at(generation: int) -> Callable[[dp.algorithms.Generation], None]:
    """A callback that interrupts the run after a generation."""

    def stop(state: dp.algorithms.Generation) -> None:
        if state.number == generation:
            raise Interruption

    return stop


def interrupted(out: Path, generation: int = 3, **options: Any) -> None:
    with pytest.raises(Interruption):
        search(out, callbacks=[at(generation)], **options)


def files(folder: Path) -> dict[str, bytes]:
    """The content of a run's files, without pictures and checkpoints."""
    masks = sorted(str(p.relative_to(folder)) for p in (folder / "masks").iterdir())
    return {name: (folder / name).read_bytes() for name in (*FILES, *masks)}
