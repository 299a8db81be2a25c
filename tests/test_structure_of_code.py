"""The structure of the code, read from its source: directions of imports, no import circle, short files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

import deap_prune

ROOT = Path(__file__).parents[1]
PACKAGE = Path(deap_prune.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(f.relative_to(PACKAGE)) for f in FILES]
SHORT = [
    str(f.relative_to(ROOT)) for folder in ("deap_prune", "tests", "benchmarks") for f in (ROOT / folder).rglob("*.py")
]
HEAVY = ("matplotlib", "fvcore", "sklearn", "ray", "plotly", "onnx", "torchvision")


# ------------------------------------------------------------------ imports of a file
def imports(path: Path) -> set[str]:
    """Full names of all that a file imports, anywhere in it, also under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the directions"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def offenders(folder: str, forbidden: tuple[str, ...]) -> list[str]:
    """Imports of the forbidden modules, or of modules below them, in the files of a folder (or in one file)."""
    target = PACKAGE / folder
    files = sorted(target.rglob("*.py")) if target.is_dir() else [target]
    assert files and all(f.is_file() for f in files)
    return [
        f"{f.relative_to(PACKAGE)} imports {name}"
        for f in files
        for name in sorted(imports(f))
        if any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
    ]


# ------------------------------------------------------------------ directions
@pytest.mark.parametrize("folder", ["data", "structure", "costs", "reconstruction", "criteria", "blending", "fitness"])
def test_no_deap_below_evolution(folder: str) -> None:
    assert offenders(folder, ("deap",)) == []


@pytest.mark.parametrize("folder", ["blending", "evolution/operators.py", "evolution/individual.py"])
def test_no_torch_in_blending_and_operators(folder: str) -> None:
    assert offenders(folder, ("torch", "torchvision")) == []


ROOMS = ("data", "structure", "costs", "reconstruction", "criteria", "blending", "fitness", "evolution")
ABOVE_ROOMS = ("task", "options", "config", "weights", "search", "report", "export", "interop", "cli")
ALLOWED = {
    "data": (),
    "structure": ("data",),
    "costs": ("data", "structure"),
    "reconstruction": ("data", "structure"),
    "blending": ("structure", "costs"),
    "criteria": ("data", "structure", "reconstruction"),
    "fitness": ("data", "structure", "costs", "reconstruction"),
    "evolution": ("structure", "costs", "blending"),
}
"""The other rooms that a room may import."""
BASE = ("errors", "registry", "files", "randomness", "precision", "progress", "cuda_graphs", "display", "plot")


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_the_rooms_below_them(room: str) -> None:
    forbidden = {*ROOMS, *ABOVE_ROOMS, "training", "zoo", "algorithms", "operators"} - {room, *ALLOWED[room]}
    assert offenders(room, tuple(f"deap_prune.{name}" for name in sorted(forbidden))) == []


@pytest.mark.parametrize(
    ("folder", "above"),
    [
        *(
            (f"{name}.py", (*ROOMS, *ABOVE_ROOMS))
            for name in ("errors", "registry", "files", "randomness", "precision")
        ),
        *((f"{name}.py", (*ROOMS, *ABOVE_ROOMS)) for name in ("progress", "display", "plot")),
        ("training", (*(room for room in ROOMS if room != "data"), *ABOVE_ROOMS)),
        ("task.py", ("costs", "reconstruction", "criteria", "blending", "fitness", "evolution", *ABOVE_ROOMS[1:])),
        ("options.py", ("task", *ABOVE_ROOMS[2:])),
        ("config.py", ("task", *ABOVE_ROOMS[3:])),
        ("search", ("report", "export", "interop", "cli")),
        ("report", ("export", "interop", "cli")),
        ("export.py", ("search", "report", "interop", "cli")),
        ("operators.py", ("fitness", *ABOVE_ROOMS)),
        ("algorithms.py", ("fitness", *ABOVE_ROOMS)),
    ],
)
def test_imports_point_one_way(folder: str, above: tuple[str, ...]) -> None:
    assert offenders(folder, tuple(f"deap_prune.{name}" for name in above)) == []


def test_no_module_imports_the_whole_package() -> None:
    whole = [name for name, path in zip(NAMES, FILES, strict=True) if "deap_prune" in imports(path)]
    assert whole == []


