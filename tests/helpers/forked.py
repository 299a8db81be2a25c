"""Functions that run in a forked process, which starts at once: nothing is imported anew."""

from __future__ import annotations

import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


def _run(function: Callable[[], Any], errors: Path) -> None:
    try:
        function()
    except Exception as error:
        errors.write_text(f"{type(error).__name__}: {error}")
        sys.exit(1)


def start(function: Callable[[], Any], errors: Path) -> BaseProcess:
    """Start a process that writes the message of its error to a file."""
    process = get_context("fork").Process(target=_run, args=(function, errors))
    process.start()
    return process


def exit_code(function: Callable[[], Any], errors: Path) -> int | None:
    """Exit code of the function's process; a signal is negative."""
    process = start(function, errors)
    process.join()
    return process.exitcode
