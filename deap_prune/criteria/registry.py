"""The registry of pruning criteria."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from deap_prune.errors import RegistryError, did_you_mean
from deap_prune.registry import Registry

# What a criterion may ask for, filter by filter: one tensor for each layer of the group that has it.
STATISTICS = {
    "weight": "(filters, k): the filters of a convolution or linear layer, flattened",
    "weight_taylor": "(batches, filters): sum over the filter of weight x dL/dweight",
    "scale": "(filters,): the normalisation's scale, gamma",
    "shift": "(filters,): the normalisation's shift, beta",
    "gate_taylor": "(batches, filters): gamma dL/dgamma + beta dL/dbeta, the change when a unit gate closes",
    "activation_mean": "(filters,): mean |activation| as the next layers read it, over images and positions",
    "activation_rate": "(filters,): share of activations above zero, only where the next layers read a ReLU's output",
    "noise": "(filters,): uniform noise from the seed",
}

Score = Callable[..., Tensor]


@dataclass(frozen=True)
class Criterion:
    """A named importance of filters.

    Attributes:
        name: Registry name.
        score: Function of the statistics in ``needs``, in that order, to one score a filter; larger = keep.
        needs: Keys of :data:`STATISTICS`. Where a group has none of them, the criterion is absent.
        reference: Paper.
        summary: First line of the docstring.
        equivariant: Permuting a layer's filters permutes the scores.
    """

    name: str
    score: Score
    needs: tuple[str, ...]
    reference: str
    summary: str
    equivariant: bool = True


CRITERIA: Registry[Criterion] = Registry("criterion", "criteria")


def register_criterion(
    name: str, *, needs: Iterable[str], reference: str = "", equivariant: bool = True
) -> Callable[[Score], Score]:
    """Add a criterion: decorate a function of the statistics it needs.

    Example:
        >>> @register_criterion("linf", needs=("weight",))
        ... def linf(weight):
        ...     '''Largest absolute weight of the filter.'''
        ...     return weight.abs().amax(dim=1)

    Args:
        name: Registry name.
        needs: Statistics, in the order of the function's arguments; a single name may be given as a string.
        reference: Paper.
        equivariant: False if permuting filters does not permute the scores (random).

    Raises:
        RegistryError: If the name is taken or a statistic unknown.
    """
    wanted = (needs,) if isinstance(needs, str) else tuple(needs)
    for need in wanted:
        if need not in STATISTICS:
            raise RegistryError(f"criterion '{name}' needs '{need}'; {did_you_mean(need, STATISTICS)}")

    def decorate(score: Score) -> Score:
        summary = (score.__doc__ or "").strip().split("\n")[0]
        CRITERIA.add(Criterion(name, score, wanted, reference, summary, equivariant))
        return score

    return decorate
