"""Light pickles of evaluators for other processes: network and data travel once, a candidate costs bytes."""

from __future__ import annotations

import copy
import os
import uuid
import weakref
from collections.abc import Callable
from multiprocessing import parent_process
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol, runtime_checkable

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
    key = problem.__dict__.get("_key")
    if key is None:
        key, folder = uuid.uuid4().hex, Path(mkdtemp(prefix="deap_prune-"))
        problem._key, problem._folder = key, str(folder)
        try:
            torch.save((type(problem), problem.genome, Parcel(problem.evaluator)), folder / "problem.pt")
        except Exception as error:  # pickling fails in many ways
            del problem._key
            _remove(folder, os.getpid())
            raise ConfigError(
                f"the evaluator can't be sent to other processes: {error}; define functions such as forward at the "
                "top level of a module"
            ) from error
        weakref.finalize(problem, _remove, folder, os.getpid())
        _LOADED[key] = weakref.ref(problem)
    return received, (key, problem._folder)


def received(key: str, folder: str) -> Any:
    """The problem of a key: this process's own, or read from the file, for evaluation only.

    A worker uses one thread: a forked one would wait for ever for the threads of its parent's OpenMP, and as many
    one-thread workers as cores are fastest.

    Raises:
        RunError: If the file is gone: the process that made it has ended.
    """
    entry = _LOADED.get(key)
    problem = entry() if isinstance(entry, weakref.ref) else entry
    if parent_process() is not None and (problem is None or problem.owner != os.getpid()):
        torch.set_num_threads(1)
    if problem is None:
        path = Path(folder) / "problem.pt"
        if not path.is_file():
            raise RunError(f"'{path}' is gone: the process that pickled this toolbox has ended; make the toolbox again")
        kind, genome, parcel = torch.load(path, weights_only=False)  # our own file, in a folder of this user alone
        evaluator = parcel.evaluate
        problem = object.__new__(kind)
        problem.__dict__.update(genome=genome, evaluator=evaluator, fitness=as_fitness(evaluator))
        problem.__dict__.update(owner=os.getpid(), _key=key, _folder=folder)
        _LOADED[key] = problem
    return problem


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child
        (folder / "problem.pt").unlink(missing_ok=True)
        folder.rmdir()
