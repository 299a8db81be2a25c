"""Contracts that every entry of every registry must satisfy."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Digits
from deap import base, creator
from torch import Tensor, nn

import deap_prune as dp
import deap_prune.blending
from deap_prune.blending import ALLOCATIONS, Layout
from deap_prune.blending.allocation import AllocationInputs
from deap_prune.costs import COSTS
from deap_prune.criteria import CRITERIA
from deap_prune.errors import RegistryError
from deap_prune.evolution import ALGORITHMS
from deap_prune.fitness import OBJECTIVES
from deap_prune.registry import Registry
from tests.helpers.networks import conv
from tests.helpers.pruning import assert_unchanged, snapshot

CRITERIA_NAMES = [c.name for c in CRITERIA]
OBJECTIVE_NAMES = [o.name for o in OBJECTIVES]
ALLOCATION_NAMES = [a.name for a in ALLOCATIONS]


# ------------------------------------------------------------------ criteria
@pytest.mark.parametrize("name", CRITERIA_NAMES)
def test_criterion_contract(name: str, digits: Digits) -> None:
    model = copy.deepcopy(digits.model).train()
    before = snapshot(model)
    state = torch.get_rng_state()
    data = tuple(part[:20] for part in digits.calibration)  # some criteria need one forward pass per filter
    first, again = (dp.score(model, digits.space, data, criteria=(name,), seed=5) for _ in range(2))
    assert_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    for group in digits.space.groups:
        scores = first[group.name][name]
        assert scores.shape == (group.size,) and scores.dtype == np.float64
        assert np.isfinite(scores).all() and np.ptp(scores) > 0
        assert np.array_equal(scores, again[group.name][name])
    assert CRITERIA[name].summary and (name == "random" or CRITERIA[name].reference)


def permuted(net: nn.Sequential, order: Tensor) -> nn.Sequential:
    """The same function with the filters of the first convolution in another order."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for layer, names in ((net[0], ("weight", "bias")), (net[1], ("weight", "bias", "running_mean", "running_var"))):
            for n in names:
                getattr(layer, n).copy_(getattr(layer, n)[order])
        net[3].weight.copy_(net[3].weight[:, order])
    return net


@pytest.mark.parametrize("name", [c.name for c in CRITERIA if c.equivariant])
def test_criterion_is_equivariant(name: str) -> None:
    net = nn.Sequential(
        conv(3, 9),
        nn.BatchNorm2d(9),
        nn.ReLU(),
        conv(9, 6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()
    with torch.no_grad():
        for tensor in (*net[1].parameters(), net[1].running_mean, net[1].running_var):
            tensor.uniform_(0.2, 1.5)
    x, order = torch.randn(20, 3, 6, 6), torch.randperm(9)
    reordered = permuted(net, order)
    assert torch.allclose(net(x), reordered(x), atol=1e-5)
    data, space = (x, torch.randint(0, 4, (20,))), dp.trace(net, x)
    before, after = (dp.score(n, space, data, criteria=(name,)) for n in (net, reordered))
    np.testing.assert_allclose(after["0"][name], before["0"][name][order.numpy()], rtol=1e-3)
    assert set(before["3"]) == set(after["3"])
    for key, values in before["3"].items():
        np.testing.assert_allclose(after["3"][key], values, rtol=1e-3)


def test_random_criterion_follows_the_seed(digits: Digits) -> None:
    a, b, c = (dp.score(digits.model, digits.space, criteria=("random",), seed=s)["conv1"]["random"] for s in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert not CRITERIA["random"].equivariant


# ------------------------------------------------------------------ objectives
@pytest.fixture
def nan_objective() -> Iterator[None]:
    dp.register_objective("not_a_number", maximise=True, worst=-1.0)(lambda out, y, dense: out[:, 0] * float("nan"))
    dp.register_objective("infinite_cost", maximise=False, worst=7.0, cost=True)(lambda space, masks: float("inf"))
    yield
    OBJECTIVES.remove("not_a_number")
    OBJECTIVES.remove("infinite_cost")


@pytest.mark.parametrize("name", OBJECTIVE_NAMES)
def test_objective_contract(name: str, digits: Digits) -> None:
    """Values are finite, deterministic, in range, in the right direction, and not worse than the worst value."""
    objective = OBJECTIVES[name]
    evaluate = digits.evaluator(objectives=(name,))
    half, tiny = (dp.Masks.random(digits.space, keep=k) for k in (0.9, 0.06))
    values = [evaluate(m)[0] for m in (dp.Masks({}), half, tiny)]
    assert all(type(v) is float and np.isfinite(v) for v in values)
    if not objective.of_network:  # measured times vary
        assert digits.evaluator(objectives=(name,))(half) == evaluate(half)
    assert evaluate.weights == (objective.weight,) == ((1.0,) if objective.maximise else (-1.0,))
    assert np.isfinite(objective.worst) and all(objective.weight * (v - objective.worst) >= 0 for v in values)
    if name in {"accuracy", "miou", "shift_consistency", "flops", "params", "memory"}:
        assert all(0 <= v <= 1 for v in values)
    if name in {"flops", "params", "memory"}:
        assert values[0] == 1 and values[0] > values[1] > values[2]
    elif name == "memory":  # a narrow layer may leave the peak as it is
        assert values[0] == 1 and values[0] >= values[1] >= values[2]
    elif name not in {"shift_consistency", "latency"}:  # a constant prediction is consistent; times vary
        assert objective.weight * values[0] > objective.weight * values[2]
    assert objective.summary


@pytest.mark.usefixtures("nan_objective")
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("not_a_number", "flops"), (-1.0, 1.0)),
        (("accuracy", "infinite_cost"), (None, 7.0)),
        (("infinite_cost", "flops"), (7.0, 1.0)),
    ],
)
def test_a_value_that_is_not_finite_becomes_the_worst_value(
    names: tuple[str, str], expected: tuple[float, float], digits: Digits
) -> None:
    evaluate = digits.evaluator(objectives=names)
    bad = "not_a_number" if "not_a_number" in names else "infinite_cost"
    with pytest.warns(UserWarning, match=f"{bad} was (nan|inf); counted as the worst value"):
        values = evaluate(dp.Masks({}))
    assert all(e is None or v == e for v, e in zip(values, expected, strict=True))


