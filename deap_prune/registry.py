"""The registry class of all plugin points: criteria, objectives, allocations and others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, Protocol, TypeVar

from deap_prune.errors import RegistryError, did_you_mean


class Entry(Protocol):
    """Attributes of every registry entry."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def summary(self) -> str: ...  # noqa: D102
    @property
    def reference(self) -> str: ...  # noqa: D102


E = TypeVar("E", bound=Entry)

LISTS = {
    "criteria": "dp.criteria()",
    "objectives": "dp.objectives()",
    "allocations": "dp.allocations()",
    "algorithms": "dp.algorithms.describe()",
}
"""Call that lists the entries of a registry."""


class Registry(Generic[E]):
    """A mapping from names to entries. The error for an unknown name shows the nearest names.

    Third-party packages add entries with the entry-point group ``deap_prune.<plural>``. They are imported at the first
    unknown name or listing, so users do not have to import an installed plugin.

    Args:
        kind: Name of an entry in messages, singular ("criterion").
        plural: The plural ("criteria"), also the last part of the entry-point group.
        source: Another registry, each of whose entries makes an entry here of the same name.
        derive: Function of an entry of ``source`` to the entry here, or to None.
    """

    def __init__(
        self,
        kind: str,
        plural: str,
        source: Registry[Any] | None = None,
        derive: Callable[[Any], E | None] = lambda entry: None,
    ) -> None:
        self.kind = kind
        self.plural = plural
        self._source, self._derive = source, derive
        self._entries: dict[str, E] = {}
        self._plugins_loaded = False

    def add(self, entry: E) -> E:
        """Add an entry.

        Raises:
            RegistryError: If the name is taken.
        """
        if entry.name in self._all:
            raise RegistryError(f"the {self.kind} '{entry.name}' is registered already; choose another name")
        self._entries[entry.name] = entry
        return entry

    def __getitem__(self, name: str) -> E:
        if name in self._entries:
            return self._entries[name]
        if name not in self._all:
            self._load_plugins()
        if name not in self._all:
            raise RegistryError(
                f"unknown {self.kind} '{name}'; {did_you_mean(name, self._all, lists=LISTS.get(self.plural, ''))}"
            )
        return self._all[name]

    def __iter__(self) -> Iterator[E]:
        self._load_plugins()
        return iter(list(self._all.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def remove(self, name: str) -> None:
        """Remove an entry, for tests and notebooks that register a name twice."""
        self._entries.pop(self[name].name)

    @property
    def _all(self) -> Mapping[str, E]:
        """Own and derived entries by name, as far as plugins are loaded."""
        made = [self._derive(entry) for entry in self._source._all.values()] if self._source is not None else []
        return {entry.name: entry for entry in made if entry is not None} | self._entries

    def describe(self) -> dict[str, str]:
        """Name to a one-line summary with the reference."""
        return {e.name: f"{e.summary} [{e.reference}]" if e.reference else e.summary for e in self}

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        if self._source is not None:
            self._source._load_plugins()
        for point in entry_points(group=f"deap_prune.{self.plural}"):
            point.load()
