"""A deadline for work that is under way: long loops ask whether it has passed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_DEADLINE: ContextVar[float | None] = ContextVar("deadline", default=None)


class TimeIsUpError(BaseException):
    """Ends work whose deadline has passed, also through code that catches ``Exception``; who sets one catches it."""


@contextmanager
def until(deadline: float | None) -> Iterator[None]:
    """Let :func:`check_deadline` raise after a time.

    Args:
        deadline: ``time.monotonic()`` at which the work ends; None: no limit.
    """
    token = _DEADLINE.set(deadline)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def check_deadline() -> None:
    """Called by long loops, between steps.

    Raises:
        TimeIsUpError: If the deadline of this work has passed.
    """
    deadline = _DEADLINE.get()
    if deadline is not None and time.monotonic() > deadline:
        raise TimeIsUpError
