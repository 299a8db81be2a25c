"""Bad inputs at the doors of the package, and how each ends: an error of ours, a raw one, silence or a hang."""

from __future__ import annotations

import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from deap_prune.errors import PruneError

Attack = Callable[[], Any]


class Hang(BaseException):
    """The time of an attack is over."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(attack: Attack, seconds: int = 60) -> tuple[str, str]:
    """The kind of end ("own", "raw", "silent", "hang"), and the error in a line."""
    try:
        with limited(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attack()
    except PruneError as error:
        return "own", f"{type(error).__name__}: {error}"
    except Hang:
        return "hang", ""
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"
    return "silent", ""


def table(attacks: Mapping[str, Attack], seconds: int = 60) -> tuple[Counter[str], list[str]]:
    """Counts by kind, and a line for each attack that did not end in an error of ours."""
    counts: Counter[str] = Counter()
    lines = []
    for name, attack in attacks.items():
        kind, text = outcome(attack, seconds)
        counts[kind] += 1
        if kind != "own":
            lines.append(f"{kind}: {name}: {text[:200]}")
    return counts, lines
