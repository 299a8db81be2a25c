"""Files: written in one step, with errors of our own; nothing is touched that the package did not write."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

import deap_prune as dp
from deap_prune import files
from deap_prune.errors import RunError
from tests.evolution.test_front import front_of, solution


def test_files_of_the_user_stay(tmp_path: Path) -> None:
    """Only masks that the previous front.json names are removed, however much a name looks like one."""
    masks = tmp_path / "masks"
    masks.mkdir()
    foreign = ["label.png", "0000-aaaaaaaa.json", "notes", "0001.json"]
    for name in foreign:
        (masks / name).write_text("mine")
    front_of(solution(0.6, 0.2), solution(0.9, 0.4)).save(tmp_path)
    assert len(list(masks.iterdir())) == len(foreign) + 2
    front_of(solution(0.7, 0.3)).save(tmp_path)
    assert len(list(masks.iterdir())) == len(foreign) + 1
    assert [(masks / name).read_text() for name in foreign] == ["mine"] * 4


def test_a_front_json_of_something_else_removes_nothing(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    (tmp_path / "keep.json").write_text("mine")
    (masks / "keep.json").write_text("mine")
    text = '{"solutions": [{"masks": "masks/keep.json"}, {"masks": "../keep.json"}, {"masks": "keep.json"}]}'
    (tmp_path / "front.json").write_text(text)
    front_of(solution(0.7, 0.3)).save(tmp_path)
    assert (tmp_path / "keep.json").read_text() == (masks / "keep.json").read_text() == "mine"


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/a.txt").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "masks").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match=r"run/masks' is a link; files behind links are not touched"):
        front_of(solution(0.7, 0.3)).save(run)
    (run / "masks").unlink()
    (run / "front.json").symlink_to(tmp_path / "precious/a.txt")
    front_of(solution(0.7, 0.3)).save(run)
    assert (tmp_path / "precious/a.txt").read_text() == "mine" and not (run / "front.json").is_symlink()
    assert len(dp.ParetoFront.load(run)) == 1
    (tmp_path / "linked").symlink_to(run)
    front_of(solution(0.7, 0.3)).save(tmp_path / "linked")  # the user's own name for the folder


def test_masks_of_an_unfinished_save_are_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = files.write_text

    def crash(path: Path, text: str) -> None:
        if path.name == "front.csv":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr("deap_prune.evolution.front_files.write_text", crash)
    with pytest.raises(KeyboardInterrupt):
        front_of(solution(0.6, 0.2), solution(0.9, 0.3)).save(tmp_path)
    monkeypatch.undo()
    front_of(solution(0.7, 0.1)).save(tmp_path)
    assert len(list((tmp_path / "masks").iterdir())) == 1


def test_mode_is_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_temporary_names_can_not_be_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "a.tmp").symlink_to(tmp_path / "victim")
    files.write_text(tmp_path / "a", "x")
    assert (tmp_path / "victim").read_text() == "mine" and (tmp_path / "a").read_text() == "x"
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 16)
    (tmp_path / f".b.{'0' * 16}.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(RunError, match=r"can't write '.*b': File exists"):
        files.write_text(tmp_path / "b", "x")
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "No space left on device; .* were kept: free some space on the disk, then run the command"),
        (errno.EROFS, "Read-only file system; .* make the disk writable"),
        (errno.EMFILE, "Too many open files; .* raise the limit"),
        (errno.EIO, "Input/output error; .* check the disk"),
    ],
)
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_errors_of_the_system_are_ours(
    call: str, code: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("old")

    def fails(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(RunError, match=f"can't write '.*a': {advice}"):
        files.write_text(tmp_path / "a", "new")
    monkeypatch.undo()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old"}


def test_a_folder_that_can_not_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network disks refuse it; the file itself is synced."""
    sync = os.fsync

    def no_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", no_folders)
    files.write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="no regular file"):
            files.read_text(path)
    (tmp_path / "a").write_text("x" * 100)
    with pytest.raises(ValueError, match="it has 100 bytes; at most 10 are read"):
        files.read_text(tmp_path / "a", most=10)
