"""Run an example on few images, without finalists: ``python tests/helpers/brief.py EXAMPLE [ARGUMENTS]``."""

from __future__ import annotations

import runpy
import sys
from typing import Any

from pytest import MonkeyPatch

import deap_prune.data

load_data, search = deap_prune.data.load_data, deap_prune.search


def few(**options: Any) -> deap_prune.data.Splits:
    """``load_data`` with fewer calibration and validation images by default."""
    return load_data(**{"calibration": 120, "validation": 120, **options})


def short(*args: Any, **options: Any) -> deap_prune.Result:
    """``search`` that refines its front alone, and selects no filters."""
    return search(*args, **{"finalists": 0, "select": None, **options})


def run(program: str, *args: str) -> None:
    """Run a program as ``python program args`` would."""
    with MonkeyPatch.context() as patch:
        patch.setattr(deap_prune.data, "load_data", few)
        patch.setattr(deap_prune, "search", short)
        patch.setattr(sys, "argv", [program, *args])
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    run(*sys.argv[1:])
