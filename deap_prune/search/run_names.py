"""Names of run folders: numbered ones, and the removal of a run that is to be overwritten."""

from __future__ import annotations

import re
from pathlib import Path

from deap_prune.errors import RunError
from deap_prune.files import is_temporary, remove_file
from deap_prune.search.lock import LOCK, locked

WRITTEN = re.compile(
    r"(config\.yaml|versions\.json|history\.csv|front\.(json|csv|png)|(cache|refined|recovered|returns)\.jsonl|run\.lock"
    r"|(live|latency)\.json|report\.html|criteria\.png|(dense|data|slim|finetuned)\.safetensors|slim\.masks\.json"
    r"|checkpoints/\d{6,9}\.(json|damaged)|masks/(\d{4,9}-[0-9a-f]{8}|\.pending)\.json"
    r"|report/[\w.-]+\.(png|svg)|((slim|export)/)?(network[\w.]*\.(safetensors|pt2|onnx(\.data)?)|recipe\.json))"
)
"""Names of the files that runs and commands write."""

NUMBERED = re.compile(r"(\d{4})-.*")


def numbered(parent: Path, name: str) -> Path:
    """The next numbered folder, such as runs/0001-digits; numbers go on from the highest in the parent folder.

    Args:
        parent: Folder of the runs; it need not exist.
        name: What the run is about, such as the config's name.
    """
    matches = [NUMBERED.fullmatch(path.name) for path in parent.iterdir()] if parent.is_dir() else []
    number = 1 + max((int(match[1]) for match in matches if match), default=0)
    return parent / f"{number:04d}-{name}"


def remove_run(folder: Path) -> None:
    """Remove a run folder with the files that runs and commands write; nothing happens if there is none.

    Raises:
        RunError: If the folder is no run (it holds no config.yaml), is a link, holds other files, or is being written.
    """
    if not folder.exists():
        return
    if folder.is_symlink() or not (folder / "config.yaml").is_file():
        raise RunError(f"'{folder}' holds no run, so --yes does not remove it; choose another folder")
    with locked(folder, new=False):
        paths = sorted(folder.rglob("*"))
        for path in paths:
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or (not path.is_dir() and not is_temporary(path.name) and not WRITTEN.fullmatch(name)):
                raise RunError(f"'{path}' is no file of a run, so --yes removes nothing; move it away, or choose --out")
        for path in paths:
            if path.name != LOCK:
                remove_file(path)
    for path in [p for p in (*reversed(paths), folder) if p.is_dir()]:
        path.rmdir()
