"""Individuals and their fitness: plain importable classes, so that they pickle and need no ``creator`` globals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

from deap import base


class BlendFitness(base.Fitness):  # type: ignore[misc]
    """A DEAP fitness whose copies keep all attributes, such as the crowding distance that selTournamentDCD reads.

    DEAP's own fitness copies only the values (DEAP/deap#420).
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> BlendFitness:
        copied = self.__class__()
        copied.__dict__.update(self.__dict__)
        return copied


def fitness_class(weights: Sequence[float]) -> type[base.Fitness]:
    """The fitness class of these directions: ``FitnessMax``, ``FitnessMin``, ``FitnessMaxMin``, ...

    Args:
        weights: +1 to maximise, -1 to minimise, for each objective.
    """
    name = "Fitness" + "".join("Max" if w > 0 else "Min" for w in weights)
    return getattr(__import__(__name__, fromlist=[name]), name)


def __getattr__(name: str) -> Any:
    """Fitness classes are made when they are first named, also when a worker unpickles one."""
    body = name.removeprefix("Fitness")
    if body == name or not body or body.replace("Max", "").replace("Min", ""):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    weights = tuple(1.0 if body[i : i + 3] == "Max" else -1.0 for i in range(0, len(body), 3))
    globals()[name] = type(
        name, (BlendFitness,), {"weights": weights, "__module__": __name__, "__doc__": f"Weights {weights}."}
    )
    return globals()[name]


class BlendIndividual(list[float]):
    """A list of genes (see ``Layout``) with a DEAP fitness."""

    def __init__(self, genes: Iterable[float], fitness: base.Fitness) -> None:
        super().__init__(genes)
        self.fitness = fitness

    def __deepcopy__(self, memo: dict[int, Any]) -> BlendIndividual:
        """Genes are numbers: copying the list is enough, and much quicker (``toolbox.clone`` copies every child)."""
        copied = self.__class__.__new__(self.__class__)
        copied.extend(self)
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        return copied
