"""The end of a search: its best networks refined within the time that is left, and the front of their values."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deap_prune.deadline import TimeIsUpError, until
from deap_prune.evolution.front import ParetoFront
from deap_prune.evolution.generation import Generation
from deap_prune.evolution.problem import BlendProblem, front_of
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.fitness.settings import Settings
from deap_prune.options import EndOptions
from deap_prune.progress import Shown, step, track
from deap_prune.search.finalists import finalists
from deap_prune.search.refined import Refined, RefinedNetworks, spread
from deap_prune.search.time_limit import TimeLimit
from deap_prune.structure.masks import Masks

PROBES = 3  # networks that tell whether refinement helps, before the others are refined


@dataclass(frozen=True, eq=False)
class FinalFront:
    """The front of a search, and the evaluator that its values and networks come from."""

    front: ParetoFront
    evaluator: Evaluator


@dataclass(frozen=True, eq=False)
class Ending:
    """A search that has evolved, and what its end may use.

    Attributes:
        problem: Decodes individuals.
        evaluator: The fitness of the search.
        state: The search's last state.
        options: Whether and how networks are refined and recovered.
        folder: The run folder, where refined networks are kept; None: in memory.
        limit: The time limit.
        progress: Show bars.
        task: What the run depends on, as a text.
    """

    problem: BlendProblem
    evaluator: Evaluator
    state: Generation
    options: EndOptions
    folder: Path | None = None
    limit: TimeLimit | None = None
    progress: Shown = False
    task: str = ""

    def has_room(self, what: str = "refine") -> bool:
        """Whether one more network can be refined, or recovered, in time."""
        return self.limit is None or self.limit.room(what)


def final_front(ending: Ending) -> FinalFront:
    """The front of a search, evaluated on all validation images as they are, in fp32, and refined if that helps.

    Refinement moves a network towards the dense one. That is no gain if the dense network is poor (hardly trained).
    A few networks are refined first. If all of them get worse, or if the whole front does, it is returned as the
    search compared it, and ``settings["refine"]`` is false. Nothing is compared if candidates were refined during the
    search, or if an objective is a time, which differs between measurements.

    Networks that an earlier end of the same run refined stay, so that a longer run never has a worse front. With a
    deadline as many networks are refined as the time allows, spread over the front.
    """
    if not ending.options.refine:
        return _not_refined(ending)
    refining = ending.evaluator.with_settings(
        refine=True,
        refine_images=ending.options.refine_images,
        refine_rows=Settings.refine_rows,
        select=False,
        augment=False,
        precision="fp32",
    )
    path = None if ending.folder is None else ending.folder / "refined.jsonl"
    networks = RefinedNetworks(path, refining, ending.task)
    if not len(networks) and not ending.has_room():
        return _as_searched(ending, "max_seconds leaves no time for a network")
    comparable = not ending.evaluator.options.refine and not ending.evaluator.is_timed
    if comparable and _all_probes_get_worse(ending, refining, networks):
        return _as_searched(ending, "each of the first networks became worse")
    individuals = [*ending.state.archive, *_finalists(ending)]
    _refine(ending, refining, networks, individuals, "refining the front")
    if not len(networks):
        return _as_searched(ending, "no time was left")
    refined = FinalFront(_front(ending, refining, _in_order(ending, networks, individuals)), refining)
    if ending.options.recover:
        refined = _recovered(ending, refined)
    if comparable:
        searched = _not_refined(ending)
        before, after = _worth(searched.front), _worth(refined.front)
        if before > after:
            name = "hypervolume" if len(refining.names) > 1 else refining.names[0]
            _note_not_refined(ending, f"that would make the front worse ({name} {_apart(abs(before), abs(after))})")
            return searched
    return refined


def _finalists(ending: Ending) -> list[Any]:
    """Individuals to refine in addition to the archive; none if the time does not suffice to choose them."""
    if not ending.has_room():
        return []
    try:
        with until(None if ending.limit is None else ending.limit.deadline):
            return finalists(ending.problem, ending.evaluator, ending.state, ending.options.finalists)
    except TimeIsUpError:
        return []


def _recovered(ending: Ending, refined: FinalFront) -> FinalFront:
    """The front after label-free recovery of its networks, as far as the time allows; as it was if that is no gain."""
    recovering = refined.evaluator.with_settings(recover=ending.options.recover)
    path = None if ending.folder is None else ending.folder / "recovered.jsonl"
    networks = RefinedNetworks(path, recovering, ending.task)
    solutions = {s.masks: s.individual for s in refined.front}
    _evaluate(ending, recovering, networks, solutions, "recovering the front")
    if not len(networks):
        return refined
    recovered = FinalFront(_front(ending, recovering, list(networks)), recovering)
    return recovered if _worth(recovered.front) >= _worth(refined.front) else refined


def _all_probes_get_worse(ending: Ending, refining: Evaluator, networks: RefinedNetworks) -> bool:
    """Whether refinement makes the first objective of all probes worse.

    The probes are spread over the archive; with one objective they are the best of archive and last population.
    """
    individuals = spread(ending.state.archive)
    if len(refining.names) == 1:
        individuals += sorted(ending.state.population, key=lambda ind: ind.fitness, reverse=True)
    probes = list(_distinct(ending, individuals).items())[:PROBES]
    _refine(ending, refining, networks, [individual for _, individual in probes], "refining the first networks")
    sign = refining.weights[0]
    gains = [
        sign * (network.values[0] - individual.fitness.values[0])
        for masks, individual in probes
        if (network := networks.get(masks)) is not None
    ]
    return bool(gains) and max(gains) < 0


def _refine(
    ending: Ending, refining: Evaluator, networks: RefinedNetworks, individuals: Sequence[Any], bar: str
) -> None:
    """Refine and evaluate the individuals' networks that are not there yet, as far as the time allows."""
    if ending.limit is not None:
        individuals = spread(individuals)
    selects = ending.options.select is not None
    _evaluate(ending, refining, networks, _distinct(ending, individuals), bar, selects=selects)


