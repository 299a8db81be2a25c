"""Run an example on few images, without finalists: ``python tests/helpers/brief.py EXAMPLE [ARGUMENTS]``."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from typing import Any

from pytest import MonkeyPatch

import deap_prune.data
import deap_prune.zoo
from deap_prune.zoo.cifar_resnet import CifarResNet

load_data, search = deap_prune.data.load_data, deap_prune.search


def few(**options: Any) -> deap_prune.data.Splits:
    """``load_data`` with fewer calibration, validation and test images."""
    splits = load_data(**{"calibration": 80, "validation": 80, **options})
    return replace(splits, load_test=splits.load_test and (lambda: tuple(part[:80] for part in splits.test)))


def shallow(num_classes: int = 10, width: int = 16, **options: Any) -> CifarResNet:
    """``digits_resnet`` with one block a stage."""
    return CifarResNet(1, num_classes, widths=(width, 2 * width, 4 * width), in_channels=1, **options)


def short(*args: Any, **options: Any) -> deap_prune.Result:
    """``search`` with at most six individuals, which refines its front alone, on few images, and selects no filters."""
    population = min(options.pop("population", 6), 6)
    small = {"refine_images": 40, "select": None, **options, "finalists": 0}
    return search(*args, population=population, **small)


def run(program: str, *args: str) -> None:
    """Run a program as ``python program args`` would."""
    with MonkeyPatch.context() as patch:
        patch.setattr(deap_prune.data, "load_data", few)
        patch.setattr(deap_prune, "search", short)
        patch.setattr(deap_prune.zoo, "digits_resnet", shallow)
        patch.setattr(sys, "argv", [program, *args])
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    run(*sys.argv[1:])
