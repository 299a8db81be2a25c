"""What a run depends on: each part that differs is refused by name, and what is the same has the same fingerprint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.criteria.registry import CRITERIA
from deap_prune.errors import RunError
from deap_prune.evolution.compatibility import check_same_task
from deap_prune.fitness.objectives import OBJECTIVES
from deap_prune.options import SearchOptions
from deap_prune.search.describe import code_of
from deap_prune.search.fingerprint import fingerprint
from deap_prune.task import Task

X, Y = torch.arange(96.0).reshape(4, 3, 2, 4), torch.arange(4)


class Block(nn.Module):
    """A network of the user's."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.act, self.scale = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x))) * self.scale


class Other(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x))) * self.scale


def with_(name: str, value: Any) -> Block:
    block = Block()
    part, _, attribute = name.rpartition(".")
    setattr(block.get_submodule(part), attribute, value)
    return block


def smoothed(amount: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=amount)


class Meta:
    """A plain object in a batch; its repr holds its address."""

    def __init__(self, name: str = "a") -> None:
        self.name = name


def task(**changes: Any) -> Task:
    given: dict[str, Any] = {"model": Block(), "example_inputs": X[:1], "calibration": (X, Y), "validation": (X + 1, Y)}
    return Task(**{**given, **changes})


def differs(first: Task, second: Task) -> str:
    """The message of the refusal; empty if there is none."""
    options = SearchOptions(criteria=("l1",), device="cpu")
    try:
        check_same_task(fingerprint(first, options), fingerprint(second, options), Path("run"))
    except RunError as error:
        return str(error)
    return ""


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "weights": ({}, {"model": with_("conv.bias", nn.Parameter(torch.ones(4)))}, r"with another model \["),
    "activation": ({}, {"model": with_("act", nn.GELU())}, r"same weights: act 'ReLU\(.*, now .GELU\("),
    "stride": (
        {},
        {"model": with_("conv.stride", (2, 2))},
        r"same weights: conv 'Conv2d\(.*now 'Conv2d\(.*stride=\(2, 2",
    ),
    "eps": ({}, {"model": with_("norm.eps", 1.0)}, "same weights: norm '"),
    "class": ({}, {"model": Other()}, r"same weights: the network 'Block\(.*, now 'Other\("),
    "attribute": ({}, {"model": Block(2.0)}, "same weights: the network '"),
    "function in an attribute": ({"model": with_("how", F.relu)}, {"model": with_("how", F.gelu)}, "same weights: the"),
    "loss forgotten": ({"loss": smoothed(0.5)}, {}, "other functions: loss '.*lambda.*, now 'none'"),
    "loss": ({"loss": smoothed(0.5)}, {"loss": smoothed(0.1)}, "other functions: loss "),
    "loss module": ({"loss": nn.CrossEntropyLoss()}, {"loss": nn.CrossEntropyLoss(label_smoothing=0.5)}, "loss "),
    "loss partial": ({"loss": partial(F.mse_loss)}, {"loss": partial(F.mse_loss, reduction="sum")}, "loss "),
    "forward": (
        {"forward": lambda model, batch: (model(batch[0]), batch[1])},
        {"forward": lambda model, batch: (model(batch[0] * 3), batch[1])},
        "other functions: forward ",
    ),
    "calibration": ({}, {"calibration": (X + 1e-3, Y)}, r"with other calibration data \(.*\) \["),
    "shape of the same bytes": ({}, {"calibration": (X.reshape(4, 3, 4, 2), Y)}, "other calibration data"),
    "batch moved": (
        {"calibration": [(X[:2], Y[:2]), (X[2:], Y[2:])], "validation": [(X, Y)]},
        {"calibration": [(X[:2], Y[:2])], "validation": [(X[2:], Y[2:]), (X, Y)]},
        "other calibration data .* and other validation data",
    ),
    "array": (
        {"validation": [(X, Y, np.arange(5000.0))]},
        {"validation": [(X, Y, np.where(np.arange(5000) == 2500, -1.0, np.arange(5000.0)))]},
        "other validation data",
    ),
    "object": ({"validation": [(X, Y, Meta("a"))]}, {"validation": [(X, Y, Meta("b"))]}, "other validation data"),
    "example": ({}, {"example_inputs": torch.zeros(1, 3, 9, 9)}, r"example inputs \[.*2, 4.*now .*9, 9"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_differs_is_named(name: str) -> None:
    first, second, message = REFUSED[name]
    assert differs(task(**first), task(**first)) == ""
    assert re.search(message, differs(task(**first), task(**second)))


def test_the_same_from_other_objects() -> None:
    """Objects whose repr holds an address, functions made again, lists for tuples."""
    one = task(calibration=[(X, Y, Meta())], loss=smoothed(0.5))
    two = task(calibration=([X.clone(), Y.clone(), Meta()],), loss=smoothed(0.5))
    assert differs(one, two) == ""


def test_criteria_and_objectives_of_the_same_name_with_other_code() -> None:
    def prints() -> dict[str, str]:
        return fingerprint(task(), SearchOptions(criteria=("mine",), objectives=("own", "flops"), device="cpu"))

    def register(sign: int) -> None:
        @dp.register_criterion("mine", needs="weight")
        def mine(weight: Tensor) -> Tensor:
            return sign * weight.abs().amax(1)

        @dp.register_objective("own", maximise=sign > 0, worst=0.0)
        def own(outputs: Tensor, targets: Tensor, dense: None) -> Tensor:
            return outputs.mean(1)

    seen = []
    for sign in (1, 1, -1):
        register(sign)
        try:
            seen.append(prints())
        finally:
            CRITERIA.remove("mine")
            OBJECTIVES.remove("own")
    check_same_task(seen[0], seen[1], Path("run"))
    with pytest.raises(RunError, match=r"other functions: criterion mine .* objective own "):
        check_same_task(seen[0], seen[2], Path("run"))


def test_autocast_and_default_dtype() -> None:
    options = SearchOptions(criteria=("l1",), device="cpu")
    plain = fingerprint(task(), options)
    with torch.autocast("cpu", torch.bfloat16):
        cast = fingerprint(task(), options)
    with pytest.raises(RunError, match=r"settings of torch: autocast 'torch.bfloat16', now 'off'"):
        check_same_task(cast, plain, Path("run"))


def test_other_versions_are_a_warning() -> None:
    now = fingerprint(task(), SearchOptions(criteria=("l1",), device="cpu"))
    before = {**now, "environment": now["environment"].replace('"torch": "', '"torch": "1.')}
    with pytest.warns(UserWarning, match=r"was begun with torch '1\..*, now '.*last bits"):
        check_same_task(before, now, Path("run"))
    older = {name: text for name, text in now.items() if name in ("settings", "model")}
    with pytest.warns(UserWarning, match="begun by an earlier version, which did not store its code, functions"):
        check_same_task(older, now, Path("run"))


def test_a_setting_that_came_later_is_a_warning() -> None:
    """A run of an earlier version goes on; what that version did store is compared."""
    now = fingerprint(task(), SearchOptions(criteria=("l1",), device="cpu"))
    settings = json.loads(now["settings"])
    del settings["refine_memory"]
    earlier = {**now, "settings": json.dumps(settings, sort_keys=True)}
    with pytest.warns(UserWarning, match="did not store its setting refine_memory"):
        check_same_task(earlier, now, Path("run"))
    other = {**now, "settings": json.dumps({**settings, "seed": 7}, sort_keys=True)}
    with pytest.raises(RunError, match="other settings: seed 7, now 0; go on"):
        check_same_task(other, now, Path("run"))


def test_code_of_another_python_is_not_compared() -> None:
    now = fingerprint(task(loss=smoothed(0.5)), SearchOptions(criteria=("l1",), device="cpu"))
    version = f"python {sys.version_info.major}.{sys.version_info.minor}, "
    before = {name: text.replace(version, "python 3.1, abc") for name, text in now.items()}
    check_same_task({**before, "environment": now["environment"]}, now, Path("run"))


def test_the_same_in_another_process() -> None:
    code = (
        "import sys; sys.path[:0] = ['.']\n"
        "from tests.search.test_fingerprint import *\n"
        "made = task(loss=smoothed(0.5), calibration=[(X, Y, {'a', 'b', 'c'}, Meta())])\n"
        "print(fingerprint(made, SearchOptions(criteria=('l1',), device='cpu')))"
    )
    root = Path(__file__).parents[2]
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            cwd=root,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


def test_code_with_other_comments_is_the_same_code() -> None:
    texts = ("def f(x):\n    'Old.'\n    return x + 1", "def f(x):\n    'New.'\n    # why\n\n    return x + 1")
    made = []
    for text in texts:
        scope: dict[str, Any] = {"__name__": "own"}
        exec(text, scope)
        made.append(code_of(scope["f"]))
    assert made[0] == made[1]
