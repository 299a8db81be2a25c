"""Arrows point one way, files stay short, and the import is quick: read from the source, not from promises."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deap_prune

PACKAGE = Path(deap_prune.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(f.relative_to(PACKAGE)) for f in FILES]
HEAVY = ("matplotlib", "fvcore", "sklearn", "ray", "plotly", "onnx", "torchvision")


def imports(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Full names of all that a file imports; without what is under TYPE_CHECKING if only run time counts."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if at_run_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(inner for part in node.body for inner in ast.walk(part))
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrows"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def offenders(folder: str, forbidden: tuple[str, ...], *, at_run_time: bool = False) -> list[str]:
    """Files under a folder (or one file) that import any of the modules or what is below them."""
    target = PACKAGE / folder
    files = sorted(target.rglob("*.py")) if target.is_dir() else [target]
    assert files and all(f.is_file() for f in files)
    return [
        f"{f.relative_to(PACKAGE)} imports {name}"
        for f in files
        for name in sorted(imports(f, at_run_time=at_run_time))
        if any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
    ]


def of(*parts: str) -> tuple[str, ...]:
    return tuple(f"deap_prune.{p}" for p in parts)


@pytest.mark.parametrize("folder", ["structure", "reconstruction", "criteria", "fitness"])
def test_no_deap_below_evolution(folder: str) -> None:
    assert offenders(folder, ("deap",)) == []


@pytest.mark.parametrize("folder", ["blending", "evolution/operators.py", "evolution/individual.py"])
def test_no_torch_in_blending_and_operators(folder: str) -> None:
    assert offenders(folder, ("torch", "torchvision")) == []


UP = ("search", "cli", "report", "plot", "config", "ranking", "interop", "runs", "training", "export")
PARTS = ("structure", "reconstruction", "criteria", "blending", "fitness", "evolution")


@pytest.mark.parametrize(
    ("folder", "above"),
    [
        ("errors.py", ("registry", "data", *PARTS, *UP)),
        ("registry.py", ("data", *PARTS, *UP)),
        ("data", (*PARTS, *UP)),
        ("training", (*PARTS, "search", "cli", "report", "config", "runs", "export")),
        ("structure", ("reconstruction", "criteria", "blending", "fitness", "evolution", *UP)),
        ("reconstruction", ("criteria", "blending", "fitness", "evolution", *UP)),
        ("criteria", ("blending", "fitness", "evolution", *UP)),
        ("blending", ("reconstruction", "fitness", "evolution", *UP)),
        ("fitness", ("blending", "evolution", *UP)),
        ("evolution", ("fitness", *UP)),
        ("runs", ("search", "cli", "report", "ranking", "export")),
        ("search.py", ("cli", "report", "ranking")),
    ],
)
def test_arrows_point_one_way(folder: str, above: tuple[str, ...]) -> None:
    assert offenders(folder, of(*above), at_run_time=True) == []


@pytest.mark.parametrize("name", NAMES)
def test_files_are_short(name: str) -> None:
    assert len((PACKAGE / name).read_text().splitlines()) <= 350


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_our_own(name: str) -> None:
    """No ``assert`` (it vanishes under -O), no bare ``except``, no pickle."""
    tree = ast.parse((PACKAGE / name).read_text())
    found = [
        f"line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert) or (isinstance(node, ast.ExceptHandler) and node.type is None)
    ]
    assert found == []
    assert not {"pickle", "dill", "cloudpickle"} & imports(PACKAGE / name)


def test_import_is_light() -> None:
    code = f"import sys, deap_prune; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and done.stderr == ""


def test_all_is_what_there_is() -> None:
    assert sorted(deap_prune.__all__) == sorted(set(deap_prune.__all__))
    for name in deap_prune.__all__:
        assert getattr(deap_prune, name).__doc__, f"{name} has no docstring"
