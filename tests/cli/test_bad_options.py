"""Every option of every command with bad values: one or two lines of our own, exit code 1 or 2, and nothing written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import deap_prune as dp
from deap_prune.cli import app
from tests.attack import inputs

FACTORY = f"{inputs.__name__}:net"
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
VALUES = {
    "integer": ["x", "-1", "1.5", "nan", "", "9" * 30],
    "float": ["x", "-1", "nan", "inf", ""],
    "path": ["", "x" * 300],
    "text": ["", "nonsense", "-1"],
}
"""Bad values by the type of an option."""


def tree(folder: Path) -> dict[str, Any]:
    """The files and folders of a place, with their content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, a run, images, a file that is no folder, and a folder that is no file."""
    place = tmp_path_factory.mktemp("home")
    given: dict[str, Any] = {"factory": FACTORY, "keep_data": True, "generations": 1, "device": "cpu"}
    given |= {"criteria": ("l1", "fpgm"), "population": 4, "refine": False, "finalists": 0, "progress": False}
    dp.search(inputs.net(), inputs.X[:1], **inputs.DATA, out=place / "run", **given)
    for split, name in ((split, name) for split in ("train", "test") for name in ("a", "b", "c")):
        (place / "images" / split / name).mkdir(parents=True)
        for number in range(4):
            image = Image.new("RGB", (6, 6), (60 * number, 50, 50))
            image.save(place / "images" / split / name / f"{number}.png")
    data = {"format": "image_folder", "root": str(place / "images/train"), "size": 6, "calibration": 4, "validation": 4}
    search = {"criteria": ["l1"], "population": 4, "generations": 0, "refine": False, "device": "cpu"}
    (place / "run.yaml").write_text(yaml.safe_dump({"model": {"factory": FACTORY}, "data": data, "search": search}))
    (place / "file").write_text("a file")
    for name in ("folder", "folder.safetensors", "folder.pth"):
        (place / name).mkdir()
    return place


BASES: dict[str, list[str]] = {
    "init": ["--model", FACTORY, "--data", "images", "--out", "new.yaml"],
    "prune": [FACTORY, "--data", "images", "--out", "new", "--quiet"],
    "search": ["run.yaml", "--out", "new", "--quiet"],
    "resume": ["run", "--quiet"],
    "report": ["run", "--quiet", "--no-network"],
    "watch": ["run"],
    "inspect": ["run", "--quiet"],
    "slim": ["run", "--number", "0", "--out", "new.safetensors"],
    "finetune": ["run", "--number", "0", "--quiet", "--data", "images", "--out", "new.safetensors"],
    "export": ["run", "--number", "0", "--format", "safetensors", "--out", "new"],
    "latency": ["run", "--out", "new.json", "--quiet"],
    "criteria": [],
    "options": [],
}
"""Arguments that work, by command."""


def kinds(command: str) -> dict[str, str]:
    """The kind of values of each parameter of a command that takes one."""
    (entry,) = [e for e in app.registered_commands if e.callback.__name__ == command]  # type: ignore[union-attr]
    texts = {name: str(hint) for name, hint in get_type_hints(entry.callback).items()}
    names = {"int": "integer", "float": "float", "Path": "path", "bool": ""}
    return {
        name: next((kind for part, kind in names.items() if re.search(rf"\b{part}\b", text)), "text")
        for name, text in texts.items()
        if name != "return"
    }


def sweep() -> Iterator[tuple[str, list[str]]]:
    """Each option with bad values of its type, and the cases below."""
    for command, base in BASES.items():
        yield command, [*base, "--no-such-option"]
        yield command, [*base, "too", "many", "arguments"]
        parameters = {parameter.name: parameter for parameter in COMMANDS[command].params}
        for name, kind in kinds(command).items():
            parameter = parameters[name]
            for value in VALUES.get(kind, ()):
                if parameter.param_type_name == "argument":
                    yield command, [value, *base[1:]]
                elif (command, name, value) not in LEGAL:
                    yield command, [*base, parameter.opts[0], value]
    for line in CASES.strip().splitlines():
        beginning, *endings = line.split("|")
        for ending in endings:
            command, *arguments = f"{beginning} {ending}".split()
            yield command, arguments


LEGAL = {("watch", "run", "nonsense")}
"""Values that look bad and are not."""

CASES = f"""
slim run | --number 99 | --number -1 | --number 0 --knee | --knee --max-flops 1 | --max-flops 0 | --max-flops 1e-9
slim run | --max-flops 2 | --max-flops 150X | --max-latency 0.5 | --max-params -1 | --max-flops 1 --max-params 0
slim run --number 0 --out | file | file/new | folder.safetensors | /proc/new
slim run --number 0 --model | torch.nn:Identity | torch.nn:nothing | no.module:x
slim | nowhere | file | folder | run.yaml | run/masks
finetune run --number 0 --data | nowhere | file | folder | run
finetune run --number 0 --data images | --state folder | --epochs 0 | --epochs -1
finetune run --number 0 --data images --out | folder | new.txt | file/new.pth | folder.pth
finetune run --number 0 --data images --set | finetune.epochs=0 | a=b | x | finetune=3
export run --number 0 | --format nope | --int8 --format onnx | --out file
export run --number 0 --weights | nowhere.pth | folder | file | run/data.safetensors
latency run | --quiet | --out a --export b | --export b --import file | --import nowhere --out a
latency run --out new.json | --batch 0 | --threads 0 | --runtime x | --device x
latency run | --out file | --out folder | --export file | --out a --import file
search --out new | nowhere.yaml | file | folder | images
search run.yaml --out | run | file | images | file/new | /proc/new | run --yes --set x
search run.yaml --yes --out | images | file | folder/../images
search run.yaml --out new --set | search=3 | search.seed=x | data.root=nowhere | search.
search run.yaml --out new --ray | local,x=3 | local,workers=x
resume | nowhere | file | folder | run --generations 0 | run --model torch.nn:Identity
report | nowhere | folder | run nowhere | run run.yaml | run --singles -1 | run --no-network --model a:b
inspect | nowhere | file | images | run --criteria --out file | run --max-flops 0.5 | run --criteria --max-flops 0
prune {FACTORY} --out new --data | nowhere | file | folder
prune {FACTORY} --data images --yes --out | images | file | folder/../images
prune --data images --out new | resnet1 | no.module:x | torch.nn:Identity | : | a:
prune {FACTORY} --data images --out new | --max-flops 0 | --weights nowhere
init --model {FACTORY} --data images --out | run.yaml | folder | file/new | /proc/new | new --max-flops 2
watch | file | run --port -1 | run --port 70000
"""
"""Options that exclude each other, files in the place of folders, unknown names; the endings of a line after bars."""


def check(command: str, arguments: list[str], place: Path) -> str:
    """What is wrong with the end of a command; empty if nothing is."""
    before = tree(place)
    done = CliRunner().invoke(app, [command, *arguments], env={"COLUMNS": "200"})
    lines, error = done.stderr.splitlines(), done.exception
    if error is not None and not isinstance(error, SystemExit):
        return f"raw {type(error).__name__}: {error}"
    if done.exit_code not in (1, 2) or not 1 <= len(lines) <= 2 or not lines[-1].startswith("error: "):
        return f"exit code {done.exit_code}: {lines[-3:]}"
    after = tree(place)
    changed = {name for name in {*before, *after} if before.get(name, ...) != after.get(name, ...)}
    return f"changed {sorted(changed)[:5]}" if changed else ""


def failures(chosen: list[tuple[str, list[str]]], place: Path) -> str:
    """The commands that do not end as they should, and how they end."""
    ends = {f"{command} {arguments}": check(command, arguments, place) for command, arguments in chosen}
    return "\n".join(f"{command}: {text}" for command, text in ends.items() if text)


def test_some_bad_options(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert failures(list(sweep())[::15], home) == ""


@pytest.mark.slow
def test_all_bad_options(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert failures(list(sweep()), home) == ""