def _evaluate(
    ending: Ending,
    evaluator: Evaluator,
    networks: RefinedNetworks,
    candidates: Mapping[Masks, Any],
    bar: str,
    *,
    selects: bool = False,
) -> None:
    """Evaluate the networks that are not there yet, as far as the time allows.

    Args:
        ending: The search's end.
        evaluator: Builds and evaluates the networks.
        networks: Where they are kept.
        candidates: Their individuals, by masks.
        bar: Text of the progress bar.
        selects: Whether refinement selects the filters.
    """
    todo = [(masks, individual) for masks, individual in candidates.items() if networks.get(masks) is None]
    what = "recover" if evaluator.options.recover else "refine"
    for number, (masks, individual) in enumerate(track(todo, bar, shown=ending.progress, each=True)):
        start = time.monotonic()
        try:
            if not ending.has_room(what):
                raise TimeIsUpError
            with until(None if ending.limit is None else ending.limit.latest):
                kept = evaluator.selected(masks) if selects else masks
                values = evaluator.measure(evaluator.slim(kept), kept)
        except TimeIsUpError:
            step(f"{bar}: ended by max_seconds after {number} of {len(todo)} networks", shown=ending.progress)
            return
        networks.add(masks, Refined(tuple(individual), kept, values))
        if ending.limit is not None:
            ending.limit.took(what, time.monotonic() - start)


def _distinct(ending: Ending, individuals: Sequence[Any]) -> dict[Masks, Any]:
    """The first individual of each network, by masks."""
    distinct: dict[Masks, Any] = {}
    for masks, individual in zip(ending.problem.genome.decode_many(individuals), individuals, strict=True):
        distinct.setdefault(masks, individual)
    return distinct


def _in_order(ending: Ending, networks: RefinedNetworks, individuals: Sequence[Any]) -> list[Refined]:
    """The networks in the order of the individuals, then those of an earlier end of the run."""
    present = [network for m in _distinct(ending, individuals) if (network := networks.get(m)) is not None]
    return [*present, *(network for network in networks if network not in present)]


def _front(ending: Ending, evaluator: Evaluator, networks: Sequence[Refined]) -> ParetoFront:
    individuals, masks = [n.individual for n in networks], [n.masks for n in networks]
    return front_of(evaluator, ending.problem.genome.space, individuals, masks, [n.values for n in networks])


def _worth(front: ParetoFront) -> float:
    """The hypervolume, or the best value of one objective, larger being better."""
    ((name, weight), *others) = front.weights.items()
    return front.hypervolume() if others else weight * front.best().values[name]


def _apart(before: float, after: float) -> str:
    """Two values that differ, with as many digits as it takes to see it."""
    texts = ((f"{before:.{digits}g}", f"{after:.{digits}g}") for digits in range(4, 18))
    first, second = next(pair for pair in texts if pair[0] != pair[1])
    return f"{first}, refined {second}"


def _not_refined(ending: Ending) -> FinalFront:
    """The front without refinement; evaluated again only if the search used other images or another precision."""
    evaluator, individuals = ending.evaluator, ending.state.archive
    options, space = evaluator.options, ending.problem.genome.space
    if not options.augment and not options.refine:
        masks = ending.problem.genome.decode_many(individuals)
        values = [ind.fitness.values for ind in individuals]
        return FinalFront(front_of(evaluator, space, individuals, masks, values), evaluator)
    other = evaluator.with_settings(refine=False, select=False, augment=False, precision="fp32")
    networks = [
        Refined(tuple(individual), masks, other.measure(other.slim(masks), masks))
        for masks, individual in track(
            list(_distinct(ending, individuals).items()), "evaluating the front", shown=ending.progress
        )
    ]
    return FinalFront(_front(ending, other, networks), other)


def _as_searched(ending: Ending, reason: str) -> FinalFront:
    _note_not_refined(ending, reason)
    return _not_refined(ending)


def _note_not_refined(ending: Ending, reason: str) -> None:
    step(f"not refined: {reason}", shown=ending.progress)
