"""Damaged and hostile files of weights."""

from __future__ import annotations

import json
import os
import pickle
import struct
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deap_prune.weights import load_weights
from tests.attack.damage import NESTED, changed
from tests.attack.doors import Attack


class Evil:
    """An object whose unpickling runs code."""

    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def weights(scratch: Path) -> dict[str, Attack]:
    """Weights that can't be loaded into a network."""
    scratch.mkdir(parents=True, exist_ok=True)
    state = nn.Linear(2, 2).state_dict()
    whole = {"weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    headers: dict[str, tuple[Any, int | None]] = {
        "length 2^63": ({}, 2**63),
        "length 2^40": ({}, 2**40),
        "length beyond the file": ({}, 10**6),
        "no header": (b"", 0),
        "huge offsets": (changed(whole, ("weight", "data_offsets"), [0, 2**42]), None),
        "huge shape": (changed(whole, ("weight", "shape"), [2**33, 2**33]), None),
        "negative offset": (changed(whole, ("weight", "data_offsets"), [-4, 12]), None),
        "unknown dtype": (changed(whole, ("weight", "dtype"), "F99"), None),
        "nested": (b'{"a":' + NESTED.encode() + b"}", None),
        "bias missing": (whole, None),
    }
    attacks: dict[str, Attack] = {}
    for number, (label, (head, length)) in enumerate(headers.items()):
        data = head if isinstance(head, bytes) else json.dumps(head).encode()
        path = scratch / f"{number}.safetensors"
        path.write_bytes(struct.pack("<Q", len(data) if length is None else length) + data + b"\0" * 16)
        attacks[f"safetensors {label}"] = partial(load_weights, nn.Linear(2, 2), path)
    objects: dict[str, Any] = {
        "an object": {"weight": Evil()},
        "a nested object": {"state_dict": {"weight": Evil()}},
        "a number": 3,
        "a list": [torch.zeros(1)],
        "numbers as names": {1: torch.zeros(1)},
        "nothing": {},
        "state_dict a number": {"state_dict": 3},
        "other names": {"w": torch.zeros(2, 2), "b": torch.zeros(2)},
        "other shapes": {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)},
        "meta": {name: value.to("meta") for name, value in state.items()},
        "sparse": {"weight": state["weight"].to_sparse(), "bias": state["bias"]},
        "complex": {name: value.to(torch.complex64) for name, value in state.items()},
    }
    for number, (label, value) in enumerate(objects.items()):
        path = scratch / f"{number}.pth"
        torch.save(value, path)
        attacks[f"torch file of {label}"] = partial(load_weights, nn.Linear(2, 2), path)
    (scratch / "raw.pth").write_bytes(pickle.dumps(Evil()))
    (scratch / "cut.pth").write_bytes((scratch / "7.pth").read_bytes()[:-50])
    for name in ("raw.pth", "cut.pth", "nowhere.pth", "nowhere.safetensors", ".", "a\0b"):
        attacks[f"weights {name!r}"] = partial(load_weights, nn.Linear(2, 2), scratch / name)
    return attacks
