"""One writer a folder: who comes second gets an error, and what a dead process left is taken over."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from deap_prune.errors import RunError
from deap_prune.search.lock import LOCK, locked
from tests.helpers import forked


def test_the_second_writer_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "a/run"
    with locked(run, new=True):
        owner = json.loads((run / LOCK).read_text())
        assert owner == {"pid": os.getpid(), "host": socket.gethostname()}
        message = rf"another run writes to '.*run' \(process {os.getpid()} on .*\); wait for its end"
        for new in (True, False):
            with pytest.raises(RunError, match=message), locked(run, new=new):
                pass
        (run / "config.yaml").write_text("{}")
    assert [p.name for p in run.iterdir()] == ["config.yaml"]
    with pytest.raises(RunError, match="exists and is not empty"), locked(run, new=True):
        pass


def test_nothing_is_left_where_nothing_was_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad input"), locked(tmp_path / "a/b", new=True):
        raise ValueError("bad input")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    def die() -> None:
        with locked(tmp_path / "run", new=True):
            (tmp_path / "run" / (".config.yaml." + "0" * 16 + ".tmp")).write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked.exit_code(die, tmp_path / "errors") == -signal.SIGKILL
    assert len(list((tmp_path / "run").iterdir())) == 2
    with locked(tmp_path / "run", new=True):
        assert [p.name for p in (tmp_path / "run").iterdir()] == [LOCK]


def test_a_lock_of_another_host_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    message = r"locked by process 7 on elsewhere, .* remove '.*run.lock'"
    with pytest.raises(RunError, match=message), locked(tmp_path, new=True):
        pass
    assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    "pid", [2**22 + 5, 10**30, -1, "x", None, os.getpid()], ids=["none", "huge", "negative", "text", "null", "own"]
)
def test_without_locks_of_the_system_the_process_id_decides(
    pid: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[locked.__module__], "fcntl", None)
    (tmp_path / LOCK).write_text(json.dumps({"pid": pid, "host": socket.gethostname()}))
    with locked(tmp_path, new=True):
        pass
    (tmp_path / LOCK).write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
    with pytest.raises(RunError, match="another run writes"), locked(tmp_path, new=True):
        pass


def test_a_link_as_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match=r"can't write '.*run.lock'"), locked(tmp_path / "run", new=True):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
