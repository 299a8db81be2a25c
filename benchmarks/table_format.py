"""What the tables of RESULTS.md have in common: reading a JSON file of results, a Markdown table, a mean with n."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@cache
def read(name: str) -> Any:
    """The content of a file in results/."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def available(name: str) -> bool:
    """Whether results/ has the file."""
    return (RESULTS / f"{name}.json").is_file()


def not_measured(what: str) -> str:
    """The line that stands for a table without results."""
    return f"*Not measured yet: {what}.*"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation (n - 1), and n in parentheses."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation} ({len(values)})"
