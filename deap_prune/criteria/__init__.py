"""How important a filter is. A criterion is a function of the statistics it needs; larger scores stay."""

from deap_prune.criteria import activation, compensation, elimination, gradient, normalisation, random, weight
from deap_prune.criteria.passes.collect import Statistics, collect
from deap_prune.criteria.registry import CRITERIA, STATISTICS, Criterion, register_criterion
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
    "gradient",
    "normalisation",
    "random",
    "register_criterion",
    "score",
    "weight",
]
