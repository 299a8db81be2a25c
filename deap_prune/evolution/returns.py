"""The journal of returns: which candidate came back when, and with which values.

A steady-state run is a function of its seed and of the order of returns. So a run that was stopped goes on from this
file, and a whole run can be replayed from it without an evaluation.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deap_prune.errors import RunError
from deap_prune.evolution.compatibility import check_same_task
from deap_prune.files import append_line, parse_json, read_text, remove_file, sealed, unsealed, write_text

MOST_BYTES = 2**31
"""Size limit of a journal: about 20 million returns."""


@dataclass(frozen=True)
class Return:
    """A candidate that came back.

    Attributes:
        place: Its place in the order of returns, from 0.
        number: Its place in the order in which candidates were made, from 0.
        made: Candidates made before it came back.
        genes: Checksum of its genes.
        values: Its fitness values.
    """

    place: int
    number: int
    made: int
    genes: str
    values: tuple[float, ...]


class Returns:
    """The journal of a run: a text file, to which returns are appended and synced to the disk before they count.

    A line has a checksum; a line that a kill cut is dropped when the file is opened.

    Args:
        path: The file; it is made when the first candidate returns.
        fingerprint: What the run depends on, by name, as in its checkpoints; another task is refused.

    Raises:
        RunError: If the file is the journal of another task, or no journal.
    """

    def __init__(self, path: str | Path, fingerprint: Mapping[str, str] | None = None) -> None:
        self.path = Path(path)
        self._head = json.dumps({"returns": 1, "fingerprint": dict(fingerprint or {})})
        self._lines = self._intact()

    def after(self, place: int) -> list[Return]:
        """The returns from this place on, in order. Later lines that do not follow them are removed from the file.

        Args:
            place: Number of returns that the state to continue from has seen.
        """
        following = {line.place: line for line in self._lines if line.place >= place}
        returns: list[Return] = []
        while place + len(returns) in following:
            returns.append(following[place + len(returns)])
        if returns != [line for line in self._lines if line.place >= place]:
            warnings.warn(f"'{self.path}' has a gap; the returns after it are dropped", stacklevel=2)
            self._rewrite([line for line in self._lines if line.place < place] + returns)
        elif place and (not self._lines or self._lines[-1].place < place - 1):
            warnings.warn(
                f"'{self.path}' is lost or damaged: the run goes on from its checkpoint, but it can't be replayed from "
                "its beginning",
                stacklevel=2,
            )
        return returns

    def append(self, returns: Sequence[Return]) -> None:
        """Write returns that came together, and sync the file.

        Raises:
            RunError: If the operating system refuses.
        """
        if not self._lines and not self.path.exists():
            append_line(self.path, self._head)
        append_line(self.path, "\n".join(sealed(_text(entry)) for entry in returns))
        self._lines += returns

    def _intact(self) -> list[Return]:
        """The whole lines of the file, which is cut after them."""
        try:
            text = read_text(self.path, most=MOST_BYTES)
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise RunError(f"the journal '{self.path}' can't be read: {error}; move it away to begin anew") from error
        head, *rest = text.split("\n")
        if not rest and self._head.startswith(head):  # killed in the first line
            remove_file(self.path)
            return []
        check_same_task(_fingerprint(head, self.path), _fingerprint(self._head, self.path), self.path.parent)
        self._head, lines = head, []
        for line in rest[:-1]:
            content = unsealed(line)
            if content is None:
                break
            place, number, made, genes, values = json.loads(content)
            lines.append(Return(place, number, made, genes, tuple(values)))
        dropped = len(rest) - 1 - len(lines)
        if dropped or rest[-1]:
            if dropped:
                warnings.warn(f"'{self.path}' is damaged after {len(lines)} returns; {dropped} are lost", stacklevel=4)
            self._rewrite(lines)
        return lines

    def _rewrite(self, lines: list[Return]) -> None:
        write_text(self.path, "".join(f"{line}\n" for line in [self._head, *(sealed(_text(entry)) for entry in lines)]))
        self._lines = lines


def checksum(individual: Any) -> str:
    """A checksum of an individual's genes, the same for Python's and NumPy's numbers."""
    genes = [gene.item() if isinstance(gene, np.generic) else gene for gene in individual]
    text = repr(genes) if all(isinstance(gene, (int, float)) for gene in genes) else str(individual)  # trees, strings
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(entry: Return) -> str:
    return json.dumps([entry.place, entry.number, entry.made, entry.genes, list(entry.values)])


def _fingerprint(head: str, path: Path) -> dict[str, str]:
    """The fingerprint in the first line of a journal.

    Raises:
        RunError: If it is none.
    """
    try:
        content = parse_json(head)
        if content["returns"] == 1 and isinstance(content["fingerprint"], dict):
            return {str(name): str(text) for name, text in content["fingerprint"].items()}
    except (ValueError, KeyError, TypeError):
        pass
    raise RunError(f"'{path}' is no journal of returns of this version; move it away, or give another file")
