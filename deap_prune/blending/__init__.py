"""The method's two stages, on numbers alone: clusters of criteria, and the genome of blends."""

from deap_prune.blending.allocation import ALLOCATIONS, register_allocation
from deap_prune.blending.clusters import CriteriaClusters, cluster
from deap_prune.blending.genome import Genome, Layout
from deap_prune.blending.stability import Stability, stability

__all__ = [
    "ALLOCATIONS",
    "CriteriaClusters",
    "Genome",
    "Layout",
    "Stability",
    "cluster",
    "register_allocation",
    "stability",
]
