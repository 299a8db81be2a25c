"""Arguments of ``search`` and ``resume`` that have no schema, checked before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from deap_prune.errors import ConfigError, ModelError, RunError
from deap_prune.task import Task


def run_folder(out: Any) -> Path:
    """The path of a run folder.

    Raises:
        RunError: If it is no path.
    """
    try:
        folder = Path(out)
        with suppress(OSError):  # a name that is too long, for example: reported where the folder is made
            folder.lstat()
    except (TypeError, ValueError) as error:
        raise RunError(f"out is {out!r}, which is no path ({error}); give the name of a folder") from error
    return folder


def check_arguments(task: Task, callbacks: Any, progress: Any) -> None:
    """Check the network and the functions that a search is given, and torch's default device.

    Raises:
        ModelError: If there is no network, or it has no weights yet.
        ConfigError: If a function can't be called, or tensors would be made on another device than the CPU.
    """
    if not isinstance(task.model, nn.Module):
        raise ModelError(f"model is a {type(task.model).__name__}; give a trained network (nn.Module)")
    if any(is_lazy(parameter) for parameter in task.model.parameters()):
        raise ModelError("the network has lazy layers without weights; run it once on an input, and train it")
    if not isinstance(callbacks, Sequence) or not all(callable(callback) for callback in callbacks):
        raise ConfigError(f"callbacks is {callbacks!r}; give several functions of a Generation, such as [log], or ()")
    if not isinstance(progress, bool) and progress not in ("bar", "log"):
        raise ConfigError(f"progress is {progress!r}; give True, False, 'bar' or 'log'")
    for name, function in task.functions.items():
        if function is not None and not callable(function):
            raise ConfigError(f"{name} is {function!r}; give a function, or leave it out")
    device = torch.get_default_device()
    if device.type != "cpu":
        raise ConfigError(
            f"torch.set_default_device('{device}') is in force, which also moves what a search makes on the CPU; end "
            "it by torch.set_default_device(None) and use device="
        )
