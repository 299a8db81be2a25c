"""Evolutionary algorithms in one loop, with stops and callbacks: ``Loop("nsga2", toolbox, Variation(32))``.

``describe()`` lists the registered algorithms and baselines; ``register_algorithm`` adds one. ``steady_state`` is for
any DEAP toolbox: its workers never wait for a generation.
"""

from deap_prune.evolution.first_population import StartingPoints
from deap_prune.evolution.generation import Generation
from deap_prune.evolution.loop import ALGORITHMS, Algorithm, Loop, Variation, eaBlend, register_algorithm
from deap_prune.evolution.prescreen import Prescreen
from deap_prune.evolution.problem import BlendProblem
from deap_prune.evolution.steady_state import steady_state
from deap_prune.evolution.stops import MaxEvaluations, MaxSeconds, Patience, Target

__all__ = [
    "Algorithm",
    "BlendProblem",
    "Generation",
    "Loop",
    "MaxEvaluations",
    "MaxSeconds",
    "Patience",
    "Prescreen",
    "StartingPoints",
    "Target",
    "Variation",
    "describe",
    "eaBlend",
    "register_algorithm",
    "steady_state",
]


def describe() -> dict[str, str]:
    """Names of the algorithms and baselines, each with a line and its reference."""
    return ALGORITHMS.describe()
