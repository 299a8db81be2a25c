"""A forward pass that can wait in the middle, so that several passes of one network advance layer by layer.

A forward pass is plain Python code: to wait inside one it needs a stack of its own, hence a thread. Only one of all
passes runs at a time.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from functools import cache

import torch

_M_ARENA_MAX = -8  # of glibc's malloc.h


@cache
def share_arena() -> None:
    """Let all threads of this process allocate from one arena, where the C library is glibc.

    By default each thread has an arena of its own, and memory that one thread frees is of no use to the others:
    refinement of MobileNetV2 on 200 images takes 3.4 GB instead of 2.6. The setting lasts until the process ends.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


class _Closed(BaseException):
    """Ends a pass from inside; network code that catches ``Exception`` does not catch it."""


class Passage:
    """A function in a thread of its own that runs from one :meth:`wait` to the next.

    Args:
        function: What runs, usually a forward pass; it calls :meth:`wait` from inside.
        device: The device that it computes on.

    Attributes:
        at: What it waits at; None while it runs, before, and at the end.
        finished: Whether the function has returned.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self.at: str | None = None
        self.finished = False
        self._function, self._settings = function, _Settings(device)
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._closed = False

    def advance(self) -> None:
        """Run up to the next wait or to the end; errors of the function are raised here."""
        if self.finished:
            return
        self.at = None
        if self._thread is None:
            share_arena()
            self._thread = threading.Thread(target=copy_context().run, args=(self._run,), daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error

    def wait(self, name: str) -> None:
        """Called by the function: hand over to the caller of :meth:`advance` until its next call."""
        if self._closed:
            raise _Closed
        self.at = name
        self._back.release()
        self._go.acquire()
        if self._closed:
            raise _Closed

    def close(self) -> None:
        """End the function where it waits, and free what it holds."""
        self._closed = True
        if self._thread is not None:
            self._go.release()
            self._thread.join()
        self.at, self.finished = None, True

    def _run(self) -> None:
        try:
            with self._settings.applied():
                self._function()
        except _Closed:
            pass
        except BaseException as error:
            self._error = error
        self.finished = True
        self._back.release()


class _Settings:
    """The settings of torch that each thread has for itself, as the thread that makes this object has them."""

    def __init__(self, device: torch.device) -> None:
        self._default, self._casts_on = torch.get_default_device(), device.type
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._casts = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run with the same settings, in another thread."""
        casts, dtype = self._casts
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self._default != torch.get_default_device():
                stack.enter_context(self._default)
            if self._stream is not None:
                stack.enter_context(torch.cuda.stream(self._stream))  # and its device
            if casts:
                stack.enter_context(torch.autocast(self._casts_on, dtype=dtype))
            yield
