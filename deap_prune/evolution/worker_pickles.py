"""Evaluators on their way to other processes: light pickles for pools, and nothing that depends on who came before."""

from __future__ import annotations

import copy
import os
import uuid
import weakref
from collections.abc import Callable
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from deap_prune.errors import ConfigError, RunError


class Parcel:
    """An evaluator on its way to other processes: without its cache, and what else only this process needs."""

    def __init__(self, evaluate: Any) -> None:
        self.evaluate = evaluate

    def __getstate__(self) -> dict[str, Any]:
        light = getattr(self.evaluate, "for_workers", partial(copy.copy, self.evaluate))()
        light.cache = {}
        return {"evaluate": light}


def check_alone(evaluate: Any) -> None:
    """A candidate's values must not depend on others, or processes would differ."""
    options = getattr(evaluate, "options", None)
    if getattr(options, "by_generation", False):
        raise ConfigError(
            "racing, redraw and refine_from above 0 follow the run from generation to generation; leave them out to "
            "judge in other processes"
        )


_LOADED: dict[str, Any] = {}


def shipped(problem: Any) -> tuple[Callable[[str, str], Any], tuple[str, str]]:
    """A light ``__reduce__``: the problem goes to a private file once, and each process reads it once.

    Pools pickle ``toolbox.evaluate`` for every chunk of a map; so that costs bytes, not the network and the data.

    Args:
        problem: A ``BlendProblem``; the file holds its genome, and its evaluator without the cache.

    Raises:
        ConfigError: If the evaluator can't be pickled, or judges a candidate by who came before.
    """
    key = problem.__dict__.get("_key")
    if key is None:
        check_alone(problem.evaluator)
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
    """The problem of that key: this process's own, or read from the file, to evaluate only.

    A worker computes with one thread: a forked one would wait for ever for the threads of its parent's OpenMP, and as
    many workers as cores are fastest so.

    Raises:
        RunError: If the file is gone: the process that made it has ended.
    """
    found = _LOADED.get(key)
    found = found() if isinstance(found, weakref.ref) else found
    if parent_process() is not None and getattr(found, "owner", None) != os.getpid():
        torch.set_num_threads(1)
    if found is None:
        path = Path(folder) / "problem.pt"
        if not path.is_file():
            raise RunError(f"'{path}' is gone: the process that pickled this toolbox has ended; make the toolbox again")
        kind, genome, parcel = torch.load(path, weights_only=False)  # our own file, in a folder of this user alone
        found = object.__new__(kind)
        found.__dict__.update(genome=genome, evaluator=parcel.evaluate, owner=os.getpid(), _key=key, _folder=folder)
        _LOADED[key] = found
    return found


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child
        (folder / "problem.pt").unlink(missing_ok=True)
        folder.rmdir()
