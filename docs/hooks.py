"""Hooks of mkdocs: the results page shows RESULTS.md, and Sphinx's roles in docstrings become plain code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "RESULTS.md"
ROLE = re.compile(r":(?:func|class|meth|attr|mod|data):(<code>)~?")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page; of the results page that of RESULTS.md."""
    return RESULTS.read_text(encoding="utf-8") if page.file.src_uri == "results.md" else markdown


def on_page_content(html: str, **_: Any) -> str:
    """The page without ``:func:`` and the like in front of code."""
    return ROLE.sub(r"\1", html)
