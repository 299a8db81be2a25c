"""What a mask saves: multiply-adds, parameters, memory, latency; each a function of the kept counts."""

from deap_prune.costs import flops_and_params as _flops_and_params  # noqa: F401 - registers the costs
from deap_prune.costs.compare import LatencyCheck, check_latency
from deap_prune.costs.latency import LatencyTable
from deap_prune.costs.measure import latency_table
from deap_prune.costs.registry import COSTS, BoundCost, Cost, CostFunction, bound_cost, limit_of, register_cost

__all__ = [
    "COSTS",
    "BoundCost",
    "Cost",
    "CostFunction",
    "LatencyCheck",
    "LatencyTable",
    "bound_cost",
    "check_latency",
    "latency_table",
    "limit_of",
    "register_cost",
]
