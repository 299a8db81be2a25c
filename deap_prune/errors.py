"""The errors that deap_prune raises for what a user did: each gives the value, what is legal, and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneError(Exception):
    """Base of every error that deap_prune raises on purpose."""


class ModelError(PruneError, ValueError):
    """The network cannot be traced or pruned: no prunable filters, weights that are not finite, ..."""


class MaskError(PruneError, ValueError):
    """Masks that do not belong to the pruning space: unknown group, wrong length, nothing kept."""


class BudgetError(PruneError, ValueError):
    """A FLOPs budget outside what can be reached."""


class DataError(PruneError, ValueError):
    """Calibration, validation or training data that cannot be used."""


class ConfigError(PruneError, ValueError):
    """A configuration that does not validate."""


class RegistryError(PruneError, KeyError):
    """An unknown or a duplicate name in one of the registries."""

    def __str__(self) -> str:
        """Without KeyError's quotes."""
        return str(self.args[0]) if self.args else ""


class RunError(PruneError, RuntimeError):
    """A run folder that cannot be written, read or resumed."""


class ExportError(PruneError, RuntimeError):
    """A network that cannot be exported, or whose exported form gives other outputs."""


MOST_NAMES = 60


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The part of a message that helps after a miss: the nearest name if there is one, and the known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6 if len(name) > 3 else 0.5)  # l7 for l1
    hint = f"did you mean '{near[0]}'? " if near else ""
    more = f", ... ({len(names)} in all)" if len(names) > MOST_NAMES else ""
    return f"{hint}known: {', '.join(names[:MOST_NAMES]) or 'none'}{more}"
