"""The registry of pruning criteria."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from deap_prune.arguments import checked
from deap_prune.criteria.passes.statistics import STATISTICS
from deap_prune.errors import RegistryError, did_you_mean
from deap_prune.registry import Registry

Score = Callable[..., Tensor]


@dataclass(frozen=True)
class Criterion:
    """A named importance of filters.

    Attributes:
        name: Registry name.
        score: Function of the statistics in ``needs``, in that order, to scores of shape (filters,); larger = keep.
        needs: Keys of :data:`STATISTICS`. If no layer of a group has all of them, the criterion is absent there.
        reference: Paper.
        summary: First line of the docstring.
        equivariant: Permuting a layer's filters permutes the scores in the same way.
    """

    name: str
    score: Score
    needs: tuple[str, ...]
    reference: str
    summary: str
    equivariant: bool = True


CRITERIA: Registry[Criterion] = Registry("criterion", "criteria")


@checked
def register_criterion(
    name: str, *, needs: str | Iterable[str], reference: str = "", equivariant: bool = True
) -> Callable[[Score], Score]:
    """Add a criterion: decorate a function of statistics that returns one score per filter (larger = keep).

    Examples:
        >>> @dp.register_criterion("linf", needs=("weight",))
        ... def linf(weight):
        ...     '''Largest absolute weight of the filter.'''
        ...     return weight.abs().amax(dim=1)

    Args:
        name: Registry name.
        needs: Keys of ``STATISTICS``, in the order of the function's arguments; a single one may be a string.
        reference: Paper.
        equivariant: False if permuting filters does not permute the scores, as for ``random``.

    Raises:
        RegistryError: If the name is taken, a statistic is unknown, or ``needs`` is empty.
    """
    statistics = (needs,) if isinstance(needs, str) else tuple(needs)
    if not statistics:
        raise RegistryError(f"criterion '{name}' needs no statistics; name those it is computed from, such as 'weight'")
    for need in statistics:
        if need not in STATISTICS:
            raise RegistryError(f"criterion '{name}' needs '{need}'; {did_you_mean(need, STATISTICS)}")

    def decorate(score: Score) -> Score:
        summary = (score.__doc__ or "").strip().split("\n")[0]
        CRITERIA.add(Criterion(name, score, statistics, reference, summary, equivariant))
        return score

    return decorate
