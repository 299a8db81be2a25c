"""The errors that deap_prune raises; each message gives the illegal value, the legal values and a remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneError(Exception):
    """Base class of all errors that deap_prune raises deliberately."""


class PruneWarning(Warning):
    """A choice that is legal and probably not what was meant."""


class ModelError(PruneError, ValueError):
    """The network cannot be traced or pruned: no prunable filters, weights that are not finite, ..."""


class MaskError(PruneError, ValueError):
    """Masks that do not belong to the pruning space: unknown group, wrong length, nothing kept."""


class BudgetError(PruneError, ValueError):
    """A budget that is illegal or cannot be reached."""


class DataError(PruneError, ValueError):
    """Calibration, validation or training data that cannot be used."""


class ConfigError(PruneError, ValueError):
    """A configuration that does not validate."""


class RegistryError(PruneError, KeyError):
    """An unknown or duplicate name in a registry."""

    def __str__(self) -> str:
        """The message, without the quotes that KeyError adds."""
        return str(self.args[0]) if self.args else ""


class RunError(PruneError, RuntimeError):
    """A run folder that cannot be written, read or resumed."""


class ExportError(PruneError, RuntimeError):
    """A network that cannot be exported, or whose exported form gives different outputs."""


MOST_NAMES = 8


def did_you_mean(name: str, known: Iterable[str], *, lists: str = "") -> str:
    """Part of an error message for an unknown name: the nearest name, if there is one, and known names.

    Args:
        name: The unknown name.
        known: The known names; of more than eight those that are most alike are shown.
        lists: Call or command that lists them all, such as "dp.criteria()".
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6 if len(name) > 3 else 0.5)  # so that l7 suggests l1
    hint = f"did you mean '{near[0]}'? " if near else ""
    if len(names) <= MOST_NAMES:
        return f"{hint}known: {', '.join(names) or 'none'}"
    shown = sorted(difflib.get_close_matches(name, names, n=MOST_NAMES, cutoff=0.0))
    all_of_them = f" ({lists} lists all)" if lists else ""
    return f"{hint}known: {', '.join(shown)} and {len(names) - len(shown)} more{all_of_them}"
