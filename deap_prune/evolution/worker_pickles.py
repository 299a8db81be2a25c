"""Light pickles of evaluators for other processes: network and data travel once, a candidate costs bytes."""

from __future__ import annotations

import copy
import os
import threading
import uuid
import weakref
from collections.abc import Callable
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any, Protocol, runtime_checkable

import torch

from deap_prune.errors import ConfigError, RunError
from deap_prune.evolution.fitness import as_fitness


@runtime_checkable
class _Lightened(Protocol):
    def for_workers(self) -> Any: ...


class Parcel:
    """An evaluator for another process: pickled without its cache and the user's model, if it can do without."""

    def __init__(self, evaluate: Any) -> None:
        self.evaluate = evaluate

    def __getstate__(self) -> dict[str, Any]:
        light = self.evaluate.for_workers() if isinstance(self.evaluate, _Lightened) else copy.copy(self.evaluate)
        return {"evaluate": light}


_LOADED: dict[str, Any] = {}


def light_reduce(problem: Any) -> tuple[Callable[[str, str], Any], tuple[str, str]]:
    """A light ``__reduce__``: the problem is written to a private file once, and each process reads it once.

    Pools pickle ``toolbox.evaluate`` for every chunk of a map; this way a pickle takes bytes, not the network and data.

    Args:
        problem: A ``BlendProblem``; the file holds its genome, and its evaluator without the cache.

    Raises:
        ConfigError: If the evaluator can't be pickled.
    """
    state = problem.__dict__
    if "_sent" not in state:
        key = uuid.uuid4().hex
        try:
            file = _written((key, type(problem), problem.genome, Parcel(problem.evaluator)), problem)
        except Exception as error:  # pickling fails in many ways
            raise ConfigError(
                f"the evaluator can't be sent to other processes: {error}; define functions such as forward at the "
                "top level of a module"
            ) from error
        if state.setdefault("_sent", (key, *file))[0] == key:  # else another thread was faster
            _LOADED[key] = weakref.ref(problem)
    key, path, _ = state["_sent"]
    return received, (key, path)


def _written(content: Any, owner: Any) -> tuple[str, IO[bytes]]:
    """A file of the content, and its path for the user's processes.

    The file has no name where processes have a folder of their open files (Linux): nothing stays if this one is killed.
    Elsewhere it lies in a private folder until the owner is gone.
    """
    file: IO[bytes] = TemporaryFile()  # noqa: SIM115  open as long as its owner
    path = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
    if not path.exists():
        file.close()
        folder = TemporaryDirectory(prefix="deap_prune-")
        weakref.finalize(owner, _remove, folder, os.getpid())
        path = Path(folder.name) / "problem.pt"
        file = path.open("w+b")
    torch.save(content, file)
    file.flush()
    return str(path), file


def _remove(folder: TemporaryDirectory[str], process: int) -> None:
    if os.getpid() == process:  # not in a forked child
        folder.cleanup()


def received(key: str, path: str) -> Any:
    """The problem of a key: this process's own, or read from the file, for evaluation only.

    A worker uses one thread: a forked one would wait for ever for the threads of its parent's OpenMP, and as many
    one-thread workers as cores are fastest. It ends with the process that started it.

    Raises:
        RunError: If the file is gone: the process that made it has ended.
    """
    entry = _LOADED.get(key)
    problem = entry() if isinstance(entry, weakref.ref) else entry
    if parent_process() is not None and (problem is None or problem.owner != os.getpid()):
        torch.set_num_threads(1)
        _end_with_parent(os.getpid())
    if problem is None:
        content = _read(path)
        if content is None or content[0] != key:
            raise RunError(
                "the process that pickled this toolbox has ended, and its file is gone; make the toolbox again"
            )
        _, kind, genome, parcel = content
        evaluator = parcel.evaluate
        problem = object.__new__(kind)
        problem.__dict__.update(genome=genome, evaluator=evaluator, fitness=as_fitness(evaluator))
        problem.__dict__.update(owner=os.getpid(), _sent=(key, path, None))
        _LOADED[key] = problem
    return problem


def _read(path: str) -> Any:
    """The content of a file of this user's own; None if it is gone."""
    try:
        return torch.load(path, weights_only=False)
    except OSError:
        return None


@cache
def _end_with_parent(process: int) -> None:
    """End this process when the one that started it is killed: a pool's workers would wait for ever.

    Args:
        process: This process's id; a forked child begins to wait anew.
    """
    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
