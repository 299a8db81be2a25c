"""What a row of results says about its origin: commit, versions, hardware, and the masks in a compact form."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deap_prune as dp

_ASK = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
COMMIT = subprocess.run(_ASK, capture_output=True, text=True, check=False).stdout.strip()
"""Commit of the code that measures, asked for when it is loaded: a long run outlives commits."""


def hardware() -> str:
    """The device that ``device="auto"`` means."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def origin(*packages: str) -> dict[str, Any]:
    """Commit, hardware, and versions of Python, torch, this library and other packages."""
    versions = {name: version(name) for name in ("deap-prune", "torch", *packages)}
    return {"commit": COMMIT, "hardware": hardware(), "versions": {"python": platform.python_version(), **versions}}


def searched(result: Any, test_accuracy: Callable[[Any], float], images: int, begun: float) -> dict[str, Any]:
    """The row of a search's best network, tested once.

    Args:
        result: What ``dp.search`` gave.
        test_accuracy: Accuracy of a network on the test images.
        images: Number of calibration images.
        begun: ``time.process_time()`` before the search.
    """
    best = result.best
    return {
        "params": dp.params(result.space, best.masks) / result.space.params,
        "flops": dp.flops(result.space, best.masks) / result.space.flops,
        "evaluations": result.evaluations,
        "validation": dict(best.values),
        "test accuracy": test_accuracy(result.slim(best)),
        "cpu seconds": time.process_time() - begun,
        "calibration images": images,
        **origin(),
        "masks": packed(best.masks),
    }


def packed(masks: dp.Masks) -> dict[str, str]:
    """Group name to "size:bits"; bits are hexadecimal, the first filter is the highest bit."""
    return {name: f"{len(keep)}:{np.packbits(keep).tobytes().hex()}" for name, keep in masks.items()}


def unpacked(stored: dict[str, str]) -> dp.Masks:
    """The masks of :func:`packed`."""
    keep = {}
    for name, text in stored.items():
        size, bits = text.split(":")
        array = np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8), count=int(size))
        keep[name] = array.astype(bool)
    return dp.Masks(keep)
