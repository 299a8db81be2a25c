"""Files of a run: atomic writes that follow no link, and reads that survive damaged or hostile files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deap_prune.errors import RunError

MOST_BYTES = 256 * 2**20
"""Size limit of a JSON file of a run."""

SEAL = "sha256"
"""Name of the checksum in a JSON object."""

_HEADER = re.compile(r"# written by (?:a run|run ([0-9a-f]{64})); sha256 of the lines below: ([0-9a-f]{64})\n")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.EBADF}
_ADVICE = {
    errno.ENOSPC: "free some space on the disk",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "make the disk writable, or copy the folder to one that is",
    errno.EACCES: "get the right to write there, or copy the folder to where you have it",
    errno.EPERM: "get the right to write there, or copy the folder to where you have it",
    errno.EMFILE: "close files or raise the limit (ulimit -n)",
    errno.ENFILE: "close files or raise the system's limit",
    errno.EIO: "check the disk",
    errno.ENOENT: "put the folder back where it was",
    errno.ELOOP: "replace the link by a file or folder",
    errno.ENOTDIR: "choose another folder",
}


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: a crash or an error leaves either the old file or the new one.

    The data goes to a new temporary file in the same folder, is synced to the disk, and is then renamed. A link of that
    name is replaced, not followed. The mode of a new file is the umask's.

    Raises:
        RunError: If the operating system refuses (disk full, read-only, too many open files, ...), or the path has no
            file name.
    """
    if not path.name:
        raise RunError(f"can't write '{path}': it is a folder; give the name of a file")
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    with writing(path):
        try:
            with os.fdopen(_create(temporary), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """Check that a file can be written, before the work whose result it is to hold; its folder is made.

    Raises:
        RunError: If it can't.
    """
    if path.is_dir():
        raise RunError(f"can't write '{path}': it is a folder; give the name of a file")
    make_folder(path.parent, may_be_link=True)
    trial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    with writing(path):
        os.close(_create(trial))
        trial.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into one that says what was being written, what is safe and how to go on.

    Raises:
        RunError: If the body raises an OSError.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "remove the cause")
        raise RunError(
            f"can't write '{path}': {error.strerror or error}; the files written before are whole and were kept: "
            f"{advice}, then run the command again (a search that has begun: deap-prune resume, or dp.resume)"
        ) from error


def make_folder(folder: Path, *, may_be_link: bool = False) -> None:
    """Make a folder. For sub-folders of a run links are refused, since files behind them are not the run's.

    Raises:
        RunError: If the name is a link or a file, or the folder can't be made.
    """
    if folder.is_symlink() and not may_be_link:
        raise RunError(f"'{folder}' is a link; files behind links are not touched: put a folder there")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def is_file(path: Path) -> bool:
    """Whether a path is that of a file; False for names that the operating system does not take."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_temporary(name: str) -> bool:
    """Whether a file's name is one of the temporary files of :func:`write_bytes`."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files that a killed run left in a folder and its own sub-folders (no links)."""
    for place in (folder, folder / "masks", folder / "checkpoints"):
        if place.is_dir() and (place == folder or not place.is_symlink()):
            for path in [p for p in place.iterdir() if is_temporary(p.name)]:
                remove_file(path)


def remove_file(path: Path) -> None:
    """Remove a regular file; links, folders and names that are gone are left alone."""
    with suppress(FileNotFoundError, PermissionError):
        if stat.S_ISREG(path.lstat().st_mode):
            path.unlink()


def open_to_append(path: Path) -> int:
    """A file descriptor to write to a file of one's own, which is made if it is missing; links are not followed."""
    return os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINKS, 0o666)


def sealed(line: str) -> str:
    """A line of a journal with a checksum behind it."""
    return f"{line}\t{hashlib.sha256(line.encode()).hexdigest()[:16]}"


def unsealed(line: str) -> str | None:
    """The inverse of :func:`sealed`; None if the line is damaged."""
    content = line.rpartition("\t")[0]
    return content if sealed(content) == line else None


def sealed_json(content: Mapping[str, Any]) -> str:
    """A JSON object as text, with a checksum of its content as last entry."""
    return json.dumps({**content, SEAL: _checksum(json.loads(json.dumps(content)))}, indent=1)


def unsealed_json(content: Any) -> dict[str, Any]:
    """The content of :func:`sealed_json`, parsed, without its checksum; files of earlier versions have none.

    Raises:
        ValueError: If it is no object, or the checksum differs.
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not an object")
    plain = {name: value for name, value in content.items() if name != SEAL}
    if SEAL in content and content[SEAL] != _checksum(plain):
        raise ValueError("it was changed after it was written (its checksum differs)")
    return plain


@dataclass(frozen=True)
class Header:
    """First line of a run's config.yaml.

    Attributes:
        run: Hash of what the run depends on; None in files of earlier versions.
        intact: Whether the lines below are those that were written.
    """

    run: str | None
    intact: bool


def headed(text: str, run: str) -> str:
    """A text with a first line that carries the hash of its run, and a checksum of the lines below."""
    return f"# written by run {run}; sha256 of the lines below: {hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def header_of(text: str) -> Header | None:
    """The header of a text that :func:`headed` returned, or that an earlier version wrote; None if there is none."""
    match = _HEADER.match(text)
    if match is None:
        return None
    return Header(match[1], match[2] == hashlib.sha256(text[match.end() :].encode()).hexdigest())


def run_of(folder: Path) -> str | None:
    """Hash of the run that a folder holds; None if it holds none, or one of an earlier version."""
    try:
        header = header_of(read_text(folder / "config.yaml"))
    except (OSError, ValueError):
        return None
    return None if header is None else header.run


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def append_line(path: Path, line: str) -> None:
    """Append a line to a file of one's own, and sync it; a link is not followed.

    Raises:
        RunError: If the operating system refuses.
    """
    with writing(path), os.fdopen(open_to_append(path), "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def read_text(path: Path, *, most: int = MOST_BYTES) -> str:
    """The text of a regular file.

    Raises:
        OSError: If it can't be read.
        ValueError: If it is a device, pipe or folder, is larger than ``most`` bytes, or no UTF-8.
    """
    return read_bytes(path, most=most).decode()


def read_bytes(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: If it can't be read.
        ValueError: If it is a device, pipe or folder, or is larger than ``most`` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would block
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > most:
            raise ValueError(f"it has {status.st_size:,} bytes; at most {most:,} are read")
        return file.read(most + 1)


def parse_json(text: str, *, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.
        finite: Whether NaN and infinite numbers are refused.

    Raises:
        ValueError: If it is not JSON, is nested too deeply, holds such numbers, or a key stands twice in an object.
    """
    try:
        return json.loads(text, parse_constant=_refused if finite else None, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return content


def _refused(name: str) -> float:
    raise ValueError(f"it holds the number {name}")


_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINKS, 0o666)


def _sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk, where the file system can (some network disks can't)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in _NO_FOLDER_SYNC:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
