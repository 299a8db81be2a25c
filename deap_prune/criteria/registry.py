"""The registry of pruning criteria."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from deap_prune.errors import RegistryError, did_you_mean
from deap_prune.registry import Registry

# What a criterion may ask for, filter by filter: one tensor for each layer of the group that has it.
STATISTICS = {
    # read off the weights
    "weight": "(filters, k): the filters of a convolution or linear layer, flattened",
    "out_weight": "(filters, k): the weights by which a next layer multiplies the filter's channel",
    "scale": "(filters,): the size of the normalisation's scale, |gamma|, mean over a filter's uses",
    "shift": "(filters,): the size of the normalisation's shift, |beta|, mean over a filter's uses",
    "filter_flops": "(filters,): multiply-adds that go with one filter of the group",
    "noise": "(filters,): uniform noise from the seed",
    # one pass: forward, and backward where a gradient is asked for
    "activation_mean": "(filters,): mean |activation| as the next layers read it, over images and positions",
    "activation_rate": "(filters,): share of activations above zero, only where the next layers read a ReLU's output",
    "activation_pooled": "(images, filters): mean over positions of what a next layer reads",
    "activation_taylor": "(images, filters): sum over positions of activation x dL/dactivation in a next layer",
    "group_taylor": "(images, filters): the same, summed over all next layers of the group",
    "weight_taylor": "(batches, filters): sum over the filter of weight x dL/dweight",
    "gate_taylor": "(batches, filters): gamma dL/dgamma + beta dL/dbeta, the change when a unit gate closes",
    "gradient": "(filters, k): dL/dweight, mean over the images",
    "gradient_square": "(filters, k): the square of one image's dL/dweight, mean over the images",
    "output_square": "(filters,): the square of the layer's output without its bias, mean over images and positions",
    "output_gradient_square": "(filters,): one image's (dL/doutput)^2, summed over positions, mean over images",
    # a pass of their own
    "hessian_gradient": "(filters, k): the loss's Hessian times its gradient (a second backward pass)",
    "flow_gradient": "(filters, k): dR/d|weight| of the network of absolute weights, R its output for ones",
    "map_rank": "(filters,): rank of the feature map, mean over images, where it is one",
    "independence": "(filters,): nuclear norm that the feature maps lose without the filter's, mean over images",
    "contribution": "(filters, samples): what the filter alone adds to outputs of a next layer, drawn at random",
    "unexplained": "(filters,): relative squared error of a next layer's output without the filter, others re-fitted",
    "elimination_cost": "(filters,): next layers' error when the filter is removed after all that are worth less",
    "loss_rise": "(filters,): rise of the loss when the next layers read zero instead of the filter",
    "divergence": "(filters,): KL divergence from the network's outputs to those without the filter, in nats",
    "attention": "(filters,): mean gate of a squeeze-and-excitation block trained before the next layer",
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

    Examples:
        >>> @dp.register_criterion("linf", needs=("weight",))
        ... def linf(weight):
        ...     '''Largest absolute weight of the filter.'''
        ...     return weight.abs().amax(dim=1)

    Args:
        name: Registry name.
        needs: Statistics, in the order of the function's arguments; a single name may be given as a string.
        reference: Paper.
        equivariant: False if permuting filters does not permute the scores (random).

    Raises:
        RegistryError: If the name is taken, a statistic unknown, or there is none.
    """
    wanted = (needs,) if isinstance(needs, str) else tuple(needs)
    if not wanted:
        raise RegistryError(f"criterion '{name}' needs nothing; give what it is computed from, such as 'weight'")
    for need in wanted:
        if need not in STATISTICS:
            raise RegistryError(f"criterion '{name}' needs '{need}'; {did_you_mean(need, STATISTICS)}")

    def decorate(score: Score) -> Score:
        summary = (score.__doc__ or "").strip().split("\n")[0]
        CRITERIA.add(Criterion(name, score, wanted, reference, summary, equivariant))
        return score

    return decorate
