"""The arms of quality.py: ways to choose filters at a budget, fronts, blends carried over, ablations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from ground import Ground, Row, View, named

import deap_prune as dp
from deap_prune.blending.baselines import AffineGenome, AnyGenome, Table, borda
from deap_prune.evolution import Generation, Loop, MaxEvaluations, Variation
from deap_prune.evolution.front import hypervolume
from deap_prune.fitness.objectives import OBJECTIVES
from deap_prune.search.finalists import PreScreen

RANDOM_MASKS = 5
TESTED = 2000  # test images that see the networks of a front


# ------------------------------------------------------------------ searching
def search(
    ground: Ground,
    genome: AnyGenome,
    view: View,
    algorithm: str = "mu_plus_lambda",
    *,
    population: int | None = None,
    indpb: float | None = None,
    sigma: float = 0.5,
    children: int | None = None,
    screened: int = 0,
    **variation: Any,
) -> Generation:
    """Exactly ``ground.evaluations`` individuals judged, doubles included.

    A sixth of them are the first population, which holds every single criterion once (in its first half), or LeGR's
    identity. Of ``screened`` children that are made for one that is judged, the surrogate picks it.
    """
    size = population or max(2 * len(genome.criteria), ground.evaluations // 6)
    if screened:
        variation["vary"] = PreScreen(view, dp.BlendProblem(genome, view), screened)
    toolbox = dp.make_toolbox(genome, view, seed=ground.seed, indpb=indpb, sigma=sigma)
    stops = [MaxEvaluations(ground.evaluations)]
    loop = Loop(algorithm, toolbox, Variation(children or size, **variation), stops=stops)
    return loop.run(loop.start(size), ground.evaluations)


def judged(state: Generation) -> int:
    """Individuals that a search judged."""
    return sum(record["nevals"] for record in state.logbook)


def found(ground: Ground, protocol: str, genome: AnyGenome, state: Generation, **facts: Any) -> Row:
    """The row of a search's best individual."""
    best, history = state.archive[0], [record["loss"] for record in state.logbook if "loss" in record]
    return ground.row(
        protocol, genome.decode(best), evaluations=judged(state), individual=list(best), history=history, **facts
    )


# ------------------------------------------------------------------ arms at a budget
def best_single(
    ground: Ground, budget: float, protocol: str, *, widths: str = "uniform", objective: str = "loss"
) -> Row:
    """Every criterion alone, its widths uniform, balanced, or by one threshold; the best on validation is the arm's."""
    genome = ground.genome(budget, allocation="uniform" if widths == "uniform" else "evolved")
    evaluator = ground.evaluator(protocol)
    genes = {name: genome.single(name) for name in genome.criteria}
    if widths == "balanced":
        curves = {name: genome.width_curves(name, evaluator.surrogate) for name in genes}
        genes = {name: genome.balanced(name, curves[name]) for name in genes}
    elif widths == "threshold":
        same = [1.0] * len(ground.space.groups), [0.0] * len(ground.space.groups)
        genes = {name: genome.affine(name, *same) for name in genes}
    masks = {name: genome.decode(each) for name, each in genes.items()}
    values = {name: named(evaluator, evaluator(each)) for name, each in masks.items()}
    best = max(values, key=lambda name: OBJECTIVES[objective].weight * values[name][objective])
    return ground.row(protocol, masks[best], evaluations=len(masks), criterion=best, singles=values)


def random_masks(ground: Ground, budget: float, protocol: str) -> Row:
    """Random filters, uniform widths: several on validation (their mean), the first of them on the test images."""
    rng, evaluator = np.random.default_rng(ground.seed), ground.evaluator(protocol)
    masks = []
    for _ in range(RANDOM_MASKS):
        table = Table({group.name: {"random": rng.random(group.size)} for group in ground.space.groups})
        clusters = dp.cluster(table, n_clusters=1)
        genome = dp.Genome(ground.space, table, clusters, allocation="uniform", max_flops=budget)
        masks.append(genome.decode(genome.single("random")))
    mean = named(evaluator, np.mean(evaluator.many(masks), axis=0).tolist())
    return ground.row(protocol, masks[0], evaluations=len(masks), mean=mean)


