"""Damaged and hostile files: fronts, masks, checkpoints, configs, recipes."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import deap_prune as dp
from deap_prune.config import load_config
from deap_prune.errors import RunError
from deap_prune.evolution.checkpoint import Checkpoints
from tests.attack.doors import Attack

NAN, INF = float("nan"), float("inf")
WRONG: tuple[Any, ...] = (None, "x", [1], {"a": 1}, NAN, INF, True, [], {})
NESTED = "[" * 100000 + "]" * 100000


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with a value replaced; Ellipsis removes it."""
    content = copy.deepcopy(content)
    place = content
    for part in path[:-1]:
        place = place[part]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def texts(content: Any) -> dict[str, bytes]:
    """Files that are no such JSON."""
    whole = json.dumps(content).encode()
    cases = {
        "empty": b"",
        "null": b"null",
        "a list": b"[]",
        "a number": b"3",
        "text": b'"x"',
        "binary": b"\xff\xfe\x00\x80",
        "cut": whole[: len(whole) // 2],
        "nested lists": NESTED.encode(),
        "nested maps": b'{"a":' * 100000 + b"1" + b"}" * 100000,
        "open lists": b"[" * 1000000,
        "a NUL": whole + b"\0",
        "UTF-16": whole.decode().encode("utf-16"),
        "a number of 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
        "two values": whole + whole,
    }
    return {f"holds {name}": text for name, text in cases.items()}


Write = Callable[[Path], None]


def fronts(run: Path, scratch: Path) -> dict[str, Attack]:
    """front.json damaged in every place, read by ``ParetoFront.load``."""
    content = json.loads((run / "front.json").read_text())
    checksum = content.pop("sha256")
    solution = ("solutions", 0)
    wrong: dict[tuple[Any, ...], tuple[Any, ...]] = {
        ("objectives",): (*WRONG, ..., [None], [{"name": "accuracy"}], 2 * content["objectives"]),
        ("objectives", 0): (*WRONG, ...),
        ("objectives", 0, "name"): (*WRONG, ..., "", 3),
        ("objectives", 0, "maximise"): (None, "x", [1], {}, NAN, ..., 1),
        ("dense",): (*WRONG, ...),
        ("dense", "flops"): (*WRONG, ..., 0, -5, 1.5, 10**30, "13"),
        ("dense", "params"): (*WRONG, ..., -5, 1.5, 10**30, "13"),
        ("dense", "values"): (None, "x", [1], {"a": "x"}, NAN, INF, True, []),
        ("dense", "values", "accuracy"): (None, "x", [1], {}, NAN, INF, -INF),
        ("settings",): (None, "x", [1], NAN, INF, True, [], ...),
        ("solutions",): (None, "x", [1], {"a": 1}, NAN, True, {}, ...),
        solution: (*WRONG, 3),
        (*solution, "values"): (*WRONG, ..., {"accuracy": 0.5, "flops": 0.5, "more": 1}),
        (*solution, "values", "accuracy"): (None, "x", [1], {}, NAN, INF, -INF, ..., "0.5"),
        (*solution, "flops"): (*WRONG, ..., -5, 1.5, 10**30, "13"),
        (*solution, "params"): (*WRONG, ..., -5, 1.5, 10**30, "13"),
        (*solution, "individual"): (None, "x", {"a": 1}, NAN, True, {}, ..., 4, ["a"], [NAN], [None], [[1]]),
        (*solution, "masks"): (
            *(*WRONG, ..., 3, "", "masks", "masks/", ".", "masks/nope.json", "masks/0000-00000000.json"),
            *(
                "../front.json",
                "/etc/passwd",
                "/dev/zero",
                "masks/../front.json",
                "m" * 5000,
                "masks/\0a",
                "masks/\ud800",
            ),
            content["solutions"][0]["masks"].replace("masks/", "masks/./"),
            content["solutions"][0]["masks"].upper(),
        ),
    }
    variants: dict[str, Write] = {}
    for path, values in wrong.items():
        for number, value in enumerate(values):
            text = json.dumps(changed(content, path, value))
            variants[f"{'.'.join(map(str, path))} ({number})"] = partial(_write, name="front.json", data=text.encode())
    for name, data in texts(content).items():
        variants[name] = partial(_write, name="front.json", data=data)
    edited = changed(content, ("solutions", 0, "flops"), content["solutions"][0]["flops"] - 1) | {"sha256": checksum}
    variants["edited"] = partial(_write, name="front.json", data=json.dumps(edited).encode())
    variants["is a pipe"] = lambda d: ((d / "front.json").unlink(), os.mkfifo(d / "front.json"))  # type: ignore[assignment, return-value]
    return {f"front {name}": partial(_load, run, scratch, write) for name, write in variants.items()}


def masks(run: Path, scratch: Path) -> dict[str, Attack]:
    """Masks damaged in every place: once under their old name, once under a name with the new hash."""
    front = json.loads((run / "front.json").read_text())
    name = front["solutions"][0]["masks"]
    content = json.loads((run / name).read_text())
    group = next(iter(content["masks"]))
    size, keep = content["masks"][group]["size"], content["masks"][group]["keep"]
    wrong: dict[tuple[Any, ...], tuple[Any, ...]] = {
        ("masks",): (None, "x", [1], NAN, True, [], ...),
        ("masks", group): (None, "x", [1], {"a": 1}, NAN, True, [], {}),
        ("masks", group, "size"): (*WRONG, ..., -1, 16.5, 10**9, 10**10, 10**30, 1e300, "4"),
        ("masks", group, "keep"): (
            *(None, "012", {"0": 1}, NAN, True, {}, ..., [NAN], [None], [True], [-1], [size], [10**30], [0.0]),
            *([0, 0, 1], [[0]], ["0"]),
        ),
    }
    damaged = {
        f"{'.'.join(map(str, path))} ({number})": json.dumps(changed(content, path, value)).encode()
        for path, values in wrong.items()
        for number, value in enumerate(values)
    }
    damaged |= texts(content)
    attacks: dict[str, Attack] = {}
    for label, data in damaged.items():
        attacks[f"masks {label}"] = partial(_load, run, scratch, partial(_write, name=name, data=data))
        attacks[f"renamed masks {label}"] = partial(_load, run, scratch, partial(_replace_masks, old=name, data=data))
    others = [k for k in range(size) if k not in keep][: len(keep)] or keep[:-1]
    edited = json.dumps(changed(content, ("masks", group, "keep"), others)).encode()
    more: dict[str, Write] = {
        "edited": partial(_write, name=name, data=edited),
        "gone": lambda d: (d / name).unlink(),
        "a pipe": lambda d: ((d / name).unlink(), os.mkfifo(d / name)),  # type: ignore[return-value]
        "a folder": lambda d: ((d / name).unlink(), (d / name).mkdir()),  # type: ignore[return-value]
        "a device": lambda d: ((d / name).unlink(), (d / name).symlink_to("/dev/zero")),  # type: ignore[return-value]
        "a link": lambda d: ((d / name).rename(d / "a.json"), (d / name).symlink_to(d / "a.json")),  # type: ignore[return-value]
        "folder gone": lambda d: shutil.rmtree(d / "masks"),
        "folder a link": lambda d: ((d / "masks").rename(d / "m"), (d / "masks").symlink_to(d / "m")),  # type: ignore[return-value]
    }
    return attacks | {f"masks {label}": partial(_load, run, scratch, write) for label, write in more.items()}


def checkpoints(run: Path, scratch: Path) -> dict[str, Attack]:
    """Checkpoints whose checksum is right and whose content is not: none of them is taken."""
    newest = max((run / "checkpoints").glob("*.json"))
    body = json.loads(newest.read_text().split("\n", 1)[1])
    wrong: dict[tuple[Any, ...], tuple[Any, ...]] = {
        ("fingerprint",): (None, "x", [1], NAN, True, {"settings": 3}, ...),
        ("number",): (None, "x", [1], {}, NAN, True, -1, 1.5, ...),
        ("population",): (None, "x", [1], {"a": 1}, NAN, True, [None], [[1]], [["00", [], ["x"]]], ...),
        ("population", 0): (None, "x", [1], {"a": 1}, NAN, True),
        ("archive",): (None, "x", [1], {"a": 1}, NAN, True, [None], ...),
        ("logbook",): (None, "x", [1], {"a": 1}, NAN, True, ...),
        ("extra",): (None, "x", [1], NAN, True, ...),
        ("journal",): ("x", [1], {"a": 1}, NAN, True, {}, ...),
        ("journal", "start"): (None, "x", [1], -1, NAN, ...),
        ("journal", "stop"): (None, "x", [1], -1, NAN, ...),
        ("journal", "sha256"): (None, [1], 3, ...),
    }
    damaged = {
        f"{'.'.join(map(str, path))} ({number})": json.dumps(changed(body, path, value)).encode()
        for path, values in wrong.items()
        for number, value in enumerate(values)
    }
    attacks: dict[str, Attack] = {}
    for label, data in {**damaged, **texts(body)}.items():
        head = json.dumps({"sha256": hashlib.sha256(data).hexdigest()}).encode() + b"\n"
        attacks[f"checkpoint {label}"] = partial(_newest, scratch, head + data)
        attacks[f"checkpoint without checksum {label}"] = partial(_newest, scratch, data)
    return attacks


def configs(scratch: Path) -> dict[str, Attack]:
    """Configs that are no configs."""
    cases: list[Any] = [
        *(
            "search: 3",
            "search: [1]",
            "search: x",
            "model: x",
            "model: {}",
            "model: {factory: 3}",
            "data: 3",
            "data: {}",
        ),
        *("data: {format: 3}", "finetune: 3", "finetune: {recipe: 3}", "finetune: {epochs: x}", "serach: {}", "3", "x"),
        *("[1]", "search: {seed: x}", "search: {seed: 1", "search:\n\tseed: 1", "a: b: c", "%", "*a", "!!x y"),
        *("search: {population: .nan}", "search: {population: .inf}", "search: {sigma: .nan}", "search: {cxpb: .nan}"),
        *("search: {criteria: {}}", "search: {criteria: l1}", "search: {ignore: 3}"),
        *("model: {factory: a, weights: 3}", "model: {factory: a, input_shape: x}", "model: {factory: a, kwargs: 3}"),
        *("{" * 5000, "[" * 5000, "a: &a [*a]", "? [a]\n: 3", "search: {seed: 1}\n---\nsearch: {}", "out: [1]"),
        *("finetune: {recipe: {lr: .nan}}", "finetune: {recipe: {lrr: 1}}", "finetune: {epochs: 0}"),
        *(b"\xff\xfe", b"search: {seed: 1}\x00", "search: {seed: 1}".encode("utf-16"), b"\x80"),
    ]
    attacks: dict[str, Attack] = {}
    for number, case in enumerate(cases):
        data = case if isinstance(case, bytes) else case.encode()
        attacks[f"config {case!r:.60} ({number})"] = partial(_config, scratch, data)
    for path in ("/dev/zero", "/dev/null", "/nowhere", str(scratch), "a\0b"):
        attacks[f"config at {path!r}"] = partial(load_config, path)
    whole = scratch / "whole.yaml"
    whole.write_text("search: {seed: 1}")
    for override in (
        "seed=1",
        "search=3",
        "search.seed=x",
        "search.=3",
        ".=1",
        "=",
        "x",
        "search.seed=[",
        "search.seed.a=1",
    ):
        attacks[f"override {override}"] = partial(load_config, whole, [override])
    return attacks


def recipes(exported: Path, scratch: Path, model: nn.Module) -> dict[str, Attack]:
    """recipe.json damaged in every place."""
    content = json.loads((exported / "recipe.json").read_text())
    checksum = content.pop("sha256")
    wrong: dict[tuple[Any, ...], tuple[Any, ...]] = {
        ("model",): ("x", [1], NAN, True, ...),
        ("dtype",): (*WRONG, ..., "float99", "load", "int8"),
        ("ignore",): (None, "x", [1], {"a": 1}, NAN, True, ..., ["nothing"]),
        ("masks",): (None, "x", [1], {"a": 1}, NAN, True, ..., {"nothing": {"size": 3, "keep": [0]}}),
        ("inputs",): (..., [{"shape": [10**6, 10**6], "dtype": "float32"}], [{"shape": "x", "dtype": "float32"}]),
        ("inputs", 0): ({"shape": [-1], "dtype": "float32"}, {"shape": [1, 3, 6, 6], "dtype": "x"}, "x", None),
    }
    damaged = {
        f"{'.'.join(map(str, path))} ({number})": json.dumps(changed(content, path, value)).encode()
        for path, values in wrong.items()
        for number, value in enumerate(values)
    }
    attacks = {}
    for label, data in {**damaged, **texts(content)}.items():
        attacks[f"recipe {label}"] = partial(
            _rebuild, exported, scratch, partial(_write, name="recipe.json", data=data), model
        )
    content |= {"sha256": checksum, "dtype": "float64"}
    attacks["recipe edited"] = partial(
        _rebuild, exported, scratch, partial(_write, name="recipe.json", data=json.dumps(content).encode()), model
    )
    gone: Write = lambda d: (d / "network.safetensors").unlink()  # noqa: E731
    return attacks | {"recipe weights gone": partial(_rebuild, exported, scratch, gone, model)}


# ------------------------------------------------------------------ the doors
def _write(folder: Path, *, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


def _replace_masks(folder: Path, *, old: str, data: bytes) -> None:
    """Put masks in the place of others, named by their hash and named in front.json."""
    new = f"masks/0000-{hashlib.sha256(data).hexdigest()[:8]}.json"
    (folder / old).unlink()
    (folder / new).write_bytes(data)
    front = folder / "front.json"
    content = json.loads(front.read_text().replace(old, new))
    content.pop("sha256", None)
    front.write_text(json.dumps(content))


def fresh(run: Path, scratch: Path) -> Path:
    """A copy of a run's front."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    shutil.copy(run / "front.json", scratch)
    shutil.copytree(run / "masks", scratch / "masks")
    return scratch


def _load(run: Path, scratch: Path, damage: Write) -> None:
    folder = fresh(run, scratch)
    damage(folder)
    dp.ParetoFront.load(folder)


def _newest(scratch: Path, data: bytes) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "checkpoints").mkdir(parents=True)
    (scratch / "checkpoints/000001.json").write_bytes(data)
    if Checkpoints(scratch, {}).newest() is None:
        raise RunError("damaged")


def _config(scratch: Path, data: bytes) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "config.yaml").write_bytes(data)
    load_config(scratch / "config.yaml")


def _rebuild(exported: Path, scratch: Path, damage: Write, model: nn.Module) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(exported, scratch)
    damage(scratch)
    dp.load(scratch, model=model)


def everything(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a JSON value."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, part in items:
        yield (*path, key)
        yield from everything(part, (*path, key))
