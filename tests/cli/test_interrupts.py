"""Signals that ask a command to stop: one line that says how to go on, and the signal's exit code."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deap_prune.cli import app, runs
from deap_prune.errors import RunError
from deap_prune.search.lock import locked
from deap_prune.search.run_names import remove_run

CONFIG = "model: {factory: 'torch.nn:ReLU'}\ndata: {format: digits}\n"


@pytest.mark.parametrize(("number", "generations"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 0)])
def test_interrupts_say_how_to_go_on(
    number: signal.Signals, generations: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def interrupted(*_: object, **__: object) -> None:
        with locked(out, new=True):
            (out / "checkpoints").mkdir()
            for generation in range(generations):
                (out / f"checkpoints/{generation:06d}.json").write_text("")
            os.kill(os.getpid(), number)

    monkeypatch.setattr(runs, "start", interrupted)
    before = signal.getsignal(number)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    result = CliRunner().invoke(app, ["search", str(config), "--out", str(out)])
    assert result.exit_code == 128 + number
    text = " ".join(result.output.split())
    assert text.startswith("interrupted:")
    assert ("deap-prune resume" in text) == bool(generations)
    assert ("run the command again" in text) == (not generations)
    assert signal.getsignal(number) is before
    assert not (out / "run.lock").exists()


def test_errors_of_the_operating_system_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "start", full)
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    result = CliRunner().invoke(app, ["search", str(config), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "No space left on device; what was finished is kept" in " ".join(result.output.split())


def test_yes_removes_runs_and_nothing_else(tmp_path: Path) -> None:
    written = [
        "config.yaml",
        "front.json",
        "masks/0000-01234567.json",
        "checkpoints/000001.json",
        "report/a.png",
        "export/network.int8.onnx",
    ]
    for name in [*written, "notes.txt"]:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("")
    with pytest.raises(Exception, match=r"notes.txt' is no file of a run, so --yes removes nothing"):
        remove_run(tmp_path / "run")
    assert all((tmp_path / "run" / name).is_file() for name in [*written, "notes.txt"])
    (tmp_path / "run/notes.txt").unlink()
    with locked(tmp_path / "run", new=False), pytest.raises(RunError, match="another run writes to"):
        remove_run(tmp_path / "run")
    assert all((tmp_path / "run" / name).is_file() for name in written)
    remove_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
