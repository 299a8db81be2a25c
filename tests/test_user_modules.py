"""Modules that a config names in ``imports``: imported, stored in the run, or refused with a next step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

import deap_prune as dp
from deap_prune.cli import app
from deap_prune.config import load_config
from deap_prune.criteria.registry import CRITERIA
from deap_prune.errors import ConfigError
from deap_prune.fitness.objectives import OBJECTIVES
from deap_prune.user_modules import import_modules
from deap_prune.weights import save_weights
from deap_prune.zoo import digits_resnet

PLUGIN = '''
import deap_prune as dp

@dp.register_criterion("{name}_criterion", needs="weight")
def criterion(weight):
    """Largest absolute weight."""
    return weight.abs().amax(dim=1)

@dp.register_objective("{name}_objective", maximise=True, worst=0.0)
def objective(outputs, targets, dense_outputs):
    """Gap between the two largest probabilities."""
    return outputs.softmax(1).topk(2).values.diff().abs().squeeze(1)
'''


def plugin(folder: Path, name: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(PLUGIN.format(name=name))
    return path


def config(folder: Path, name: str, **keys: object) -> Path:
    """A config of a small search with the criterion and the objective of a module."""
    torch.manual_seed(0)
    save_weights(digits_resnet(width=4), folder / "net.safetensors")
    search = {
        "criteria": ["l1", f"{name}_criterion"],
        "objectives": [f"{name}_objective", "flops"],
        "population": 4,
        "generations": 0,
        "finalists": 0,
        "refine": False,
    }
    factory = {"factory": "deap_prune.zoo:digits_resnet", "kwargs": {"width": 4}}
    sections = {
        "model": {**factory, "weights": str(folder / "net.safetensors")},
        "data": {"format": "digits", "calibration": 20, "validation": 20},
        "search": search,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump({**sections, **keys}))
    return folder / "run.yaml"


def here(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python's path, modules and our registries as before."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("plugin_"):
            del sys.modules[name]
    for registry in (CRITERIA, OBJECTIVES):
        for name in [entry.name for entry in registry if entry.name.startswith("plugin_")]:
            registry.remove(name)


@pytest.mark.parametrize("entry", [["plugin_a"], "plugin_a", "plugin_a.py"])
def test_a_module_beside_the_config(entry: object, tmp_path: Path) -> None:
    plugin(tmp_path, "plugin_a")
    done = here("search", config(tmp_path, "plugin_a", imports=entry), "--out", tmp_path / "run", "--quiet")
    assert done.exit_code == 0, done.output
    stored = load_config(tmp_path / "run").imports
    assert stored in ([str(tmp_path), "plugin_a"], [str(tmp_path / "plugin_a.py")])


def test_a_file_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "configs").mkdir()
    plugin(tmp_path / "work", "plugin_b")
    monkeypatch.chdir(tmp_path / "work")
    path = config(tmp_path / "configs", "plugin_b")
    done = here("search", path, "--set", "imports=plugin_b.py", "--out", "run", "--quiet")
    assert done.exit_code == 0, done.output


def test_a_run_knows_its_modules_in_another_process(tmp_path: Path) -> None:
    plugin(tmp_path, "plugin_c")
    run = tmp_path / "run"
    done = here("search", config(tmp_path, "plugin_c", imports="plugin_c"), "--out", run, "--quiet")
    assert done.exit_code == 0, done.output
    commands = [["resume", run, "--generations", "1", "--quiet"], ["slim", run, "--number", "0", "--out", "small"]]
    code = (
        "import sys\nfrom deap_prune.cli import app\n"
        f"for command in {[[*map(str, command)] for command in commands]}:\n"
        "    try:\n        app(command)\n    except SystemExit as end:\n        assert not end.code, command\n"
    )
    (tmp_path / "elsewhere").mkdir()
    other = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    assert other.returncode == 0, other.stderr
    assert (tmp_path / "elsewhere" / "small" / "recipe.json").is_file()


def test_reading_a_config_imports_nothing(tmp_path: Path) -> None:
    plugin(tmp_path, "plugin_d")
    load_config(config(tmp_path, "plugin_d", imports=["plugin_d", "plugin_d.py"]))
    assert "plugin_d" not in sys.modules and "plugin_d_criterion" not in dp.criteria()


@pytest.mark.parametrize(
    ("text", "entry", "message"),
    [
        ("", "plugin_gone.py", r"there is no 'plugin_gone.py' in '.*'; give a .py file"),
        ("", "plugin_gone", "'plugin_gone' can't be imported: No module named 'plugin_gone'; give modules or .py"),
        ("1 / 0", "plugin_e.py", "can't be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_what_cannot_be_imported(text: str, entry: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plugin_e.py").write_text(text)
    with pytest.raises(ConfigError, match=f"imports: .*{message}"):
        import_modules(load_config(config(tmp_path, "plugin_e", imports=[entry])).imports)


def test_a_file_with_the_name_of_another_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ConfigError, match=r"Python has another module of the name 'json'; rename '.*json.py'"):
        import_modules(load_config(config(tmp_path, "plugin_f", imports="json.py")).imports)


def test_an_unknown_name_says_how_the_command_line_knows_it(tmp_path: Path) -> None:
    done = here("search", config(tmp_path, "plugin_g"), "--out", tmp_path / "run")
    assert done.exit_code == 2 and "unknown criterion 'plugin_g_criterion'" in done.stderr
    assert "imports: [MODULE] in the config names the module that registers it (docs/own.md)" in done.stderr
