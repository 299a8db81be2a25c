"""The methods that compare_methods.py compares: filters at a budget, fronts, and blends used in another place.

A method at a budget is a function of (setup, budget, protocol) to a row of results; a front one of (setup, protocol).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import moocore
import numpy as np
from pairs import Row, Setup, by_name

import deap_prune as dp
from deap_prune.blending.baselines import AffineGenome, borda

RANDOM_MASKS = 5
TEST_IMAGES = 2000  # that evaluate the networks of a front


# ------------------------------------------------------------------ searching
def search(
    setup: Setup,
    genome: Any,
    evaluator: dp.Evaluator,
    algorithm: str = "mu_plus_lambda",
    *,
    indpb: float | None = None,
    sigma: float = 0.5,
    children: int | None = None,
    screened: int = 1,
    **rates: Any,
) -> dp.algorithms.Generation:
    """Evaluate exactly ``setup.evaluations`` individuals, duplicates included.

    A sixth of them are the first population. It holds every single criterion once (in its first half), or LeGR's
    identity.

    Args:
        setup: Seed and number of evaluations.
        genome: From individuals to masks.
        evaluator: The fitness, of this search alone: its surrogate learns from what it evaluates.
        algorithm: A registered name.
        indpb: Probability that a gene mutates.
        sigma: Mutation step.
        children: Made a generation; as many as the population if left out.
        screened: Children made for each one that is evaluated; the surrogate picks it.
        **rates: Probabilities of crossover and mutation.
    """
    size = max(2 * len(genome.criteria), setup.evaluations // 6)
    if screened > 1:
        problem = dp.algorithms.BlendProblem(genome, evaluator)
        rates["vary"] = dp.algorithms.Prescreen(problem, screened)
    toolbox = dp.make_toolbox(genome, evaluator, seed=setup.seed, indpb=indpb, sigma=sigma)
    stops = [dp.algorithms.MaxEvaluations(setup.evaluations)]
    variation = dp.algorithms.Variation(children or size, **rates)
    loop = dp.algorithms.Loop(algorithm, toolbox, variation, stops=stops)
    return loop.run(loop.start(size), setup.evaluations)


def evaluations_of(state: dp.algorithms.Generation) -> int:
    """Individuals that a search evaluated."""
    return sum(record["nevals"] for record in state.logbook)


def row_of_best(setup: Setup, protocol: str, genome: Any, state: dp.algorithms.Generation, **facts: Any) -> Row:
    """The row of a search's best individual."""
    best, history = state.archive[0], [record["loss"] for record in state.logbook if "loss" in record]
    facts |= {"evaluations": evaluations_of(state), "individual": list(best), "history": history}
    return setup.row(protocol, genome.decode(best), **facts)


# ------------------------------------------------------------------ methods at a budget
def single_masks(
    genome: Any, evaluator: dp.Evaluator, widths: str, *, refined: bool | None = None
) -> dict[str, dp.Masks]:
    """The masks of every criterion alone, with uniform or balanced widths or one threshold.

    Args:
        genome: From individuals to masks.
        evaluator: Its surrogate balances the widths.
        widths: ``"uniform"``, ``"balanced"`` or ``"threshold"``.
        refined: Whether the networks are refined; whether the evaluator refines them by default.
    """
    individuals = {name: genome.single(name) for name in genome.criteria}
    if widths == "balanced":
        anchor = evaluator.output_distance if (evaluator.learns if refined is None else refined) else None
        curves = {name: genome.width_curves(name, evaluator.surrogate, anchor=anchor) for name in individuals}
        individuals = {name: genome.balanced(name, curves[name]) for name in individuals}
    elif widths == "threshold":
        identity = [1.0] * len(genome.space.groups), [0.0] * len(genome.space.groups)
        individuals = {name: genome.affine(name, *identity) for name in individuals}
    return {name: genome.decode(individual) for name, individual in individuals.items()}


def best_single(setup: Setup, budget: float, protocol: str, *, widths: str = "uniform", objective: str = "loss") -> Row:
    """Every criterion alone, with uniform or balanced widths or one threshold; the best on validation is chosen."""
    genome = setup.genome(budget, allocation="uniform" if widths == "uniform" else "evolved")
    evaluator = setup.evaluator(protocol)
    masks = single_masks(genome, evaluator, widths)
    values = {name: by_name(evaluator, evaluator(candidate)) for name, candidate in masks.items()}
    weight = evaluator.weights[evaluator.names.index(objective)]
    best = max(values, key=lambda name: weight * values[name][objective])
    return setup.row(protocol, masks[best], evaluations=len(masks), criterion=best, singles=values)


