"""Workers for steady-state loops that evaluate in this process and return in a random order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

import deap_prune as dp
from deap_prune.evolution.problem import problem_of


class ScrambledMap:
    """A ``map`` with single candidates: some of those in flight come back, in an order of its own generator.

    Evaluations draw from the global generators, as Ray does. Workers join and leave: their number changes at random.
    A lost candidate is evaluated again.
    """

    def __init__(self, workers: int = 4, seed: int = 0) -> None:
        self._most, self._chance = workers, random.Random(seed)
        self._sent: dict[int, Callable[[], Any]] = {}
        self._now = workers
        self.order: list[int] = []
        self.lost = 0

    def __enter__(self) -> ScrambledMap:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __call__(self, function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
        return list(map(function, *items))

    def workers_for(self, evaluate: Callable[..., Any]) -> ScrambledMap:
        self._evaluate = evaluate
        return self

    def free(self) -> int:
        return max(0, self._now - len(self._sent))

    def send(self, number: int, individual: Any, masks: dp.Masks | None) -> None:
        problem = problem_of(self._evaluate)
        if masks is None or problem is None:
            self._sent[number] = partial(self._evaluate, individual)
        else:  # past the driver's cache, as in another process
            self._sent[number] = partial(problem.fitness.compute, masks)

    def wait(self) -> dict[int, tuple[float, ...]]:
        random.random(), np.random.rand()
        self._now = self._chance.randint(0 if self._sent else 1, self._most)
        if self._chance.random() < 0.2:  # a worker joined or died, nothing came back
            self.lost += bool(self._sent)
            return {}
        numbers = sorted(self._sent)
        returned = self._chance.sample(numbers, k=min(len(numbers), self._chance.randint(1, 2)))
        self.order += returned
        return {number: tuple(self._sent.pop(number)()) for number in returned}

    def forget(self) -> None:
        self._sent = {}
