"""Progress bars on long work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(items: Sequence[T] | Iterable[T], description: str, *, shown: bool) -> Iterator[T]:
    """Iterate with a bar on standard error if that is a terminal, or silently."""
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    if shown and console.is_terminal:
        yield from bar(items, description=description, console=console, transient=True)
    else:
        yield from items