def random_filters(setup: Setup, budget: float, protocol: str) -> Row:
    """Random filters, uniform widths: the mean of several on validation, the first of them on the test images."""
    evaluator, masks = setup.evaluator(protocol), []
    for number in range(RANDOM_MASKS):
        seed = RANDOM_MASKS * setup.seed + number
        scores = dp.score(setup.model, setup.space, criteria=("random",), seed=seed)
        clusters = dp.cluster(scores, n_clusters=1)
        genome = dp.Genome(setup.space, scores, clusters, allocation="uniform", max_flops=budget)
        masks.append(genome.decode(genome.single("random")))
    mean = by_name(evaluator, np.mean(evaluator.many(masks), axis=0).tolist())
    return setup.row(protocol, masks[0], evaluations=len(masks), mean=mean)


def mean_rank(setup: Setup, budget: float, protocol: str) -> Row:
    """Borda: the mean rank over all criteria, uniform widths."""
    genome = setup.genome(budget, kind=borda, allocation="uniform")
    return setup.row(protocol, genome.decode(genome.single("borda")), evaluations=1)


def blend(
    setup: Setup,
    budget: float,
    protocol: str,
    *,
    algorithm: str = "mu_plus_lambda",
    objective: str = "loss",
    allocation: str = "uniform",
    clusters: int | None = None,
    **steps: Any,
) -> Row:
    """The best blend of an evolutionary (or random) search; its first individuals are the single criteria."""
    genome = setup.genome(budget, clusters=clusters, allocation=allocation)
    evaluator = setup.evaluator(protocol, objectives=(objective,))
    state = search(setup, genome, evaluator, algorithm, **steps)
    return row_of_best(setup, protocol, genome, state, blend=weights_of(genome, state.archive[0]))


def no_clustering(setup: Setup, budget: float, protocol: str, *, method: Callable[..., Row] = blend) -> Row:
    """A search with a cluster for every criterion: the genes are factors alone."""
    return method(setup, budget, protocol, clusters=len(setup.scores.criteria))


def legr(setup: Setup, budget: float, protocol: str) -> Row:
    """LeGR: L2 norms under a scale and a shift per layer, one threshold, ageing evolution, one child at a time."""
    genome = setup.genome(budget, kind=AffineGenome, criterion="l2", min_keep=0.1)
    state = search(setup, genome, setup.evaluator(protocol, objectives=("loss",)), "legr", children=1, sigma=1.0)
    return row_of_best(setup, protocol, genome, state)


def pre_screened(setup: Setup, budget: float, protocol: str, **options: Any) -> Row:
    """A search that makes eight children for each evaluation, with small steps."""
    return blend(setup, budget, protocol, screened=8, indpb=0.02, sigma=0.2, **options)


evolved_widths = partial(blend, allocation="evolved")
METHODS: dict[str, Callable[[Setup, float, str], Row]] = {
    "best single": best_single,
    "best single, balanced widths": partial(best_single, widths="balanced"),
    "best single, one threshold": partial(best_single, widths="threshold"),
    "ours, uniform widths": blend,
    "ours, evolved widths": evolved_widths,
    "ours, uniform widths, pre-screened": pre_screened,
    "ours, evolved widths, pre-screened": partial(pre_screened, allocation="evolved"),
    "ours, no clustering, pre-screened": partial(no_clustering, method=pre_screened),
    "best single, by accuracy": partial(best_single, objective="accuracy"),
    "ours, uniform widths, by accuracy": partial(blend, objective="accuracy"),
    "LeGR": legr,
    "random": random_filters,
    "mean rank": mean_rank,
    "no clustering": no_clustering,
    "random search, uniform widths": partial(blend, algorithm="random"),
    "random search, evolved widths": partial(evolved_widths, algorithm="random"),
}
"""Name in the results to the method."""
USES_MOMENTS = ("pre-screened", "balanced")  # so they need compensation
PLAIN = tuple(name for name in METHODS if not any(word in name for word in USES_MOMENTS))
COMPENSATED = tuple(name for name in METHODS if name.startswith(("best single", "ours")) or name == "LeGR")
DRAFTS = (
    "best single",
    "best single, balanced widths",
    "best single, one threshold",
    "ours, uniform widths, pre-screened",
    "LeGR",
    "ours, evolved widths, pre-screened",
)


