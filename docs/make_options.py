"""Write options.md from what the package declares: ``make options``; a test compares the committed page with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import deap_prune as dp
from deap_prune.config import describe_options

PAGE = Path(__file__).parent / "options.md"
HEAD = """# Options

One YAML file is one run. The keys of its section `search` are the options of `dp.search` as well:
`dp.search(..., generations=10)` is `--set search.generations=10`. `deap-prune options` prints this table.
"""
DATA = """The section `data` also holds `calibration` (500) and `validation` (1000), the numbers of training images
drawn for each, `seed`, `exclude_from_train` (false; leave them out of fine-tuning), and the options of its format:

- npz: `train`, `test`, `mean`, `std`, `num_classes`
- image_folder: `train`, `test`, `size`, `resize`, `mean`, `std`
- torchvision: `name`, `root`, `download`, `mean`, `std`
- factory: `factory`, `kwargs`
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(list(head)), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def registry(title: str, entries: Mapping[str, str]) -> str:
    """A section with a registry's names and what each is."""
    rows = ((f"`{name}`", text.replace("|", "\\|")) for name, text in entries.items())
    return f"## {title}\n\n" + table(("name", "meaning"), rows)


def page() -> str:
    """The text of options.md."""
    rows = [
        (f"`{key}`", "needed" if default == "(needed)" else f"`{default}`", meaning.replace("|", "\\|"))
        for key, default, meaning in describe_options()
    ]
    parts = [HEAD, table(("option", "default", "meaning"), rows), DATA]
    parts += [registry("Objectives", dp.objectives()), registry("Allocations", dp.allocations())]
    parts += [
        registry("Algorithms", dp.algorithms.describe()),
        "Criteria: `deap-prune criteria`, or `dp.criteria()`.\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