# ------------------------------------------------------------------ circles
def module_graph(package: Path) -> dict[str, set[str]]:
    """The modules of a package that each of its modules imports, also under TYPE_CHECKING and inside functions."""
    files = {module_name(package, path): path for path in package.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        graph[module] = {m for name in imports(path) if (m := module_of(name, files)) and m != module}
    return graph


def module_name(package: Path, path: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_of(name: str, modules: Mapping[str, object]) -> str:
    """The module that defines a full name; empty if it is none of these."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Strongly connected components of more than one module (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    components: list[set[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        path.append(module)
        for target in sorted(graph[module]):
            if target not in order:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in path:
                lowest[module] = min(lowest[module], order[target])
        if lowest[module] == order[module]:
            component = set(path[path.index(module) :])
            del path[path.index(module) :]
            if len(component) > 1:
                components.append(component)

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return components


def test_circles_are_detected() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": {"f"}, "f": {"d"}, "g": {"a"}}
    assert circles(graph) == [{"d", "e", "f"}, {"b", "c"}]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_there_is_no_import_circle() -> None:
    graph = module_graph(PACKAGE)
    assert len(graph) == len(FILES) and graph["deap_prune.fitness.evaluator"] > {"deap_prune.fitness.settings"}
    assert circles(graph) == []


# ------------------------------------------------------------------ sizes
@pytest.mark.parametrize("name", SHORT)
def test_files_have_at_most_350_lines(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= 350


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Number of lines from the signature on, without docstring, comments and blank lines."""
    text = lines[function.lineno - 1 : function.end_lineno]
    if ast.get_docstring(function) is not None:
        first, last = function.body[0].lineno, function.body[0].end_lineno or 0
        del text[first - function.lineno : last - function.lineno + 1]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in text)


@pytest.mark.parametrize("name", NAMES)
def test_functions_have_at_most_50_lines_of_code(name: str) -> None:
    source = (PACKAGE / name).read_text()
    lengths = {f.name: code_lines(f, source.splitlines()) for f in functions(ast.parse(source))}
    assert {function: length for function, length in lengths.items() if length > 50} == {}


# ------------------------------------------------------------------ rules of all files
@pytest.mark.parametrize("name", NAMES)
def test_errors_are_our_own(name: str) -> None:
    """No ``assert`` (it vanishes under -O), no bare ``except``, no pickle."""
    tree = ast.parse((PACKAGE / name).read_text())
    lines = [
        f"line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert) or (isinstance(node, ast.ExceptHandler) and node.type is None)
    ]
    assert lines == []
    assert not {"pickle", "dill", "cloudpickle"} & imports(PACKAGE / name)


CACHE = ("cache", "_cache")
CHANGES = ("update", "setdefault", "pop", "popitem", "clear")


def cache_writes(tree: ast.AST) -> Iterator[int]:
    """Lines that assign to an attribute ``cache``, to an item of it, or call a method that changes it."""
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif isinstance(node, ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            targets = [node.func.value]
        for target in targets:
            owner = target.value if isinstance(target, ast.Subscript) else target
            if isinstance(owner, ast.Attribute) and owner.attr in CACHE:
                yield node.lineno


def test_writes_to_a_cache_are_detected() -> None:
    lines = (
        "e.cache[m] = 1",
        "e.cache |= x",
        "del e.cache[m]",
        "e.cache = {}",
        "e._cache.update(x)",
        "e.cache.clear()",
    )
    for line in lines:
        assert list(cache_writes(ast.parse(line))) == [1], line
    for line in ("x = e.cache[m]", "e.cache.items()", "cache[m] = 1", "m in e.cache"):
        assert list(cache_writes(ast.parse(line))) == [], line


@pytest.mark.parametrize("name", NAMES)
def test_only_the_fitness_writes_to_an_evaluators_cache(name: str) -> None:
    if not name.startswith("fitness/"):
        own = 1 if name == "evolution/fitness.py" else 0  # the empty cache of its adapter
        assert len(list(cache_writes(ast.parse((PACKAGE / name).read_text())))) == own


# ------------------------------------------------------------------ the package from outside
def test_the_import_is_light() -> None:
    code = f"import sys, deap_prune; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and done.stderr == ""


def test_all_lists_the_public_names() -> None:
    assert sorted(deap_prune.__all__) == sorted(set(deap_prune.__all__))
    for name in deap_prune.__all__:
        assert getattr(deap_prune, name).__doc__, f"{name} has no docstring"


def test_there_are_at_most_41_public_names() -> None:
    names = [name for name in deap_prune.__all__ if not isinstance(getattr(deap_prune, name), ModuleType)]
    assert len(names) <= 41
