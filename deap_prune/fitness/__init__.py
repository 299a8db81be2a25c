"""How good a pruned network is: masks in, objectives out."""

from deap_prune.fitness.evaluator import Counters, Evaluator
from deap_prune.fitness.objectives import OBJECTIVES, Objective, register_objective
from deap_prune.fitness.recalibrate import recalibrate_bn

__all__ = ["OBJECTIVES", "Counters", "Evaluator", "Objective", "recalibrate_bn", "register_objective"]