# ------------------------------------------------------------------ allocations
@pytest.mark.parametrize("name", ALLOCATION_NAMES)
def test_allocation_contract(name: str) -> None:
    """A path from no filters to all filters never decreases, and the inputs are not changed."""
    allocation = ALLOCATIONS[name]
    rng = np.random.default_rng(0)
    sizes = np.array([4, 9, 2, 32])
    importance = tuple(rng.random(n) for n in sizes)
    for shares in (np.ones(4), np.zeros(4), rng.random(4)):
        inputs = AllocationInputs(sizes.copy(), tuple(s.copy() for s in importance), shares.copy())
        path = allocation.path(inputs)
        points = np.array([path(t) for t in np.linspace(0, 1, 201)])
        assert (np.diff(points, axis=0) >= -1e-9).all()
        assert np.allclose(points[0], 0) and np.allclose(points[-1], sizes)
        assert np.array_equal(inputs.shares, shares) and np.array_equal(inputs.sizes, sizes)
        assert all(np.array_equal(a, b) for a, b in zip(inputs.importance, importance, strict=True))
    assert allocation.summary and allocation.reference


@pytest.mark.parametrize("name", ALLOCATION_NAMES)
@pytest.mark.parametrize("max_flops", [0.2, 0.5, None])
def test_allocation_decodes_inside_the_budget(name: str, max_flops: float | None, digits: Digits) -> None:
    """Law 4 for every registered allocation (random cases are in blending/test_genome.py)."""
    genome = digits.genome(allocation=name, max_flops=max_flops)
    random.seed(0)
    for _ in range(5):
        masks = genome.decode(dp.operators.initBlend(list, genome.layout))
        assert dp.flops(digits.space, masks) <= (max_flops or 1) * digits.space.flops
        assert all(keep.any() for keep in masks.values())


# ------------------------------------------------------------------ operators
class Listed(list):  # type: ignore[type-arg]
    """A list class of the user."""


@pytest.fixture(scope="module")
def containers() -> Iterator[dict[str, Callable[..., Any]]]:
    creator.create("TestFitness", base.Fitness, weights=(1.0, -1.0))
    creator.create("TestIndividual", list, fitness=creator.TestFitness)
    yield {"list": list, "list subclass": Listed, "creator": creator.TestIndividual}
    del creator.TestFitness, creator.TestIndividual