# ------------------------------------------------------------------ fronts
def front(setup: Setup, protocol: str, *, algorithm: str = "nsga2", screened: int = 1, **options: Any) -> Row:
    """Accuracy against FLOPs: a search's front, with hypervolumes on validation and on the first test images.

    The networks are tested as they were compared: compensated, or refined drafts.
    """
    genome = setup.genome(None, **options)
    evaluator = setup.evaluator(protocol, objectives=("accuracy", "flops"))
    rates = (0.5, 0.5, 0.02) if screened > 1 else (0.9, 0.5, None)
    steps = dict(zip(("cxpb", "mutpb", "indpb"), rates, strict=True))
    state = search(setup, genome, evaluator, algorithm, sigma=0.2, screened=screened, **steps)
    masks = genome.decode_many(state.archive)
    validation = np.array([individual.fitness.values for individual in state.archive])
    networks = [evaluator.slim(candidate) for candidate in masks]
    accuracies = [setup.test_accuracy(network, TEST_IMAGES) for network in networks]
    tested = list(zip(accuracies, validation[:, 1].tolist(), strict=True))
    return {
        "hypervolume": {"validation": volume(validation), "test": volume(np.array(tested))},
        "points": {"validation": validation.tolist(), "test": tested},
        "test images": TEST_IMAGES,
        "evaluations": evaluations_of(state),
    }


def volume(points: np.ndarray) -> float:
    """Hypervolume of (accuracy, flops), reference point (0, 1)."""
    return float(moocore.hypervolume(points * (-1, 1), ref=(0.0, 1.0)))


FRONTS: dict[str, Callable[[Setup, str], Row]] = {
    "ours": partial(front, allocation="evolved"),
    "ours, pre-screened": partial(front, allocation="evolved", algorithm="mu_plus_lambda", screened=8),
    "LeGR's genome": partial(front, kind=AffineGenome, criterion="l2", min_keep=0.1),
    "random search": partial(front, allocation="evolved", algorithm="random"),
}


# ------------------------------------------------------------------ transfer
def weights_of(genome: Any, individual: Sequence[float]) -> Row:
    """A blend by name: for each group the factor of each criterion, and the keep gene (None without one)."""
    layout, shares = genome.layout, genome.blend(individual)
    keeps = {layout.loci[place]: float(individual[place]) for place in layout.of_kind("keep")}
    return {
        group.name: {"factors": shares[group.name], "keep": keeps.get(number)}
        for number, group in enumerate(genome.space.groups)
    }


def matching_layers(names: Sequence[str], sources: Sequence[str]) -> dict[str, str]:
    """For each layer one of another network: in the same stage (first part of the name), at the same relative depth."""
    matches = {}
    for name in names:
        stage = name.split(".")[0]
        here, there = ([n for n in network if n.split(".")[0] == stage] for network in (names, sources))
        matches[name] = there[here.index(name) * len(there) // len(here)]
    return matches


def transferred(setup: Setup, budget: float, protocol: str, *, source: Row) -> Row:
    """A blend from another network or budget, used as it is: nothing is searched here."""
    evolved = next(iter(source["blend"].values()))["keep"] is not None
    allocation = "evolved" if evolved else "uniform"
    genome = setup.genome(budget, clusters=len(setup.scores.criteria), allocation=allocation)
    matches = matching_layers([group.name for group in setup.space.groups], list(source["blend"]))
    genes: list[float] = []
    for group in setup.space.groups:
        weights = source["blend"][matches[group.name]]
        factors = {name: weights["factors"].get(name, 0.0) for name in setup.scores[group.name]}
        for members in genome.clusters[group.name].members:
            heaviest = max(members, key=factors.__getitem__)
            genes += [members.index(heaviest)] if len(members) > 1 else []
            genes.append(factors[heaviest])
        genes += [weights["keep"]] if evolved else []
    return setup.row(protocol, genome.decode(genes), evaluations=1)
