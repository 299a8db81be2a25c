"""Progress bars on long work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def track(items: Sequence[T] | Iterable[T], description: str, *, shown: bool) -> Iterator[T]:
    """Iterate with a bar on standard error, or silently."""
    if not shown:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    yield from bar(items, description=description, console=Console(stderr=True), transient=True)
