"""Damaged files of a run: reading and resuming it end in an error of ours, or in the same front, byte for byte."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import deap_prune as dp
from deap_prune.costs.latency import ELSEWHERE
from tests.attack import inputs
from tests.attack.damage import NESTED
from tests.attack.doors import outcome
from tests.helpers.latency import synthetic_table

Damage = Callable[[Path, Path], None]
FACTORY = f"{inputs.__name__}:net"


def search(out: Path, table: Path, **options: Any) -> None:
    """A run of the smallest size whose folder has files of all kinds."""
    given: dict[str, Any] = {"factory": FACTORY, "keep_data": True, "population": 4, "generations": 2, "finalists": 1}
    given |= {"refine": True, "refine_images": 12, "recover": 2, "latency_table": table, "device": "cpu", "guard": 4}
    given |= {"criteria": ("l1", "fpgm"), "objectives": ("loss", "flops"), "progress": False, "out": out, **options}
    dp.search(inputs.net(), inputs.X[:1], **inputs.DATA, **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function of an algorithm to its finished run, which has another of smaller networks beside it."""
    place = tmp_path_factory.mktemp("runs")
    model = inputs.net()
    table = synthetic_table(dp.trace(model, inputs.X[:1]))
    replace(table, about={**table.about, "device": ELSEWHERE}).save(place / "table.json")  # nothing is timed at the end

    def run(algorithm: str) -> Path:
        if not (place / algorithm).exists():
            search(place / algorithm, place / "table.json", algorithm=algorithm)
            search(place / f"{algorithm} other", place / "table.json", algorithm=algorithm, max_flops=(0.2, 0.4))
        return place / algorithm

    return run


def text_of(change: Callable[[str], str]) -> Damage:
    return lambda path, other: path.write_text(change(path.read_text("latin-1")), "latin-1")  # type: ignore[return-value]


def bytes_of(change: Callable[[bytes], bytes]) -> Damage:
    return lambda path, other: path.write_bytes(change(path.read_bytes()))  # type: ignore[return-value]


def number_in_the_middle(value: str) -> Callable[[str], str]:
    """A function that replaces a number near the middle of a text."""

    def change(text: str) -> str:
        numbers = list(re.finditer(r"(?<![\w.])\d+(\.\d+)?(?![\w.])", text))
        if not numbers:
            return text[: len(text) // 2]
        chosen = numbers[len(numbers) // 2]
        return text[: chosen.start()] + value + text[chosen.end() :]

    return change


def edited(text: str) -> str:
    """Another digit in the place of one, as an editor or a bad disk writes it."""
    places = [m.start() for m in re.finditer(r"\d", text)] or [0]
    place = random.Random(len(text)).choice(places)
    return text[:place] + ("7" if text[place] != "7" else "3") + text[place + 1 :]


def linked(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "emptied": bytes_of(lambda data: b""),
    "cut in the middle": bytes_of(lambda data: data[: len(data) // 2]),
    "cut at the end": bytes_of(lambda data: data[:-3]),
    "a byte changed": bytes_of(lambda data: data[: len(data) // 3] + b"\xff" + data[len(data) // 3 + 1 :]),
    "zeros": bytes_of(lambda data: bytes(len(data))),
    "an edited value": text_of(edited),
    "a NaN": text_of(number_in_the_middle("NaN")),
    "a huge number": text_of(number_in_the_middle("9" * 400)),
    "a text for a number": text_of(number_in_the_middle('"x"')),
    "another type": text_of(lambda text: "[3]"),
    "nested": text_of(lambda text: NESTED),
    "written twice": bytes_of(lambda data: data + data),
    "of another run": lambda path, other: shutil.copy(other, path) if other.is_file() else path.unlink(),  # type: ignore[return-value]
    "a link out of the folder": linked,
    "a folder": folder,
    "gone": lambda path, other: path.unlink(),
}


def names(run: Path) -> list[str]:
    """A file of each kind of a run."""
    masks = sorted(path.name for path in (run / "masks").iterdir())
    files = [path.name for path in run.iterdir() if path.is_file()]
    newest = max(path.name for path in (run / "checkpoints").iterdir())
    return [*sorted(files), f"masks/{masks[0]}", f"checkpoints/{newest}", "../table.json"]


def check(run: Path, name: str, damage: Damage, scratch: Path) -> list[str]:
    """What went wrong with a damaged run: raw errors, hangs, and fronts that changed in silence."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(run, scratch / run.name)
    copy = scratch / run.name
    table, outside = run.parent / "table.json", Path("/etc/passwd").stat().st_mtime
    before, whole = table.read_bytes(), _front(run)
    wrong = []
    try:
        target = table if name == "../table.json" else copy / name
        other = next(run.parent.glob(f"{run.name} other/{name.partition('/')[0]}*"), run)
        damage(target, other / target.name if other.is_dir() else other)
        for door, read in (("load", lambda: _front(copy)), ("resume", lambda: _resumed(copy))):
            result: list[Any] = []
            kind, message = outcome(lambda read=read, result=result: result.append(read()), 60)  # type: ignore[misc]
            if kind not in ("own", "silent"):
                wrong.append(f"{door}: {kind} {message[:200]}")
            elif kind == "silent" and result != [whole]:
                wrong.append(f"{door}: another front")
    finally:
        if table.is_symlink() or not table.is_dir():
            table.unlink(missing_ok=True)
        else:
            table.rmdir()
        table.write_bytes(before)
    assert Path("/etc/passwd").stat().st_mtime == outside
    return wrong


def _front(run: Path) -> list[Any]:
    front = dp.ParetoFront.load(run)
    return [front.weights, front.dense, front.settings, [vars(solution) for solution in front]]


def _resumed(run: Path) -> list[Any]:
    dp.resume(run, progress=False)
    return _front(run)


def test_some_damages(finished: Callable[[str], Path], tmp_path: Path) -> None:
    """Some files, each with a damage of its own."""
    run = finished("steady_state")
    files = ("cache.jsonl", "config.yaml", "front.json", "refined.jsonl", "returns.jsonl")
    for name, label in zip(files, ("gone", "a NaN", "an edited value", "zeros", "of another run"), strict=True):
        assert check(run, name, DAMAGES[label], tmp_path / "copy") == [], f"{name} {label}"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["mu_plus_lambda", "steady_state"])
def test_all_damages_of_all_files(algorithm: str, finished: Callable[[str], Path], tmp_path: Path) -> None:
    run, failures = finished(algorithm), {}
    for name in names(run):
        for label, damage in DAMAGES.items():
            if wrong := check(run, name, damage, tmp_path / "copy"):
                failures[f"{name} {label}"] = wrong
    assert failures == {}
