"""The refined networks of a run, kept in its folder: a kill loses one network, and a longer run loses none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deap_prune.files import append_line, parse_json, read_text, remove_file, sealed, unsealed
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.search.folder import pack_masks, unpack_masks
from deap_prune.structure.masks import Masks

Values = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Refined:
    """A refined network.

    Attributes:
        individual: The genes that it comes from.
        masks: The filters that it keeps.
        values: Its objectives' values, in order.
    """

    individual: tuple[float, ...]
    masks: Masks
    values: Values


class RefinedNetworks:
    """The refined networks of a run by the masks that their individuals decode to, in the order of refinement.

    With a path, every network is appended to that file and synced. The networks of an earlier end of the run are read
    from it if they were evaluated with the same settings.

    Args:
        path: ``refined.jsonl`` in the run folder; None keeps the networks in memory.
        evaluator: The evaluator of the networks.
        task: What the run depends on (network, data, ...), as a text; networks of another task are not read.
    """

    def __init__(self, path: Path | None, evaluator: Evaluator, task: str = "") -> None:
        self._path, self._space = path, evaluator.space
        head = {"objectives": list(evaluator.names), "settings": evaluator.settings, "task": task}
        self._head = json.dumps(head)
        self._networks: dict[Masks, Refined] = {}
        if path is not None:
            self._read(path)

    def __len__(self) -> int:
        return len(self._networks)

    def __iter__(self) -> Iterator[Refined]:
        return iter(self._networks.values())

    def get(self, decoded: Masks) -> Refined | None:
        """The refined network of an individual's masks, or None."""
        return self._networks.get(decoded)

    def add(self, decoded: Masks, network: Refined) -> None:
        """Keep a network.

        Args:
            decoded: The masks that its individual decodes to.
            network: The refined network; it may keep other filters than its individual says.
        """
        self._networks[decoded] = network
        if self._path is not None:
            masks = [pack_masks(self._space, m) for m in (decoded, network.masks)]
            self._append(sealed(json.dumps([*masks, list(network.values), list(network.individual)])))

    def _read(self, path: Path) -> None:
        """Read the networks of whole lines; begin the file anew if they were evaluated otherwise."""
        head, *lines = _lines(path)
        if head != self._head:
            remove_file(path)
            self._append(self._head)
            return
        for line in lines:
            content = unsealed(line)
            if content is None:  # the last line, if a kill cut it
                continue
            decoded, kept, values, genes = parse_json(content, finite=False)
            network = Refined(tuple(genes), unpack_masks(self._space, kept), tuple(values))
            self._networks[unpack_masks(self._space, decoded)] = network
        if lines and lines[-1]:
            self._append("")  # end the line that was cut

    def _append(self, line: str) -> None:
        if self._path is not None:
            append_line(self._path, line)


def _lines(path: Path) -> list[str]:
    """The lines of a file; one empty line if it is missing or can't be read."""
    try:
        return read_text(path).split("\n")
    except (OSError, ValueError):
        return [""]


def spread(items: Sequence[Any]) -> list[Any]:
    """The items in an order whose every beginning is spread over them: the ends first, then middles."""
    order = list(dict.fromkeys((0, len(items) - 1))) if items else []
    gaps = [(0, len(items) - 1)]
    while gaps:
        low, high = gaps.pop(0)
        middle = (low + high) // 2
        if low < middle < high:
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [items[k] for k in order]
