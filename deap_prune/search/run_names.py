"""Names of run folders: numbered ones, and the removal of a run that is to be overwritten."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from deap_prune.errors import RunError

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
    """Remove a run folder with all its files; nothing happens if there is none.

    Raises:
        RunError: If the folder is no run (it holds no config.yaml), or is a link.
    """
    if not folder.exists():
        return
    if folder.is_symlink() or not (folder / "config.yaml").is_file():
        raise RunError(f"'{folder}' holds no run, so --yes does not remove it; choose another folder")
    shutil.rmtree(folder)
