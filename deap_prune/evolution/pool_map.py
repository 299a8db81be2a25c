"""The map of a pool or executor, which ends with an error of ours if one of its processes dies.

``multiprocessing.Pool.map`` waits for ever then: the pool starts another process, but the dead one's items are lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Executor
from functools import partial
from multiprocessing.pool import Pool
from typing import Any, NoReturn

from deap import base

from deap_prune.errors import ConfigError, RunError

LOOK = 0.2  # seconds between two looks at the processes


class PoolMap:
    """``map`` on a ``multiprocessing`` pool or a ``concurrent.futures`` executor.

    Args:
        pool: The pool or executor.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __call__(self, function: Callable[..., Any], *items: Iterable[Any], **options: Any) -> list[Any]:
        """The results in order.

        Args:
            function: What is called with each item; picklable.
            *items: The items: one iterable for a pool.
            **options: ``chunksize``, for example.

        Raises:
            RunError: If a process died; the pool is terminated.
        """
        if isinstance(self._pool, Executor):
            try:
                return list(self._pool.map(function, *items, **options))
            except BrokenExecutor as error:
                _died("executor", error)
        processes = {*self._pool._pool}
        result = self._pool.map_async(function, *items, **options)
        while not result.ready():
            result.wait(LOOK)
            processes |= {*self._pool._pool}
            if any(map(self._is_lost, processes)) and not result.ready():
                self._terminate()
                _died("pool")
        return list(result.get())

    def _is_lost(self, process: Any) -> bool:
        """Whether a process has ended, but not as pools end those that have done ``maxtasksperchild`` tasks."""
        return process.exitcode is not None and bool(process.exitcode or self._pool._maxtasksperchild is None)

    def _terminate(self) -> None:
        """Terminate the pool, though the dead process may have held the locks of its queues."""
        thread = threading.Thread(target=self._pool.terminate, daemon=True)
        thread.start()
        for process in list(self._pool._pool):
            process.kill()
        for queue, name in ((self._pool._inqueue, "_rlock"), (self._pool._outqueue, "_wlock")):
            thread.join(1)
            lock = getattr(queue, name)
            if thread.is_alive() and lock is not None and not lock.acquire(block=False):
                lock.release()
        thread.join(1)


def _died(pool: str, cause: Exception | None = None) -> NoReturn:
    raise RunError(
        f"a process of the {pool} died, and the {pool} ended with it; it may lack memory: run again, or with fewer "
        "processes"
    ) from cause


def safe_map(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, or its partial; in the place of the ``map`` of a pool or executor its :class:`PoolMap`.

    Raises:
        ConfigError: If it is another method of a pool: its results are not those of ``map``.
    """
    if isinstance(function, partial):
        safe = safe_map(function.func)
        return function if safe is function.func else partial(safe, *function.args, **function.keywords)
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "map")
    if not isinstance(owner, (Pool, Executor)):
        return function
    if name not in ("map", "imap"):
        raise ConfigError(f"map is the pool's '{name}', whose results are not in the order of map's; register pool.map")
    return PoolMap(owner)


class SafeToolbox(base.Toolbox):  # type: ignore[misc]
    """A DEAP toolbox that registers the ``map`` of a pool or executor as a :class:`PoolMap`."""

    def register(self, alias: str, function: Callable[..., Any], *args: Any, **kargs: Any) -> None:
        """Register a function under an alias, as DEAP does."""
        super().register(alias, safe_map(function) if alias == "map" else function, *args, **kargs)