def mean_rank(ground: Ground, budget: float, protocol: str) -> Row:
    """Borda: the mean rank over all criteria, uniform widths."""
    genome = ground.genome(budget, kind=borda, allocation="uniform")
    return ground.row(protocol, genome.decode(genome.single("borda")), evaluations=1)


def blend(
    ground: Ground,
    budget: float,
    protocol: str,
    *,
    algorithm: str = "mu_plus_lambda",
    objective: str = "loss",
    allocation: str = "uniform",
    clusters: int | None = None,
    candidates: str = "evolved",
    normaliser: str = "max",
    **steps: Any,
) -> Row:
    """A blend that an evolution (or random search) found; its first individuals are the single criteria."""
    options = {"allocation": allocation, "candidates": candidates, "normaliser": normaliser}
    genome = ground.genome(budget, clusters=clusters, **options)
    state = search(ground, genome, View(ground.evaluator(protocol), (objective,)), algorithm, **steps)
    return found(ground, protocol, genome, state, blend=weights_of(genome, state.archive[0]))


def no_clustering(ground: Ground, budget: float, protocol: str, *, how: Callable[..., Row] = blend) -> Row:
    """Ours with every criterion in a cluster of its own: nothing but factors to search."""
    return how(ground, budget, protocol, clusters=len(ground.scores.criteria))


def legr(ground: Ground, budget: float, protocol: str) -> Row:
    """LeGR: L2 norms under a scale and a shift a layer, one threshold, ageing evolution, one child at a time."""
    genome = ground.genome(budget, kind=AffineGenome, criterion="l2", min_keep=0.1)
    state = search(ground, genome, View(ground.evaluator(protocol), ("loss",)), "legr", children=1, sigma=1.0)
    return found(ground, protocol, genome, state)


def pre_screened(ground: Ground, budget: float, protocol: str, **options: Any) -> Row:
    """Ours, eight children made for each that is judged, with small steps."""
    return blend(ground, budget, protocol, screened=8, indpb=0.02, sigma=0.2, **options)


EVOLVED = partial(blend, allocation="evolved")
ARMS: dict[str, Callable[[Ground, float, str], Row]] = {
    "best single": best_single,
    "best single, balanced widths": partial(best_single, widths="balanced"),
    "best single, one threshold": partial(best_single, widths="threshold"),
    "ours, uniform widths": blend,
    "ours, evolved widths": EVOLVED,
    "ours, uniform widths, pre-screened": pre_screened,
    "ours, evolved widths, pre-screened": partial(pre_screened, allocation="evolved"),
    "ours, no clustering, pre-screened": partial(no_clustering, how=pre_screened),
    "best single, by accuracy": partial(best_single, objective="accuracy"),
    "ours, uniform widths, by accuracy": partial(blend, objective="accuracy"),
    "LeGR": legr,
    "random": random_masks,
    "mean rank": mean_rank,
    "no clustering": no_clustering,
    "random search, uniform widths": partial(blend, algorithm="random"),
    "random search, evolved widths": partial(EVOLVED, algorithm="random"),
}
SURROGATE = ("pre-screened", "balanced")  # knows nothing of networks that are not compensated
PLAIN = tuple(name for name in ARMS if not any(word in name for word in SURROGATE))
DRAFTS = ("best single", "best single, balanced widths", "best single, one threshold")
DRAFTS = (*DRAFTS, "ours, uniform widths, pre-screened", "LeGR", "ours, evolved widths, pre-screened")
COMPENSATED = tuple(name for name in ARMS if name.startswith(("best single", "ours")) or name == "LeGR")


# ------------------------------------------------------------------ fronts
def front(ground: Ground, protocol: str, *, algorithm: str = "nsga2", screened: int = 0, **options: Any) -> Row:
    """Accuracy against FLOPs: the front of a search, its hypervolume on validation and on the first test images.

    The networks are handed over as they were judged: compensated, or refined drafts.
    """
    genome, evaluator = ground.genome(None, **options), ground.evaluator(protocol)
    view = View(evaluator, ("accuracy", "flops"))
    rates = (0.5, 0.5, 0.02) if screened else (0.9, 0.5, None)
    steps = dict(zip(("cxpb", "mutpb", "indpb"), rates, strict=True))
    state = search(ground, genome, view, algorithm, sigma=0.2, screened=screened, **steps)
    masks = genome.decode_many(state.archive)
    validation = np.array([ind.fitness.values for ind in state.archive])
    shares = validation[:, 1]
    tested = [(ground.tested(evaluator.slim(m), TESTED), f) for m, f in zip(masks, shares, strict=True)]
    return {
        "hypervolume": {"validation": volume(validation), "test": volume(np.array(tested))},
        "points": {"validation": validation.tolist(), "test": tested},
        "test images": TESTED,
        "evaluations": judged(state),
    }


