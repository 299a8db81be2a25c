"""How important a filter is. A criterion is a function of the statistics it needs; larger scores stay."""

from deap_prune.criteria import activation, gradient, normalisation, reconstruction, reference, weight
from deap_prune.criteria.registry import CRITERIA, STATISTICS, Criterion, register_criterion
from deap_prune.criteria.statistics import Statistics, collect
from deap_prune.criteria.table import ScoreTable, score

__all__ = [
    "CRITERIA",
    "STATISTICS",
    "Criterion",
    "ScoreTable",
    "Statistics",
    "activation",
    "collect",
    "gradient",
    "normalisation",
    "reconstruction",
    "reference",
    "register_criterion",
    "score",
    "weight",
]
