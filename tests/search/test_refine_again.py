"""A finished run that is resumed with other options of its end: its front is refined anew."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import deap_prune as dp
from deap_prune.cli import app
from deap_prune.errors import ConfigError
from deap_prune.options import SearchOptions
from deap_prune.search.final_front import _apart
from deap_prune.search.finished_run import open_solution
from tests.attack import inputs


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run that its folder can open, refined on few images, although so few bring no gain."""
    end = import_module("deap_prune.search.final_front")
    monkeypatch.setattr(end, "_all_probes_get_worse", lambda *_: False)
    monkeypatch.setattr(end, "_worth", lambda front: 0.0)
    options: dict[str, Any] = {"criteria": ("l1", "l2"), "population": 4, "generations": 1, "finalists": 0}
    options |= {"refine_images": 4, "device": "cpu", "objectives": ("agreement", "flops"), "keep_data": True}
    factory = f"{inputs.__name__}:net"
    result = dp.search(
        inputs.net(), inputs.X[:1], **inputs.DATA, **options, factory=factory, out=tmp_path / "run", progress=False
    )
    assert result.front.settings["refine"]
    return tmp_path / "run"


def test_a_front_is_refined_again_on_more_images(run: Path) -> None:
    before = dp.ParetoFront.load(run)
    history = (run / "history.csv").read_bytes()
    assert before.settings["refine"] and before.settings["refine_images"] == 4
    result = dp.resume(run, refine_images=6, recover=2, progress=False)
    assert result.front.settings["refine_images"] == 6
    assert (run / "history.csv").read_bytes() == history  # nothing is searched again
    first = dp.ParetoFront.load(run)
    assert [s.values for s in first] == [s.values for s in result.front] != [s.values for s in before]
    command = ["resume", str(run), "--set", "search.refine_images=8", "--set", "search.recover=0", "--quiet"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert dp.ParetoFront.load(run).settings["refine_images"] == 8


def test_a_solution_is_opened_as_its_front_was_refined(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("refine_images: 4", "refine_images: 7"))  # as after a kill
    with pytest.warns(UserWarning, match="was changed after the run wrote it"):
        opened = open_solution(run, number=0)
    assert opened.evaluator.settings["refine_images"] == 4


def test_other_options_make_another_run(run: Path) -> None:
    message = r"resume does not change 'seed', only generations, .*refine_images; a new run .* warm_start='.*run'"
    with pytest.raises(ConfigError, match=message):
        dp.resume(run, seed=3)
    for setting, message in (("search.seed=3", "does not change 'seed'"), ("out=x", "options of the search, such as")):
        done = CliRunner().invoke(app, ["resume", str(run), "--set", setting])
        assert done.exit_code == 2 and message in " ".join(done.stderr.split()), done.output


def test_drafts_keep_the_images_they_are_compared_on() -> None:
    assert "refine_images" in SearchOptions().may_change
    assert "refine_images" not in SearchOptions(compare="drafts").may_change
    assert SearchOptions(recover=5, refine_images=9).fingerprint() == SearchOptions().fingerprint()


def test_values_that_differ_are_shown_to_differ() -> None:
    assert _apart(1.4081, 1.4079) == "1.4081, refined 1.4079"
    assert _apart(1.40812, 1.40808) == "1.40812, refined 1.40808"
    assert _apart(0.5, 0.25) == "0.5, refined 0.25"
