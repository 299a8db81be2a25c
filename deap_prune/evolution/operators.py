"""Operators for blends: plain functions on lists, with DEAP's signatures and DEAP's source of randomness.

They need only the :class:`~deap_prune.blending.layout.Layout`, so they work in any ``toolbox.register``, on individuals
of any list class. Genes that another operator left outside their bounds are clipped first.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from deap import tools

from deap_prune.blending.layout import Layout, Span
from deap_prune.errors import ConfigError

if TYPE_CHECKING:
    from deap_prune.blending.genome import Genome

Ind = TypeVar("Ind", bound=MutableSequence[float])
CONTINUOUS = ("factor", "keep", "budget", "scale", "shift")
WIDTHS = ("keep", "budget")
LEAST = 0.01  # smaller widths are multiplied as if they were this, so that a width of 0 can grow


# ------------------------------------------------------------------ crossover
def cxBlendLayers(ind1: Ind, ind2: Ind, layout: Layout, indpb: float = 0.5) -> tuple[Ind, Ind]:
    """Uniform crossover by layer: all genes of a filter group are exchanged together.

    Args:
        ind1: First parent, changed in place.
        ind2: Second parent, changed in place.
        layout: Kinds and bounds of the genes.
        indpb: Probability that a layer is exchanged.
    """
    for span in layout.spans:
        if random.random() < indpb:
            _exchange(ind1, ind2, (span,))
    return ind1, ind2


def cxBlendWidths(ind1: Ind, ind2: Ind, layout: Layout, indpb: float = 0.5, alpha: float = 0.3) -> tuple[Ind, Ind]:
    """Uniform crossover by layer, except that widths (keep and budget genes) are mixed by BLX-alpha.

    The widths of layers depend on each other: a mixture of two balanced networks is balanced, a patchwork is not.

    Args:
        ind1: First parent, changed in place.
        ind2: Second parent, changed in place.
        layout: Kinds and bounds of the genes.
        indpb: Probability that a layer's other genes are exchanged.
        alpha: How far a width may leave the interval between the parents, in units of their distance.
    """
    clip(ind1, layout)
    clip(ind2, layout)
    cxBlendLayers(ind1, ind2, layout, indpb)
    _mix(ind1, ind2, layout, layout.of_kind(*WIDTHS), alpha)
    return ind1, ind2


def cxBlendStages(ind1: Ind, ind2: Ind, layout: Layout, indpb: float = 0.5) -> tuple[Ind, Ind]:
    """Uniform crossover by stage: all layers of one resolution are exchanged together.

    Args:
        ind1: First parent, changed in place.
        ind2: Second parent, changed in place.
        layout: Kinds, bounds and stages of the genes.
        indpb: Probability that a stage is exchanged.
    """
    for spans in layout.stage_spans:
        if random.random() < indpb:
            _exchange(ind1, ind2, spans)
    return ind1, ind2


def cxBlendMix(ind1: Ind, ind2: Ind, layout: Layout, alpha: float = 0.3) -> tuple[Ind, Ind]:
    """BLX-alpha on continuous genes (Eshelman and Schaffer 1993).

    If the parents have different candidates in a cluster, their factors belong to different scores: candidate and
    factor are then exchanged together or stay.

    Args:
        ind1: First parent, changed in place.
        ind2: Second parent, changed in place.
        layout: Kinds and bounds of the genes.
        alpha: How far a gene may leave the interval between the parents, in units of their distance.
    """
    clip(ind1, layout)
    clip(ind2, layout)
    _mix(ind1, ind2, layout, _after_exchange(ind1, ind2, layout), alpha)
    return ind1, ind2


def cxBlendSBX(ind1: Ind, ind2: Ind, layout: Layout, eta: float = 10.0) -> tuple[Ind, Ind]:
    """Bounded simulated binary crossover on continuous genes (Deb and Agrawal 1995); candidates as in ``cxBlendMix``.

    Args:
        ind1: First parent, changed in place.
        ind2: Second parent, changed in place.
        layout: Kinds and bounds of the genes.
        eta: Distribution index; larger values keep children closer to the parents.
    """
    clip(ind1, layout)
    clip(ind2, layout)
    places = _after_exchange(ind1, ind2, layout)
    genes1, genes2 = ([ind[i] for i in places] for ind in (ind1, ind2))
    low, high = ([bound[i] for i in places] for bound in (layout.low, layout.high))
    tools.cxSimulatedBinaryBounded(genes1, genes2, eta, low, high)
    for i, a, b in zip(places, genes1, genes2, strict=True):
        ind1[i], ind2[i] = _clipped(a, layout, i), _clipped(b, layout, i)
    return ind1, ind2


def _mix(ind1: Ind, ind2: Ind, layout: Layout, places: Sequence[int], alpha: float) -> None:
    for i in places:
        share = (1 + 2 * alpha) * random.random() - alpha
        gene1, gene2 = ind1[i], ind2[i]
        ind1[i] = _clipped((1 - share) * gene1 + share * gene2, layout, i)
        ind2[i] = _clipped(share * gene1 + (1 - share) * gene2, layout, i)


def _exchange(ind1: Ind, ind2: Ind, spans: Sequence[Span]) -> None:
    for start, stop in spans:
        for i in range(start, stop):
            ind1[i], ind2[i] = ind2[i], ind1[i]


def _after_exchange(ind1: Ind, ind2: Ind, layout: Layout) -> list[int]:
    """Exchange pairs of different candidates with probability 1/2; give the places of the genes to mix."""
    different = [span for span in layout.pairs if ind1[span[0]] != ind2[span[0]]]
    for candidate, factor in different:
        if random.random() < 0.5:
            _exchange(ind1, ind2, ((candidate, factor + 1),))
    not_mixed = {factor for _, factor in different}
    return [i for i in layout.of_kind(*CONTINUOUS) if i not in not_mixed]


# ------------------------------------------------------------------ mutation
def mutBlend(individual: Ind, layout: Layout, indpb: float = 0.1, sigma: float = 0.5) -> tuple[Ind]:
    """Mutate at least one gene, by its kind; with probability 0.3 also all widths by a common factor.

    A candidate becomes another member of its cluster. Factors, scales and widths (keep and budget genes) are multiplied
    by exp(N(0, sigma)). One factor or scale in ten is drawn anew, as is one of 0, which would stay 0. Other genes move
    by N(0, sigma / 5) of their range. All genes stay within their bounds.

    Args:
        individual: Changed in place.
        layout: Kinds and bounds of the genes.
        indpb: Probability that a gene is mutated.
        sigma: Standard deviation of the step.
    """
    _mutate(individual, layout, range(len(layout)), indpb, sigma)
    if random.random() < 0.3:
        scale = math.exp(random.gauss(0, sigma))
        for i in layout.of_kind(*WIDTHS):
            individual[i] = _clipped(max(individual[i], LEAST) * scale, layout, i)
    return (individual,)


def mutBlendFactors(individual: Ind, layout: Layout, indpb: float = 0.2, sigma: float = 0.5) -> tuple[Ind]:
    """Mutate calibration factors (and scales) alone: multiplied by exp(N(0, sigma)); arguments as for ``mutBlend``."""
    return _mutate(individual, layout, layout.of_kind("factor", "scale"), indpb, sigma)


def mutBlendCandidates(individual: Ind, layout: Layout, indpb: float = 0.2) -> tuple[Ind]:
    """Switch blending candidates alone, to another member of the cluster; arguments as for ``mutBlend``."""
    places = [i for i in layout.of_kind("candidate") if layout.high[i] > layout.low[i]]
    return _mutate(individual, layout, places, indpb, 0.5)


def mutBlendTrade(individual: Ind, layout: Layout, indpb: float = 0.1, sigma: float = 0.5) -> tuple[Ind]:
    """Trade FLOPs between layers: one keeps more, another keeps less; their total cost stays the same.

    Costs are first order: each group's FLOPs with all other groups dense. The decoder meets the budget in any case.
    Individuals with fewer than two keep genes are mutated by ``mutBlend``.

    Args:
        individual: Changed in place.
        layout: Kinds, bounds and costs of the genes.
        indpb: Expected number of trades per keep gene; at least one is made.
        sigma: A trade moves |N(0, sigma / 5)| of the cheaper layer's cost, or less at a bound.
    """
    clip(individual, layout)
    keeps = [i for i in layout.of_kind("keep") if layout.costs[i] > 0]
    if len(keeps) < 2:
        return mutBlend(individual, layout, indpb, sigma)
    for _ in range(max(1, sum(random.random() < indpb for _ in keeps))):
        giver, taker = random.sample(keeps, 2)
        amount = abs(random.gauss(0, sigma / 5)) * min(layout.costs[giver], layout.costs[taker])
        amount = min(
            amount,
            (individual[giver] - layout.low[giver]) * layout.costs[giver],
            (layout.high[taker] - individual[taker]) * layout.costs[taker],
        )
        individual[giver] = _clipped(individual[giver] - amount / layout.costs[giver], layout, giver)
        individual[taker] = _clipped(individual[taker] + amount / layout.costs[taker], layout, taker)
    return (individual,)


def _mutate(individual: Ind, layout: Layout, places: Sequence[int], indpb: float, sigma: float) -> tuple[Ind]:
    clip(individual, layout)
    places = places or range(len(layout))  # a layout without such genes: any gene
    chosen = [i for i in places if random.random() < indpb] or [random.choice(places)]
    for i in chosen:
        individual[i] = _mutated(individual[i], layout, i, sigma)
    return (individual,)


def _mutated(gene: float, layout: Layout, i: int, sigma: float) -> float:
    low, high, kind = layout.low[i], layout.high[i], layout.kinds[i]
    if kind == "candidate":
        others = [c for c in range(int(low), int(high) + 1) if c != gene]
        return random.choice(others) if others else gene
    if kind in ("factor", "scale"):
        fresh = gene <= 0 or random.random() < 0.1
        return random.uniform(low, high) if fresh else _clipped(gene * math.exp(random.gauss(0, sigma)), layout, i)
    if kind in WIDTHS:
        return _clipped(max(gene, LEAST) * math.exp(random.gauss(0, sigma)), layout, i)
    return _clipped(gene + random.gauss(0, sigma / 5) * (high - low), layout, i)


def clip(individual: MutableSequence[float], layout: Layout) -> None:
    """Clip genes to their bounds, in place: DEAP's unbounded operators leave them, and other operators then fail.

    Raises:
        ConfigError: If the individual has another length than the layout, or a gene is no real number.
    """
    if len(individual) != len(layout):
        raise ConfigError(f"the individual has {len(individual)} genes; this layout has {len(layout)}")
    for i, (gene, low, high, kind) in enumerate(zip(individual, layout.low, layout.high, layout.kinds, strict=True)):
        try:
            if not low <= gene <= high or (kind == "candidate" and gene != int(gene)):
                individual[i] = _clipped(gene, layout, i)
        except TypeError as error:  # DEAP's mutPolynomialBounded makes complex numbers outside bounds
            raise ConfigError(
                f"gene {i} of the individual is {gene!r}; genes are numbers (decorate your operators with "
                "dp.operators.bounded(layout), which clips before and after them)"
            ) from error


def bounded(layout: Layout) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Clip the individuals before and after an operator, as a decorator for ``toolbox.decorate``.

    DEAP's bounded operators expect genes within the bounds: ``mutPolynomialBounded`` makes complex numbers of others.
    DEAP's unbounded operators (``mutGaussian``, ``cxBlend``) leave the bounds.

    Args:
        layout: Kinds and bounds of the genes.
    """

    def decorate(operator: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(operator)
        def wrapped(*individuals: Any, **options: Any) -> Any:
            for individual in individuals:
                clip(individual, layout)
            children = operator(*individuals, **options)
            for child in children:
                clip(child, layout)
            return children

        return wrapped

    return decorate


def _clipped(gene: float, layout: Layout, i: int) -> float:
    """The gene clipped to its bounds, whole for a candidate; the lower bound for NaN."""
    inside = min(layout.high[i], max(layout.low[i], gene)) if gene == gene else layout.low[i]
    return round(inside) if layout.kinds[i] == "candidate" else inside


# ------------------------------------------------------------------ initialisers
def initBlend(container: Callable[[Iterable[float]], Ind], layout: Layout) -> Ind:
    """A random individual.

    Candidates and factors are uniform, scales log-normal. Keep genes scatter around a common share, so that a
    population covers the range of costs, and no layer of an individual is far narrower than the others.

    Args:
        container: Makes an individual of an iterable of genes.
        layout: Kinds and bounds of the genes.
    """
    common = random.uniform(0.15, 1.0)
    genes: list[float] = []
    for i, (kind, low, high) in enumerate(zip(layout.kinds, layout.low, layout.high, strict=True)):
        if kind == "candidate":
            genes.append(random.randint(int(low), int(high)))
        elif kind == "keep":
            genes.append(_clipped(random.gauss(common, 0.1), layout, i))
        elif kind == "scale":
            genes.append(_clipped(math.exp(random.gauss(0, 1)), layout, i))
        elif kind == "shift":
            genes.append(_clipped(random.gauss(0, 1), layout, i))
        else:
            genes.append(random.uniform(low, high))
    return container(genes)


def initBlendSingle(
    container: Callable[[Iterable[float]], Ind],
    genome: Genome,
    criterion: str | None = None,
    share: float | None = None,
) -> Ind:
    """The individual of a single criterion.

    Args:
        container: Makes an individual of an iterable of genes.
        genome: The genome.
        criterion: Its name; drawn by default.
        share: Value of the keep genes or of the budget gene; drawn from [0.25, 1] by default.
    """
    criterion = random.choice(genome.criteria) if criterion is None else criterion
    return container(genome.single(criterion, share=random.uniform(0.25, 1.0) if share is None else share))


def initBlendAffine(
    container: Callable[[Iterable[float]], Ind],
    genome: Genome,
    criterion: str | None = None,
    share: float | None = None,
) -> Ind:
    """An individual with the widths of a random LeGR candidate (Chin et al. 2020, arXiv 1904.12368).

    Scales are exp(N(0, 1)), shifts N(0, 1) standard deviations of the scores. The allocation must have keep genes.

    Args:
        container: Makes an individual of an iterable of genes.
        genome: The genome.
        criterion: Its name; drawn by default.
        share: Kept share of the FLOPs, if the genome's budget is not fixed; drawn from [0.25, 1] by default.
    """
    criterion = random.choice(genome.criteria) if criterion is None else criterion
    scales = [math.exp(random.gauss(0, 1)) for _ in genome.space.groups]
    shifts = [random.gauss(0, 1) for _ in genome.space.groups]
    share = random.uniform(0.25, 1.0) if share is None else share
    return container(genome.affine(criterion, scales, shifts, share=share))


CROSSOVERS: Mapping[str, Callable[..., Any]] = {
    f.__name__: f for f in (cxBlendWidths, cxBlendLayers, cxBlendStages, cxBlendMix, cxBlendSBX)
}
MUTATIONS: Mapping[str, Callable[..., Any]] = {
    f.__name__: f for f in (mutBlend, mutBlendFactors, mutBlendCandidates, mutBlendTrade)
}