OPERATORS: dict[str, Callable[[list[Any], Layout], tuple[Any, ...]]] = {
    "cxBlendWidths": lambda parents, layout: dp.operators.cxBlendWidths(*parents, layout=layout),
    "cxBlendWidths, large alpha": lambda parents, layout: dp.operators.cxBlendWidths(
        *parents, layout=layout, alpha=20.0
    ),
    "cxBlendLayers": lambda parents, layout: dp.operators.cxBlendLayers(*parents, layout=layout),
    "cxBlendStages": lambda parents, layout: dp.operators.cxBlendStages(*parents, layout=layout),
    "cxBlendMix": lambda parents, layout: dp.operators.cxBlendMix(*parents, layout=layout),
    "cxBlendMix, large alpha": lambda parents, layout: dp.operators.cxBlendMix(*parents, layout=layout, alpha=20.0),
    "cxBlendSBX": lambda parents, layout: dp.operators.cxBlendSBX(*parents, layout=layout),
    "mutBlend": lambda parents, layout: dp.operators.mutBlend(parents[0], layout=layout, indpb=0.5),
    "mutBlend, probability 0": lambda parents, layout: dp.operators.mutBlend(parents[0], layout=layout, indpb=0.0),
    "mutBlendFactors": lambda parents, layout: dp.operators.mutBlendFactors(parents[0], layout=layout),
    "mutBlendCandidates": lambda parents, layout: dp.operators.mutBlendCandidates(parents[0], layout=layout),
    "mutBlendTrade": lambda parents, layout: dp.operators.mutBlendTrade(parents[0], layout=layout),
    "mutBlendTrade, large steps": lambda parents, layout: dp.operators.mutBlendTrade(
        parents[0], layout=layout, sigma=50.0
    ),
    "mutBlend, large steps": lambda parents, layout: dp.operators.mutBlend(
        parents[0], layout=layout, indpb=1.0, sigma=50.0
    ),
}


def in_bounds(individual: list[Any], layout: Layout) -> bool:
    whole = all(g == int(g) for g, kind in zip(individual, layout.kinds, strict=True) if kind == "candidate")
    inside = all(lo <= g <= hi for g, lo, hi in zip(individual, layout.low, layout.high, strict=True))
    return whole and inside and all(isinstance(g, (int, float)) for g in individual)


def genome_of(kind: str, digits: Digits) -> Any:
    if kind == "affine":
        return deap_prune.blending.AffineGenome(digits.space, digits.scores, digits.clusters, max_flops=0.5)
    return digits.genome(allocation=kind, candidates="medoid" if kind == "global" else "evolved")


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("kind", ["list", "list subclass", "creator"])
@pytest.mark.parametrize("genome", ["uniform", "evolved", "global", "affine"])
def test_operator_contract(
    name: str, kind: str, genome: str, containers: dict[str, Callable[..., Any]], digits: Digits
) -> None:
    """Length, bounds and type are kept; parents change in place; equal seeds give equal children."""
    layout = genome_of(genome, digits).layout

    def children() -> tuple[list[Any], tuple[Any, ...]]:
        random.seed(3)
        parents = [dp.operators.initBlend(containers[kind], layout) for _ in range(2)]
        start = [list(p) for p in parents]
        result = OPERATORS[name](parents, layout)
        assert all(any(child is p for p in parents) for child in result)
        assert [list(c) for c in result] != start[: len(result)]
        return parents, result

    parents, result = children()
    assert isinstance(result, tuple)
    assert all(
        type(c) is containers[kind] and len(c) == len(layout) and in_bounds(c, layout) for c in (*parents, *result)
    )
    assert [list(c) for c in children()[1]] == [list(c) for c in result]


INITIALISERS: dict[str, Callable[[Any, Any], Any]] = {
    "initBlend": lambda container, genome: dp.operators.initBlend(container, genome.layout),
    "initBlendSingle": lambda container, genome: dp.operators.initBlendSingle(container, genome),
    "initBlendAffine": lambda container, genome: dp.operators.initBlendAffine(container, genome),
}


@pytest.mark.parametrize("name", INITIALISERS)
@pytest.mark.parametrize("kind", ["list", "list subclass", "creator"])
def test_initialiser_contract(name: str, kind: str, containers: dict[str, Callable[..., Any]], digits: Digits) -> None:
    """The type is the container's, length and bounds the layout's; results depend on the seed; draws differ."""
    for genome in (digits.genome(), digits.genome(max_flops=0.5), digits.genome(max_flops=(0.3, 0.7))):
        random.seed(4)
        first, second = (INITIALISERS[name](containers[kind], genome) for _ in range(2))
        random.seed(4)
        again = INITIALISERS[name](containers[kind], genome)
        assert list(again) == list(first) != list(second)
        assert type(first) is containers[kind] and len(first) == len(genome.layout)
        assert in_bounds(first, genome.layout) and in_bounds(second, genome.layout)
        genome.decode(first)


