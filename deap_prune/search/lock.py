"""One writer a run folder: a lock file with the owner's process and host."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deap_prune.errors import RunError
from deap_prune.files import is_temporary, open_to_append, parse_json, remove_temporary_files, writing

try:
    import fcntl
except ImportError:  # not on this system: the process id decides alone
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
KEPT_MARK = {"written_by": "deap_prune"}
"""Metadata of the safetensors files that a run writes before its config."""


@contextmanager
def locked(folder: Path, *, new: bool) -> Iterator[None]:
    """Be the only writer of a run folder; reading needs no lock.

    The lock of a process that is gone is taken over. Afterwards the lock file is removed, and with it the folder if the
    run has written nothing. An interrupt gets a note that says how to go on.

    Args:
        folder: The run folder; it is made if it is missing.
        new: Whether the folder must be new, empty, or hold only what a run left that was killed before it began.

    Raises:
        RunError: If another process writes to the folder, it can't be made, or it is not new.
    """
    made = _make(folder)
    try:
        descriptor = _acquire(folder)
        try:
            if new:
                check_unused(folder)
            remove_temporary_files(folder)
            yield
        except KeyboardInterrupt as error:
            error.add_note(_how_to_go_on(folder))
            raise
        finally:
            with suppress(OSError):  # a folder that was moved may hold the lock of another run now
                if (folder / LOCK).stat().st_ino == os.fstat(descriptor).st_ino:
                    (folder / LOCK).unlink()
            os.close(descriptor)
    finally:
        for place in made:
            with suppress(OSError):
                place.rmdir()


def _how_to_go_on(folder: Path) -> str:
    if any(folder.glob("checkpoints/*.json")):
        return f"every finished generation is kept; go on with: deap-prune resume {folder} (dp.resume('{folder}', ...))"
    return "no generation was finished, so there is nothing to go on from: run the command again"


def check_unused(folder: Path) -> None:
    """Check that a folder holds no run and no file of the user's.

    Raises:
        RunError: If it does.
    """
    if os.path.lexists(folder) and (not folder.is_dir() or not is_unused(folder)):
        door = f"dp.resume('{folder}', model, example_inputs, calibration=..., validation=...)"
        again = f", replace it (--yes), or go on with its run: deap-prune resume {folder}, or from Python {door}"
        held = again if (folder / "config.yaml").is_file() else ""
        raise RunError(f"'{folder}' exists and is not empty; choose another out folder{held}")


def is_unused(folder: Path) -> bool:
    """Whether a folder holds nothing but what a run leaves that was killed before its config was written."""
    return all(path.name == LOCK or is_temporary(path.name) or _is_kept(path) for path in folder.iterdir())


def _is_kept(path: Path) -> bool:
    """Whether a file holds the weights or data that a run keeps."""
    if path.suffix != ".safetensors" or path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return json.dumps(KEPT_MARK, separators=(",", ":")).encode() in file.read(128)


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents; returns those that were missing, innermost first."""
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return missing


def _acquire(folder: Path) -> int:
    """The descriptor of the lock file, which this process holds."""
    path = folder / LOCK
    while True:
        with writing(path):
            descriptor = open_to_append(path)
        try:
            _check_free(folder, descriptor)
            if os.fstat(descriptor).st_ino != path.stat().st_ino:
                raise FileNotFoundError  # its last owner removed it in between
            owner = {"pid": os.getpid(), "host": socket.gethostname()}
            with writing(path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(owner).encode(), 0)
            return descriptor
        except FileNotFoundError:
            os.close(descriptor)
        except BaseException:
            os.close(descriptor)
            raise


def _check_free(folder: Path, descriptor: int) -> None:
    owner = _owner(descriptor)
    here = owner.get("host") in (None, socket.gethostname())
    claimed = _claim(descriptor)
    if claimed is False or (claimed is None and here and _runs(owner.get("pid"))):
        process = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
        raise RunError(
            f"another run writes to '{folder}' ({process}); wait for its end, or choose another folder (reports and "
            "'slim' may read it meanwhile)"
        )
    if not here:
        raise RunError(
            f"'{folder}' is locked by process {owner.get('pid', '?')} on {owner['host']}, which can't be checked from "
            f"here; if that process has ended, remove '{folder / LOCK}'"
        )


def _claim(descriptor: int) -> bool | None:
    """Take the system's lock of a file: True if it was free, False if another process has it, None if there is none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a disk without such locks
        return None
    return True


def _owner(descriptor: int) -> dict[str, Any]:
    try:
        owner = parse_json(os.pread(descriptor, 4096, 0).decode())
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _runs(pid: Any) -> bool:
    """Whether a process of this host runs."""
    if type(pid) is not int or pid <= 0 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