def volume(points: np.ndarray) -> float:
    """Hypervolume of (accuracy, flops), reference (0, 1)."""
    return hypervolume(points * (-1, 1), (1.0, -1.0), (0.0, 1.0))


FRONTS: dict[str, Callable[[Ground, str], Row]] = {
    "ours": partial(front, allocation="evolved"),
    "ours, pre-screened": partial(front, allocation="evolved", algorithm="mu_plus_lambda", screened=8),
    "LeGR's genome": partial(front, kind=AffineGenome, criterion="l2", min_keep=0.1),
    "random search": partial(front, allocation="evolved", algorithm="random"),
}


# ------------------------------------------------------------------ transfer
def weights_of(genome: AnyGenome, individual: Sequence[float]) -> Row:
    """A blend by name: for each group the criteria that count, how much, and the keep gene (None without one)."""
    layout, shares = genome.layout, genome.blend(individual)
    keeps = {layout.loci[place]: float(individual[place]) for place in layout.of_kind("keep")}
    return {
        group.name: {"factors": shares[group.name], "keep": keeps.get(number)}
        for number, group in enumerate(genome.space.groups)
    }


def matching(names: Sequence[str], sources: Sequence[str]) -> dict[str, str]:
    """For each layer one of another network: of the same stage (first part of the name), at the same relative depth."""
    told = {}
    for name in names:
        stage = name.split(".")[0]
        here, there = ([n for n in each if n.split(".")[0] == stage] for each in (names, sources))
        told[name] = there[here.index(name) * len(there) // len(here)]
    return told


def transferred(ground: Ground, budget: float, protocol: str, *, source: Row) -> Row:
    """A blend that was found on another network or at another budget, as it is: nothing is searched here."""
    evolved = next(iter(source["blend"].values()))["keep"] is not None
    genome = ground.genome(budget, clusters=len(ground.scores.criteria), allocation="evolved" if evolved else "uniform")
    names = matching([group.name for group in ground.space.groups], list(source["blend"]))
    genes: list[float] = []
    for group in ground.space.groups:
        told = source["blend"][names[group.name]]
        factors = {c: told["factors"].get(c, 0.0) for c in ground.scores[group.name]}
        for members in genome.clusters[group.name].members:
            heaviest = max(members, key=factors.__getitem__)
            genes += [members.index(heaviest)] if len(members) > 1 else []
            genes.append(factors[heaviest])
        genes += [told["keep"]] if evolved else []
    return ground.row(protocol, genome.decode(genes), evaluations=1)


# ------------------------------------------------------------------ ablations
def on_images(
    ground: Ground, budget: float, protocol: str, *, images: int | None = None, validation: int | None = None
) -> Row:
    """Ours with other numbers of images: for the criteria and plain BN statistics, or for the fitness."""
    changed = {} if validation is None else {"validation": validation}
    config = ground.config.model_copy(update={"data": ground.config.data.model_copy(update=changed)})
    return blend(replace(ground, config=config, images=images or ground.images), budget, protocol)


ABLATIONS: dict[str, Callable[[Ground, float, str], Row]] = {
    "as it is: 3 clusters, evolved candidates, max, uniform, 20 individuals, loss": blend,
    **{f"clusters: {k}": partial(blend, clusters=k) for k in (1, 2, 4, 6, 8)},
    "candidates: medoid": partial(blend, candidates="medoid"),
    **{f"normaliser: {name}": partial(blend, normaliser=name) for name in ("sum", "standard", "rank")},
    **{f"allocation: {name}": partial(blend, allocation=name) for name in ("global", "evolved")},
    **{f"population: {n}": partial(blend, population=n) for n in (10, 40)},
    **{f"calibration images: {n}": partial(on_images, images=n) for n in (50, 500)},
    **{f"validation images: {n}": partial(on_images, validation=n) for n in (100, 900)},
    **{f"fitness: {name}": partial(blend, objective=name) for name in ("accuracy", "agreement")},
}
