"""The front's latencies are measured last; a finished search does not depend on them."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

import deap_prune.search.latency_check  # noqa: F401
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.search.latency_check import check_front
from deap_prune.structure.masks import Masks
from deap_prune.task import Task
from tests.helpers.latency import synthetic_table
from tests.helpers.pruning import prepared


def test_a_runtime_that_fails_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = prepared("residual")
    solution = Solution({"flops": 0.5}, Masks.random(case.space, keep=0.5, seed=0), 1, 1)
    front = ParetoFront.of([solution], {"flops": -1.0}, {"flops": 2, "params": 2})
    task = Task(case.model, case.inputs, [], [])
    broken = Mock(side_effect=OSError("no such runtime"))
    monkeypatch.setattr(sys.modules["deap_prune.search.latency_check"], "check_latency", broken)
    with pytest.warns(UserWarning, match="latencies of the front were not measured: OSError: no such runtime"):
        check = check_front(front, task, case.space, synthetic_table(case.space), tmp_path, deadline=None, shown=False)
    assert check is None and broken.called and not [*tmp_path.iterdir()]
