"""A map for ``toolbox.map`` on a ``concurrent.futures`` executor, which also takes single candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from typing import Any

from deap_prune.arguments import Count, checked
from deap_prune.errors import ConfigError, RunError
from deap_prune.evolution.in_flight import MAX_DEATHS
from deap_prune.evolution.problem import problem_of
from deap_prune.structure.masks import Masks


class ExecutorMap:
    """``map`` on an executor. Made by :func:`executor_map`; steady-state loops send single candidates to it."""

    def __init__(self, executor: Executor | Callable[[], Executor], workers: int) -> None:
        self._make = None if isinstance(executor, Executor) else executor
        self._executor = executor if isinstance(executor, Executor) else _made(executor)
        self._workers = workers
        self._evaluate: Callable[..., Any] | None = None
        self._futures: dict[Future[Any], tuple[int, Any]] = {}
        self._deaths: Counter[int] = Counter()

    def __enter__(self) -> ExecutorMap:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the executor, if it was made here."""
        self.forget()
        if self._make is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def __call__(self, function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
        """What stock loops call: ``toolbox.map(toolbox.evaluate, individuals)``."""
        self._check_threads(function)
        try:
            return list(self._executor.map(function, *items))
        except BrokenExecutor as error:
            raise RunError(
                "a process of the executor died; it may lack memory: run again, or with fewer workers"
            ) from error
        except RuntimeError as error:
            raise _ended(error) from error

    def workers_for(self, evaluate: Callable[..., Any]) -> ExecutorMap:
        """This map, to send single candidates to it.

        Raises:
            ConfigError: If threads would share one network.
        """
        self._check_threads(evaluate)
        self.forget()
        self._evaluate = evaluate
        return self

    def _check_threads(self, evaluate: Callable[..., Any]) -> None:
        threads = isinstance(self._executor, ThreadPoolExecutor)
        if threads and self._workers > 1 and problem_of(evaluate) is not None:
            raise ConfigError("threads would narrow one network in place at once; give a ProcessPoolExecutor")

    def free(self) -> int:
        """Number of processes without a candidate."""
        return self._workers - len(self._futures)

    def send(self, number: int, individual: Any, masks: Masks | None) -> None:
        """Submit an individual; its values come back under this number."""
        try:
            future = self._executor.submit(self._evaluate, individual)  # type: ignore[arg-type]
        except BrokenExecutor as error:
            self._replace([(number, individual)], error)
        except RuntimeError as error:
            raise _ended(error) from error
        else:
            self._futures[future] = number, individual

    def wait(self) -> dict[int, tuple[float, ...]]:
        """Wait for at least one candidate; those of an executor that broke are sent to a new one.

        Raises:
            RunError: If the executor breaks and can't be made anew, or candidates break one after the other.
        """
        done, _ = wait(self._futures, return_when=FIRST_COMPLETED)
        values, lost, cause = {}, [], None
        for future in done:
            number, individual = self._futures.pop(future)
            try:
                values[number] = future.result()
            except BrokenExecutor as error:
                lost.append((number, individual))
                cause = error
        if cause is not None:
            self._replace(lost, cause)
        return values

    def forget(self) -> None:
        """Drop the candidates that have not come back; those that have not begun are cancelled."""
        for future in self._futures:
            future.cancel()
        self._futures = {}
        self._deaths.clear()

    def _replace(self, lost: list[tuple[int, Any]], cause: BrokenExecutor) -> None:
        """Make a new executor, and send it what the broken one had."""
        if self._make is None:
            raise RunError(
                "a process of the executor died, which ends the executor; give executor_map a function that makes one "
                "(lambda: ProcessPoolExecutor(2)), and lost candidates are sent again"
            ) from cause
        lost = sorted([*lost, *self._futures.values()], key=lambda pair: pair[0])
        self._futures = {}
        self._deaths.update(number for number, _ in lost)
        if max(self._deaths.values()) >= MAX_DEATHS:
            raise RunError(f"{MAX_DEATHS} executors broke evaluating one candidate; it may lack memory") from cause
        self._executor.shutdown(wait=False)
        self._executor = _made(self._make)
        for number, individual in lost:
            self.send(number, individual, None)


def _ended(error: RuntimeError) -> Exception:
    """An error of ours if the executor was shut down; else the error that an evaluation raised."""
    closed = "after shutdown" in str(error)
    return RunError("the executor was shut down; make executor_map with a new one") if closed else error


def _made(make: Callable[[], Executor]) -> Executor:
    executor: Any = make()
    if not isinstance(executor, Executor):
        raise ConfigError(f"executor() gave a {type(executor).__name__}; give a function that makes an executor")
    return executor


@checked
def executor_map(executor: Executor | Callable[[], Executor], *, workers: Count) -> ExecutorMap:
    """A ``map`` for ``toolbox.register("map", ...)`` that evaluates on a ``concurrent.futures`` executor.

    Args:
        executor: The executor, or a function that makes one, such as ``lambda: ProcessPoolExecutor(2)``. In a
            steady-state loop, one that a function made is replaced if a process dies; its candidates are sent again.
        workers: Number of the executor's processes: as many candidates are sent at a time.

    Raises:
        ConfigError: If ``workers`` is below 1, or the function makes no executor.
    """
    return ExecutorMap(executor, workers)