def test_crossover_exchanges_whole_layers(digits: Digits) -> None:
    layout = digits.genome(allocation="evolved", max_flops=0.5).layout
    a, b = [0] * len(layout), [1] * len(layout)
    random.seed(0)
    dp.operators.cxBlendLayers(a, b, layout)
    assert [x + y for x, y in zip(a, b, strict=True)] == [1] * len(layout)
    by_locus = {locus: {g for g, at in zip(a, layout.loci, strict=True) if at == locus} for locus in set(layout.loci)}
    assert all(len(genes) == 1 for genes in by_locus.values())
    assert {g for genes in by_locus.values() for g in genes} == {0, 1}


def test_layout_describes_every_gene(digits: Digits) -> None:
    evolved, uniform = (digits.genome(allocation=a).layout for a in ("evolved", "uniform"))
    assert set(evolved.kinds) == {"candidate", "factor", "keep"}
    assert set(uniform.kinds) == {"candidate", "factor", "budget"} and uniform.loci[-1] == -1
    assert "budget" not in digits.genome(allocation="uniform", max_flops=0.5).layout.kinds
    for layout in (evolved, uniform):
        assert [i for start, stop in layout.spans for i in range(start, stop)] == list(range(len(layout)))
        assert all(lo <= hi for lo, hi in zip(layout.low, layout.high, strict=True))


# ------------------------------------------------------------------ registries
REGISTRIES: dict[str, Registry[Any]] = {
    "criterion": CRITERIA,
    "objective": OBJECTIVES,
    "allocation": ALLOCATIONS,
    "algorithm": ALGORITHMS,
    "cost": COSTS,
}
REGISTER: dict[str, tuple[str, Callable[[str], object]]] = {
    "criterion": ("l1", lambda name: dp.register_criterion(name, needs="weight")(lambda weight: weight.sum(1))),
    "objective": ("accuracy", lambda name: dp.register_objective(name, maximise=True, worst=0)(lambda o, t, d: o)),
    "allocation": ("uniform", lambda name: dp.register_allocation(name)(lambda inputs: lambda t: t * inputs.sizes)),
    "cost": ("flops", lambda name: dp.register_cost(name)(lambda space: space.flops_of)),
    "algorithm": ("random", lambda name: dp.algorithms.register_algorithm(name)(lambda state, toolbox, variation: [])),
}


@pytest.mark.parametrize("kind", REGISTRIES)
def test_registry(kind: str) -> None:
    registry, (taken, register) = REGISTRIES[kind], REGISTER[kind]
    with pytest.raises(RegistryError, match=f"the {kind} '{taken}' is registered already; choose another name"):
        register(taken)
    with pytest.raises(RegistryError, match=rf"unknown {kind} '{taken}x'; did you mean '{taken}'\? known: .*{taken}"):
        registry[f"{taken}x"]
    register("brand_new")
    try:
        assert "brand_new" in registry and registry["brand_new"].name == "brand_new"
    finally:
        registry.remove("brand_new")
    assert "brand_new" not in registry
    described = registry.describe()
    listings = {"criterion": dp.criteria, "objective": dp.objectives, "allocation": dp.allocations}
    assert described == {**listings, "algorithm": dp.algorithms.describe, "cost": COSTS.describe}[kind]()
    assert all(
        line.endswith(f"[{registry[name].reference}]") or not registry[name].reference
        for name, line in described.items()
    )


def test_register_criterion_names_the_nearest_statistic() -> None:
    with pytest.raises(RegistryError, match=r"criterion 'mine' needs 'weights'; did you mean 'weight'\?"):
        dp.register_criterion("mine", needs=("weights",))
    with pytest.raises(RegistryError, match="criterion 'mine' needs no statistics; name those it is computed from"):
        dp.register_criterion("mine", needs=())
    assert "mine" not in CRITERIA


def test_register_layer_messages() -> None:
    with pytest.raises(RegistryError, match="the layer type 'Conv2d' is registered already"):
        dp.register_layer(nn.Conv2d)(lambda layer: None)
    with pytest.raises(RegistryError, match=r"register_layer takes nn.Module subclasses, or .* got <class 'int'>"):
        dp.register_layer(int)(lambda layer: None)  # type: ignore[type-var]
