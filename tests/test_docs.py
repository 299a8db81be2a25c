"""The documentation: what it names exists; it builds without a broken link."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

import deap_prune as dp
from deap_prune.blending.allocation import ALLOCATIONS
from deap_prune.cli import app
from deap_prune.config import SearchConfig, describe_options
from deap_prune.evolution.loop import ALGORITHMS
from deap_prune.fitness.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
COMMANDS = typer.main.get_command(app).commands
ARGUMENTS = inspect.signature(dp.search).parameters
SEARCH_KEYS = {*SearchConfig.model_fields, *ARGUMENTS}


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [next(iter(entry.values())) for entry in yaml.safe_load(text)["nav"]]
    assert sorted(pages) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_what_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    for command, line in re.findall(r"deap-prune (\w+)([^`\n#]*)", text):
        assert command in COMMANDS, command
        known = {name for p in COMMANDS[command].params for name in (*p.opts, *p.secondary_opts)}
        assert set(re.findall(r"--[\w-]+", line)) <= known, line
    for path in re.findall(r"\bdp\.(\w+)", text):
        assert hasattr(dp, path), path
    for options in re.findall(r"dp\.search\(([^()]*)\)", text):
        assert set(re.findall(r"(\w+)=", options)) <= SEARCH_KEYS, options
    for key in re.findall(r"search\.(\w+)=", text):
        assert key in SearchConfig.model_fields, key
    for name in re.findall(r'--8<-- "([^"]+)"', text):
        assert (ROOT / name).is_file(), name


def test_options_of_the_budget_page_exist():
    rows = (ROOT / "docs/budgets.md").read_text(encoding="utf-8")
    options = set(re.findall(r"`(\w+)=", rows)) | set(re.findall(r", (\w+)=", rows))
    assert {"max_flops", "round_to", "budgets", "ignore"} <= options
    assert {o for o in options if o not in ("at_least",)} <= SEARCH_KEYS


def test_the_options_page_is_what_the_code_says():
    """Each option with its default and meaning; each objective, allocation and algorithm of ours."""
    text = (ROOT / "docs/options.md").read_text(encoding="utf-8").replace("\\|", "|")
    rows = [tuple(cell.strip(" `") for cell in line.strip("|").split(" | ")) for line in text.splitlines()]
    options = {(key, default.strip("()"), meaning) for key, default, meaning in describe_options()}
    assert {row for row in rows if "." in row[0] and len(row) == 3} == options
    named = [row[0] for row in rows if len(row) == 2]
    assert set(named) <= {"name", "---", *OBJECTIVES.describe(), *ALLOCATIONS.describe(), *ALGORITHMS.describe()}
    for registry in (OBJECTIVES, ALLOCATIONS, ALGORITHMS):
        for name, meaning in registry.describe().items():
            assert (name, *meaning.split(" | ")) in rows, f"| `{name}` | {meaning} |"


def test_the_documentation_builds_strictly(tmp_path):
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("the extra 'docs' is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/own/index.html").read_text(encoding="utf-8")
    assert "wrong_and_sure" in page and "fonts.googleapis" not in page
