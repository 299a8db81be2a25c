"""Modules of the user that a config names: their folders on Python's path, and the import that registers plugins."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib import import_module, invalidate_caches
from importlib.util import find_spec
from pathlib import Path

from deap_prune.errors import ConfigError


def reach_modules(imports: Sequence[str], factories: Iterable[str], folders: Sequence[Path]) -> list[str]:
    """Put the folders of modules on Python's path, as far as they can't be imported without; nothing is imported.

    Args:
        imports: Module names, .py files, and folders of modules.
        factories: Names of further modules.
        folders: Folders that may hold modules and files: the config's, then the working directory.

    Returns:
        The imports, with the folders that were needed and whole paths of files, so that a run folder can store them.

    Raises:
        ConfigError: If a .py file does not exist.
    """
    places = [Path(entry) for entry in imports if _is_folder(entry)]
    entries = [_whole_path(entry, folders) if entry.endswith(".py") else entry for entry in imports]
    names = [entry for entry in entries if not entry.endswith(".py") and not _is_folder(entry)]
    for entry in entries:
        if entry.endswith(".py") and not _is_known(Path(entry).stem):
            _add_to_path(Path(entry).parent)
    needed = []
    for name in dict.fromkeys(name.partition(".")[0] for name in (*factories, *names)):
        for folder in (*places, *folders):
            if not _is_known(name) and ((folder / f"{name}.py").is_file() or (folder / name).is_dir()):
                needed.append(_add_to_path(folder))
    return list(dict.fromkeys([*needed, *entries]))


def import_modules(imports: Sequence[str]) -> None:
    """Import the modules and files, which registers the criteria, objectives, ... in them; folders are skipped.

    Args:
        imports: Result of :func:`reach_modules`.

    Raises:
        ConfigError: If one can't be imported.
    """
    for entry in imports:
        if _is_folder(entry) or entry == _main_file():  # its decorators have run
            continue
        is_file = entry.endswith(".py")
        try:
            module = import_module(Path(entry).stem if is_file else entry)
        except Exception as error:  # the module may raise anything
            reason = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"imports: '{entry}' can't be imported: {reason}; give modules or .py files beside the config or in "
                "the working directory"
            ) from error
        if is_file and Path(module.__file__ or "").resolve() != Path(entry):
            raise ConfigError(f"imports: Python has another module of the name '{module.__name__}'; rename '{entry}'")


def _is_known(name: str) -> bool:
    """Whether Python finds a module, or can't have one of that name."""
    try:
        return not name.isidentifier() or find_spec(name) is not None
    except ValueError:  # the program itself
        return True


def _is_folder(entry: str) -> bool:
    """Whether an entry is a folder of modules: those have whole paths."""
    return Path(entry).is_absolute() and Path(entry).is_dir()


def _whole_path(entry: str, folders: Sequence[Path]) -> str:
    for folder in folders:
        if (folder / entry).is_file():
            return str((folder / entry).resolve())
    places = " and ".join(dict.fromkeys(f"'{folder.resolve()}'" for folder in folders))
    raise ConfigError(f"imports: there is no '{entry}' in {places}; give a .py file, or the name of a module")


def _add_to_path(folder: Path) -> str:
    whole = str(folder.resolve())
    if whole not in sys.path:
        sys.path.append(whole)
        invalidate_caches()
    return whole


def _main_file() -> str:
    """The file of the program itself."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return str(Path(file).resolve()) if file else ""
