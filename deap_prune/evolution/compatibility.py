"""Whether a run may go on: the stored fingerprint against that of the task at hand."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from deap_prune.errors import RunError
from deap_prune.files import parse_json

_WORDS = {
    "settings": "other settings",
    "model": "another model",
    "code": "another network of the same weights",
    "functions": "other functions",
    "calibration": "other calibration data (a DataLoader needs shuffle=False to give the same again)",
    "validation": "other validation data (a DataLoader needs shuffle=False to give the same again)",
    "data": "other data",
    "example_inputs": "other example inputs",
    "numerics": "other settings of torch",
    "space": "another structure (groups or FLOPs of the traced network)",
}
_BY_KEY = ("settings", "code", "functions", "numerics", "environment")
_CODE = re.compile(r"\[python ([\d.]+), ")


def check_same_task(stored: Mapping[str, str], now: Mapping[str, str], run: Path) -> None:
    """Check that a run goes on with the task that it began with.

    Other versions of packages and another processor give a warning: results may differ in the last bits. So do parts
    that the version that began the run did not store.

    Args:
        stored: Fingerprint in a checkpoint: name of a part to its text.
        now: Fingerprint of the task at hand.
        run: The run folder, for the message.

    Raises:
        RunError: If a part differs; the message names all that do.
    """
    shared = [name for name in now if name in stored and name != "environment"]
    differing = [words for name in shared if (words := _difference(name, stored[name], now[name]))]
    if differing:
        raise RunError(
            f"'{run}' was run with {' and '.join(differing)}; go on with the same, or start a new run in another folder"
        )
    unknown = [name for name in now if name not in stored and name != "environment"]
    if "settings" in shared:
        unknown += [f"setting {key}" for key in _new_settings(stored["settings"], now["settings"])]
    if unknown:
        warnings.warn(
            f"'{run}' was begun by an earlier version, which did not store its {', '.join(unknown)}: they are not "
            "compared",
            stacklevel=4,
        )
    before, after = stored.get("environment", ""), now.get("environment", "")
    if before and after and (words := _keys(before, after)):
        warnings.warn(
            f"'{run}' was begun with {words}: the run goes on, but its result may differ in the last bits from one "
            "that was never interrupted",
            stacklevel=4,
        )


def _difference(name: str, before: str, after: str) -> str:
    """What differs in a part, in words; empty if nothing does."""
    if before == after:
        return ""
    if name in _BY_KEY:
        keys = _keys(before, after, settings=name == "settings")
        return f"{_WORDS[name]}: {keys}" if keys else ""
    detail = (
        f"{before[:8]}, now {after[:8]}" if len(before) == len(after) == 64 else f"{before[:120]}, now {after[:120]}"
    )
    return f"{_WORDS.get(name, f'another {name}')} [{detail}]"


def _new_settings(before: str, after: str) -> list[str]:
    """Settings that the version which began the run did not have."""
    try:
        old, new = parse_json(before, finite=False), parse_json(after, finite=False)
        return sorted(key for key in new if key not in old and new[key] is not None)  # None: the option is off
    except ValueError:
        return []


def _keys(before: str, after: str, *, settings: bool = False) -> str:
    """The entries of two JSON texts that differ, in words: at most five. Of settings, only those that both have."""
    try:
        old, new = parse_json(before, finite=False), parse_json(after, finite=False)
    except ValueError:
        return "a part that can't be read"
    keys = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k) and not _other_python(old.get(k), new.get(k))]
    keys = [k for k in keys if not settings or (k in old and k in new)]
    shown = [f"{k} {_text(old.get(k))}, now {_text(new.get(k))}" for k in keys[:5]]
    return ", ".join(shown) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def _text(value: object) -> str:
    return repr(value)[:160]


def _other_python(old: object, new: object) -> bool:
    """Whether two descriptions of code come from different versions of Python, whose bytecode can't be compared."""
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    before, after = _CODE.search(old), _CODE.search(new)
    if before is None or after is None or before[1] == after[1]:
        return False
    return old.split(" [python")[0] == new.split(" [python")[0]
