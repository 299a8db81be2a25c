"""The front in a run folder is that of the run: the front of another run is refused, also where its masks are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import deap_prune as dp
from deap_prune.errors import RunError
from deap_prune.files import SEAL
from tests.helpers.runs import images, resume, search


def test_the_front_of_another_run_is_refused(tmp_path: Path) -> None:
    """Two runs whose validation images differ: a front moved with its masks would bring values of other images."""
    own, other = tmp_path / "own", tmp_path / "other"
    small = {"generations": 0, "refine": False}
    search(own, **small)
    search(other, validation=images(2), **small)
    before = (own / "front.json").read_bytes()
    for masks in (other / "masks").iterdir():
        shutil.copy(masks, own / "masks" / masks.name)
    shutil.copy(other / "front.json", own / "front.json")
    with pytest.raises(RunError, match=r"the front of another run .*resume.* writes it again"):
        dp.ParetoFront.load(own)
    resume(own)
    assert (own / "front.json").read_bytes() == before
    assert len(dp.ParetoFront.load(own))


def test_fronts_of_earlier_versions_and_saved_elsewhere_are_read(tmp_path: Path) -> None:
    result = search(tmp_path / "run", generations=0, refine=False)
    path = tmp_path / "run" / "front.json"
    content = json.loads(path.read_text())
    assert content.pop("run") and content.pop(SEAL)
    path.write_text(json.dumps(content))
    assert len(dp.ParetoFront.load(tmp_path / "run")) == len(result.front)
    result.front.save(tmp_path / "elsewhere")
    assert "run" not in json.loads((tmp_path / "elsewhere" / "front.json").read_text())
    assert len(dp.ParetoFront.load(tmp_path / "elsewhere")) == len(result.front)
