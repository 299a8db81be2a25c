"""One registry for every plugin point: criteria, objectives, allocations, layers."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Generic, Protocol, TypeVar

from deap_prune.errors import RegistryError, did_you_mean


class Entry(Protocol):
    """What every registry entry tells about itself."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def summary(self) -> str: ...  # noqa: D102
    @property
    def reference(self) -> str: ...  # noqa: D102


E = TypeVar("E", bound=Entry)


class Registry(Generic[E]):
    """Names to entries. A duplicate is an error; a miss lists the names and the nearest one.

    Third-party packages add entries under the entry-point group ``deap_prune.<plural>``; these are imported at the
    first miss (or listing), so that an installed plugin needs no import of its own.

    Args:
        kind: What an entry is called in messages, singular ("criterion").
        plural: The plural, also the last part of the entry-point group ("criteria").
    """

    def __init__(self, kind: str, plural: str) -> None:
        self.kind = kind
        self.plural = plural
        self._entries: dict[str, E] = {}
        self._plugins_loaded = False

    def add(self, entry: E) -> E:
        """Add an entry.

        Raises:
            RegistryError: If the name is taken.
        """
        if entry.name in self._entries:
            raise RegistryError(f"the {self.kind} '{entry.name}' is registered already; choose another name")
        self._entries[entry.name] = entry
        return entry

    def __getitem__(self, name: str) -> E:
        if name not in self._entries:
            self._load_plugins()
        if name not in self._entries:
            raise RegistryError(f"unknown {self.kind} '{name}'; {did_you_mean(name, self._entries)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[E]:
        self._load_plugins()
        return iter(list(self._entries.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def remove(self, name: str) -> None:
        """Take an entry out again (for tests and notebooks that register a name twice)."""
        self._entries.pop(self[name].name)

    def describe(self) -> dict[str, str]:
        """Name to one line: what it is, and where it comes from."""
        return {e.name: f"{e.summary} [{e.reference}]" if e.reference else e.summary for e in self}

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        for point in entry_points(group=f"deap_prune.{self.plural}"):
            point.load()
