"""How important a filter is: a criterion is a function of statistics; filters with larger scores are kept."""

from deap_prune.criteria import activation, compensation, elimination, gating, gradient, normalisation, random, weight
from deap_prune.criteria.passes.collect import Statistics, collect
from deap_prune.criteria.passes.statistics import STATISTICS
from deap_prune.criteria.registry import CRITERIA, Criterion, register_criterion
from deap_prune.criteria.table import ScoreTable, score

__all__ = [
    "CRITERIA",
    "STATISTICS",
    "Criterion",
    "ScoreTable",
    "Statistics",
    "activation",
    "collect",
    "compensation",
    "elimination",
    "gating",
    "gradient",
    "normalisation",
    "random",
    "register_criterion",
    "score",
    "weight",
]
