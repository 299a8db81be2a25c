"""``algorithm="steady_state"`` in a search: journal, resume, replay, refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import deap_prune as dp
from deap_prune.errors import ConfigError, RunError
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.search import run as run_module
from deap_prune.search.evolve import ray_workers
from tests.helpers.runs import Interruption, files, resume, search
from tests.helpers.scrambled import ScrambledMap

STEADY: dict[str, Any] = {"algorithm": "steady_state", "generations": 2, "refine": False}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Much time of these tests would be the disk's."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def scrambled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any search has workers that return in a random order."""
    monkeypatch.setattr(run_module, "ray_workers", lambda ray, evaluator: ScrambledMap(4))


def no_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Evaluator, masks: dp.Masks) -> Any:
        raise AssertionError("a candidate is evaluated")

    monkeypatch.setattr(Evaluator, "compute", refuse)


@pytest.mark.parametrize("options", [{}, {"objectives": ("agreement",), "max_flops": 0.5}, {"prescreen": 3}])
def test_a_search_is_replayed_from_its_journal(
    options: dict[str, Any], tmp_path: Path, scrambled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Config and journal alone give all files of the run, without an evaluation."""
    search(tmp_path / "run", **STEADY, **options)
    lines = (tmp_path / "run/returns.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 6 * 3 and json.loads(lines[0])["fingerprint"]["settings"]
    (tmp_path / "again").mkdir()
    for name in ("config.yaml", "returns.jsonl", "versions.json"):
        shutil.copy(tmp_path / "run" / name, tmp_path / "again" / name)
    no_evaluations(monkeypatch)
    resume(tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "run")
    for name in ("cache.jsonl", "returns.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_interrupted_within_a_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoint and journal: without workers the run ends as an undisturbed one, nothing is evaluated twice."""
    search(tmp_path / "whole", **STEADY)
    whole = (tmp_path / "whole/cache.jsonl").read_bytes().count(b"\n")
    original, calls = Evaluator.compute, list[int]()

    def counted(self: Evaluator, masks: dp.Masks) -> Any:
        calls.append(1)
        if len(calls) in (4, 14):
            raise Interruption
        return original(self, masks)

    monkeypatch.setattr(Evaluator, "compute", counted)
    with pytest.raises(Interruption):
        search(tmp_path / "run", **STEADY)
    with pytest.raises(Interruption):
        resume(tmp_path / "run")
    resume(tmp_path / "run")
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    for name in ("cache.jsonl", "returns.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(calls) == whole + 2


def test_a_journal_without_checkpoint_belongs_to_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search(tmp_path / "run", **STEADY)
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(RunError, match="was run with other calibration data"):
        resume(tmp_path / "run", calibration=labelled_images_of_others())
    lost = tmp_path / "lost"
    search(lost, **STEADY)
    (lost / "returns.jsonl").unlink()
    with pytest.warns(UserWarning, match="is lost or damaged: the run goes on from its checkpoint"):
        resume(lost, generations=3)


def labelled_images_of_others() -> Any:
    from tests.helpers.runs import images

    return images(7)


def test_stops_in_a_search() -> None:
    """max_seconds ends a run, and so does patience."""
    result = search(None, **{**STEADY, "generations": 500, "max_seconds": 0.01})
    assert len(result.logbook) == 1
    result = search(None, **{**STEADY, "generations": 500, "patience": 1, "population": 2})
    assert 1 < len(result.logbook) < 500


def test_options_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="steady_state with one objective is ageing evolution, which takes no prescr"):
        search(None, **STEADY, prescreen=2, objectives=("agreement",), max_flops=0.5)
    evaluator: Any = None
    with pytest.raises(ConfigError, match="unknown option 'worker' of Ray workers; did you mean 'workers'"):
        search(None, **STEADY, ray="local,worker=2")
    with pytest.raises(ConfigError, match="ray has workers='many'; give a number, such as 'auto,workers=64"):
        search(None, **STEADY, ray="local, workers=many")
    with ray_workers(None, evaluator) as workers:
        assert workers is None
