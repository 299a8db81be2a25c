"""Hook of mkdocs: Sphinx's roles in docstrings become plain code."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:func|class|meth|attr|mod|data):(<code>)~?")


def on_page_content(html: str, **_: Any) -> str:
    """The page without ``:func:`` and the like in front of code."""
    return ROLE.sub(r"\1", html)
