"""Masks: the filters of each group that stay. Without torch."""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deap_prune.arguments import Seed, checked
from deap_prune.errors import MaskError
from deap_prune.files import parse_json

MOST_FILTERS = 2**24
"""Size limit of a group that is read from a file."""


class Group(Protocol):
    """The properties of a filter group that masks use."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def blocks(self) -> int: ...  # noqa: D102


class Space(Protocol):
    """The properties of a pruning space that masks use."""

    @property
    def groups(self) -> Sequence[Group]: ...  # noqa: D102


class Masks(Mapping[str, NDArray[np.bool_]]):
    """Mapping of group name to a boolean array, True where the filter stays. Immutable and hashable.

    Args:
        keep: Group name to booleans, shape (group.size,). Groups that are left out stay dense.

    Examples:
        >>> dp.Masks({"3": [True, True, False, True, False, False]})
        Masks(3: 3/6)

    Raises:
        MaskError: If an entry is not one-dimensional and boolean.
    """

    def __init__(self, keep: Mapping[str, ArrayLike]) -> None:
        self._keep: dict[str, NDArray[np.bool_]] = {}
        if not isinstance(keep, Mapping):
            raise MaskError(f"masks are a {type(keep).__name__}; give a dict of booleans by group name")
        for name, values in keep.items():
            if not isinstance(name, str):
                raise MaskError(f"{name!r} is no group name; groups are named by text (space.groups)")
            try:
                array = np.array(values)
            except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a device
                raise MaskError(f"the mask of '{name}' is no array of booleans: {error}") from error
            if array.ndim != 1 or array.dtype != np.bool_:
                raise MaskError(
                    f"the mask of '{name}' has dtype {array.dtype} and shape {array.shape}; "
                    "give one boolean for each filter (True: keep)"
                )
            array.flags.writeable = False
            self._keep[name] = array

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        return self._keep[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keep)

    def __len__(self) -> int:
        return len(self._keep)

    def items(self) -> ItemsView[str, NDArray[np.bool_]]:
        """Names and masks; a view of the dict, several times faster than that of Mapping."""
        return self._keep.items()

    @cached_property
    def _key(self) -> tuple[tuple[str, bytes], ...]:
        return tuple(sorted((name, keep.tobytes()) for name, keep in self._keep.items()))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masks) and self._key == other._key

    def __reduce__(self) -> tuple[type[Masks], tuple[dict[str, NDArray[np.bool_]]]]:
        return Masks, (dict(self._keep),)  # so that copies are read-only too

    def __repr__(self) -> str:
        parts = [f"{name}: {keep.sum()}/{len(keep)}" for name, keep in self._keep.items()]
        more = [f"... {len(parts)} groups"] if len(parts) > 40 else []
        return f"Masks({', '.join([*parts[:40], *more])})"

    @classmethod
    def of_rows(cls, names: Sequence[str], rows: Sequence[NDArray[np.bool_]]) -> list[Masks]:
        """Masks of many candidates at once, several times faster than one by one.

        Args:
            names: Names of the groups.
            rows: For each group the masks of all candidates, shape (candidates, group.size).
        """
        stops = np.cumsum([row.shape[1] for row in rows]).tolist()
        spans = list(zip(names, [0, *stops], stops, strict=False))
        candidates = []
        for flat in np.concatenate(rows, axis=1):
            own = flat.copy()  # a view would hold all candidates in memory
            own.flags.writeable = False
            masks = cls({})
            masks._keep = {name: own[start:stop] for name, start, stop in spans}
            candidates.append(masks)
        return candidates

    @classmethod
    @checked
    def random(cls, space: Space, *, keep: float | tuple[float, float] = 0.5, seed: Seed = 0) -> Masks:
        """Masks that keep uniformly drawn filters, at least one per block.

        Args:
            space: The pruning space.
            keep: Kept share of the filters in (0, 1], or the range from which each group's share is drawn.
            seed: Seed of NumPy's generator.

        Raises:
            MaskError: If ``keep`` is outside (0, 1].
        """
        low, high = keep if isinstance(keep, tuple) else (keep, keep)
        if not 0 < low <= high <= 1:
            raise MaskError(f"keep is {keep}; it must be above 0 and at most 1")
        rng = np.random.default_rng(seed)
        keeps = {}
        for group in space.groups:
            share = low + (high - low) * rng.random() if low < high else low
            noise = rng.random((group.blocks, group.size // group.blocks))
            number = max(1, round(share * noise.shape[1]))
            keeps[group.name] = (noise.argsort(axis=1).argsort(axis=1) < number).reshape(-1)
        return cls(keeps)

    def to_json(self) -> str:
        """JSON text with the size and the kept indices of each group."""
        groups = {name: {"size": len(k), "keep": np.flatnonzero(k).tolist()} for name, k in self._keep.items()}
        return json.dumps({"masks": groups})

    @classmethod
    def from_json(cls, text: str) -> Masks:
        """Masks from the text of :meth:`to_json`.

        Raises:
            MaskError: If the text is not masks in JSON.
        """
        try:
            keep = {}
            for name, entry in parse_json(text)["masks"].items():
                size, places = entry["size"], entry["keep"]
                if type(size) is not int or not 0 <= size <= MOST_FILTERS:
                    raise ValueError(f"'{name}' has size {size!r:.40}; it is a whole number of at most {MOST_FILTERS}")
                if type(places) is not list or not all(type(i) is int and 0 <= i < size for i in places):
                    raise ValueError(f"'{name}' keeps {places!r:.80}; give a list of whole numbers below {size}")
                if len(set(places)) < len(places):
                    raise ValueError(f"'{name}' keeps a filter twice")
                keep[name] = np.isin(np.arange(size), places)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise MaskError(f"not masks in JSON, as Masks.to_json writes them: {error!r}") from error
        return cls(keep)


def listed_masks(masks: Any) -> list[Masks]:
    """Several masks as a list.

    Raises:
        MaskError: If there is anything else among them.
    """
    candidates = list(masks) if isinstance(masks, Iterable) and getattr(masks, "ndim", True) else [masks]
    for candidate in candidates:
        if not isinstance(candidate, Masks):
            advice = ""
            if isinstance(candidate, (Sequence, int, float)) and not isinstance(candidate, str):
                advice = "; for an individual call toolbox.evaluate(individual), or give genome.decode(individual)"
            raise MaskError(f"a candidate is a {type(candidate).__name__}; give masks (dp.Masks){advice}")
    return candidates
