"""Fill the code blocks of the pages from the programs in examples/: ``make examples``; a test compares them.

A block whose title is a program, ```` ```python title="examples/front.py" ````, holds its text. After a colon the title
names a part, between the lines ``# [start: NAME]`` and ``# [end: NAME]`` of the program.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'^```python title="(examples/[\w/]+\.py)(?:: (\w+))?"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
MARK = re.compile(r"^ *# \[(?:start|end): \w+\]\n", re.MULTILINE)


def code(path: str, part: str | None) -> str:
    """The text of a program, or of a part of it."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if part is not None:
        text = text.split(f"# [start: {part}]\n")[1].split(f"# [end: {part}]")[0].rstrip(" ")
    return textwrap.dedent(MARK.sub("", text)).strip("\n") + "\n"


def filled(page: str) -> str:
    """The text of a page with its blocks filled."""
    return BLOCK.sub(lambda m: m[0][: m.start(3) - m.start()] + code(m[1], m[2]) + "```", page)


if __name__ == "__main__":
    for path in sorted((ROOT / "docs").rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            path.write_text(new, encoding="utf-8")
