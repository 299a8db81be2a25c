"""The evolutionary loop: eaMuPlusLambda's shape, with callbacks, an archive, and a state that resumes exactly."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from deap import algorithms, base, tools

from deap_prune.evolution.front import ParetoFront

Callback = Callable[["Generation"], None]
Vary = Callable[[list[Any], base.Toolbox, int, float, float], list[Any]]


@dataclass
class Generation:
    """Where a run stands after a generation; all that the next one depends on, with the random generators.

    Attributes:
        number: 0 is the initial population, judged.
        population: Individuals with fitness.
        archive: Individuals whose fitness no other one dominated so far.
        logbook: One record a generation.
        stop: Set by a callback: the run ends after this generation.
    """

    number: int
    population: list[Any]
    archive: list[Any] = field(default_factory=list)
    logbook: tools.Logbook = field(default_factory=tools.Logbook)
    stop: bool = False


def eaBlend(
    population: list[Any],
    toolbox: base.Toolbox,
    lambda_: int,
    cxpb: float,
    mutpb: float,
    ngen: int,
    *,
    callbacks: Sequence[Callback] = (),
    state: Generation | None = None,
    begin: Callback | None = None,
    vary: Vary = algorithms.varOr,
) -> Generation:
    """(mu + lambda) evolution with an archive of the non-dominated.

    Per generation: ``lambda_`` children by ``algorithms.varOr``, evaluated through ``toolbox.map``; the best ``mu`` of
    parents and children survive (``toolbox.select``).
    Aliases needed: clone, evaluate, front, map, mate, mutate, select.

    Args:
        population: The initial individuals, mu of them.
        toolbox: The operators.
        lambda_: Children a generation.
        cxpb: Probability that a child comes from two parents.
        mutpb: Probability that it is a mutant; ``cxpb + mutpb`` is at most 1.
        ngen: Last generation's number.
        callbacks: Called with the state after every generation, the initial one included.
        state: Goes on from here instead of from ``population``.
        vary: Makes the children, as ``algorithms.varOr`` does.
        begin: Called with the state before the children of a generation are made; may judge the parents again.
    """
    if state is None:
        state = Generation(0, population)
        _advance(state, toolbox, population, population)
        _notify(state, callbacks)
    mu = len(state.population)
    while state.number < ngen and not state.stop:
        if begin is not None:
            begin(state)
        children = vary(state.population, toolbox, lambda_, cxpb, mutpb)
        state.number += 1
        fresh = [ind for ind in children if not ind.fitness.valid]
        _evaluate(toolbox, fresh)
        _advance(state, toolbox, toolbox.select(state.population + children, mu), fresh)
        _notify(state, callbacks)
    return state


def _evaluate(toolbox: base.Toolbox, individuals: list[Any]) -> None:
    for individual, values in zip(individuals, toolbox.map(toolbox.evaluate, individuals), strict=True):
        individual.fitness.values = values


def _advance(state: Generation, toolbox: base.Toolbox, survivors: list[Any], fresh: list[Any]) -> None:
    if state.number == 0:
        _evaluate(toolbox, [ind for ind in fresh if not ind.fitness.valid])
    state.population = survivors
    state.archive = non_dominated(state.archive + [toolbox.clone(ind) for ind in fresh])
    front: ParetoFront = toolbox.front(state.archive)
    values = np.array([ind.fitness.values for ind in state.population])
    record: dict[str, Any] = {"gen": state.number, "nevals": len(fresh)}
    if len(front.weights) > 1:
        record |= {"hypervolume": front.hypervolume(), "front": len(front)}
    for name, weight, column in zip(front.weights, front.weights.values(), values.T, strict=True):
        record[name] = float(column.max() if weight > 0 else column.min())
    state.logbook.record(**record)


def non_dominated(individuals: Sequence[Any]) -> list[Any]:
    """Those that no other one dominates, one for each set of fitness values, first come first kept."""
    distinct = list({ind.fitness.wvalues: ind for ind in reversed(individuals)}.values())[::-1]
    points = np.array([ind.fitness.wvalues for ind in distinct])
    beaten = [bool(((points >= p).all(axis=1) & (points > p).any(axis=1)).any()) for p in points]
    return [ind for ind, worse in zip(distinct, beaten, strict=True) if not worse]


def _notify(state: Generation, callbacks: Sequence[Callback]) -> None:
    for callback in callbacks:
        callback(state)


def random_states() -> dict[str, Any]:
    """The states of ``random``, ``numpy.random`` and torch, as JSON takes them."""
    import torch

    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [s.tolist() for s in torch.cuda.get_rng_state_all()] if torch.cuda.is_initialized() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Undo of :func:`random_states`."""
    import torch

    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.tensor(s, dtype=torch.uint8) for s in states["cuda"]])
