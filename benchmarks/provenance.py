"""What a row of results says about its origin: commit, versions, hardware, and the masks in a compact form."""

from __future__ import annotations

import os
import platform
import subprocess
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
