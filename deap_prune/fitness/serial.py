"""One evaluation at a time: candidates share memory, so that threads would mix their networks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class _Turn:
    """The lock of this process; a forked child begins with a free one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def renew(self) -> None:
        """Forget the thread that held the lock: it does not run in a child."""
        self.lock = threading.RLock()


_TURN = _Turn()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_TURN.renew)


def one_at_a_time(function: F) -> F:
    """Let other threads wait while the function runs."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _TURN.lock:
            return function(*args, **kwargs)

    return cast(F, call)
