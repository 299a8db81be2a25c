"""The documentation: names on pages exist, generated pages are up to date, and it builds without a broken link."""

import importlib.util
import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer

import deap_prune as dp
from deap_prune.cli import app
from deap_prune.criteria import CRITERIA
from deap_prune.fitness import OBJECTIVES
from deap_prune.options import SearchOptions

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
COMMANDS = typer.main.get_command(app).commands
OPTIONS = {field.name for field in fields(SearchOptions)}
SEARCH_KEYWORDS = OPTIONS | set(inspect.signature(dp.search).parameters)


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation():
    pages = re.findall(r"\S+\.md$", text_of("mkdocs.yml"), flags=re.MULTILINE)
    assert sorted(pages) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_every_name_on_a_page_exists(page):
    text = page.read_text(encoding="utf-8")
    for command, line in re.findall(r"deap-prune (\w+)([^`\n#]*)", text):
        assert command in COMMANDS, command
        known = {name for p in COMMANDS[command].params for name in (*p.opts, *p.secondary_opts)}
        assert set(re.findall(r"--[\w-]+", line)) <= known, line
    for path in re.findall(r"\bdp\.((?:\w+\.)*\w+)", text):
        owner = dp
        for name in path.split("."):
            assert hasattr(owner, name), path
            owner = getattr(owner, name)
    for options in re.findall(r"dp\.search\(([^()]*)\)", text):
        assert set(re.findall(r"(\w+)=", options)) <= SEARCH_KEYWORDS, options
    for key in re.findall(r"search\.(\w+)=", text):
        assert key in OPTIONS, key
    assert "--8<--" not in text  # pages are read as they are, too


def test_options_of_the_budget_page_exist():
    rows = re.sub(r"```.*?```", "", text_of("docs/budgets.md"), flags=re.DOTALL)
    options = set(re.findall(r"`(\w+)=", rows)) | set(re.findall(r", (\w+)=", rows))
    assert {"max_flops", "round_to", "ignore"} <= options
    assert options - {"at_least", "budgets", "cost", "highest"} <= SEARCH_KEYWORDS


def test_the_options_page_is_generated(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    assert text_of("docs/options.md") == importlib.import_module("make_options").page(), "run `make options`"


def test_the_programs_on_the_pages_are_those_of_the_examples(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    examples, blocks = importlib.import_module("fill_examples"), 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks += len(examples.BLOCK.findall(text))
        assert text == examples.filled(text), "run `make examples`"
        assert text.count('title="examples/') == len(examples.BLOCK.findall(text)), page
    assert blocks > 20
    part = examples.code("examples/detector.py", "prune")
    assert len(part.splitlines()) > 5 and "[start" not in part and not part.startswith(" ")


def test_the_readme_is_short():
    text = text_of("README.md")
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1600


@pytest.mark.slow
def test_the_readmes_programs_run(digits, tmp_path, monkeypatch, capsys):
    """Pasted one after the other, on few images and with small numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deap_prune.zoo.trained_digits_resnet", lambda: digits.model)
    monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA._entries))
    monkeypatch.setattr(OBJECTIVES, "_entries", dict(OBJECTIVES._entries))
    text, names = text_of("README.md"), {}
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    small = {"population=16": "population=4", "generations=5": "generations=1", "epochs=10": "epochs=1"}
    small |= {"n=32": "n=4", "32, 32, 0.5, 0.5, 20": "4, 4, 0.5, 0.5, 1"}
    for block in blocks:
        for long, short in small.items():
            block = block.replace(long, short)
        exec(compile(block, "README.md", "exec"), names)
    assert names["small"] is not digits.model and "best accuracy" in capsys.readouterr().out


def test_the_readmes_results_are_those_of_the_results_page():
    section = text_of("README.md").split("## Results")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert 3 < len(rows) <= 14 and set(rows) <= set(text_of("benchmarks/RESULTS.md").splitlines())


def test_the_readmes_folders_exist():
    section = text_of("README.md").split("## Architecture")[1].split("\n## ")[0]
    folders = re.findall(r"`(\w+)/`", section)
    assert len(folders) > 8
    assert all((ROOT / "deap_prune" / name).is_dir() or name == "tracing" or name == "passes" for name in folders)


def test_the_documentation_builds_strictly(tmp_path):
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("the extra 'docs' is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/own/index.html").read_text(encoding="utf-8")
    assert "wrong_and_sure" in page and "fonts.googleapis" not in page
    for built in (tmp_path / "site").rglob("*.html"):
        text = built.read_text(encoding="utf-8")
        assert not re.search(r":(func|class|meth|attr|mod):", text), f"a raw role in {built}"
        assert "--8&lt;--" not in text and "[start:" not in text, f"a marker in {built}"
