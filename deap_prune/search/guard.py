"""A callback that logs the best networks' values on held-out images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deap_prune.evolution.front import hypervolume
from deap_prune.evolution.generation import Generation
from deap_prune.evolution.problem import BlendProblem
from deap_prune.fitness.evaluator import Evaluator


class Guard:
    """Log the best networks' value on images that never decide anything, as ``guard``.

    With one objective the value is that of the best network, with several the hypervolume of the archive.

    Args:
        evaluator: The fitness, with guard images.
        problem: Decodes individuals.
        reference: Reference point of the hypervolume; the front's by default.
    """

    def __init__(self, evaluator: Evaluator, problem: BlendProblem, reference: Sequence[float] | None = None) -> None:
        self._evaluator, self._problem, self._reference = evaluator, problem, reference

    def __call__(self, state: Generation) -> None:
        """Log the value of a generation."""
        evaluator = self._evaluator
        rows = [evaluator.on_guard(masks) for masks in self._problem.genome.decode_many(state.archive)]
        weights = evaluator.weights
        if len(weights) == 1:
            value = weights[0] * max(weights[0] * row[0] for row in rows)
        else:
            reference = self._problem.front([]).reference if self._reference is None else self._reference
            value = hypervolume(-np.array(rows) * weights, weights, reference)
        state.logbook[-1]["guard"] = value
