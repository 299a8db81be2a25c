"""How good a pruned network is: masks in, objectives out."""

from deap_prune.fitness.evaluator import Evaluator
from deap_prune.fitness.objectives import OBJECTIVES, Objective, register_objective
from deap_prune.fitness.recalibrate import recalibrate_bn
from deap_prune.fitness.settings import Counters, Settings

__all__ = [
    "OBJECTIVES",
    "Counters",
    "Evaluator",
    "Objective",
    "Settings",
    "recalibrate_bn",
    "register_objective",
]
