"""The method's two stages, on NumPy arrays alone: clusters of criteria, and the genome of blends."""

from deap_prune.blending.allocation import ALLOCATIONS, register_allocation
from deap_prune.blending.baselines import GENOMES, AffineGenome
from deap_prune.blending.budget import Budget
from deap_prune.blending.clusters import CriteriaClusters, cluster
from deap_prune.blending.genome import Genome
from deap_prune.blending.layout import Layout
from deap_prune.blending.stability import Stability, stability

__all__ = [
    "ALLOCATIONS",
    "GENOMES",
    "AffineGenome",
    "Budget",
    "CriteriaClusters",
    "Genome",
    "Layout",
    "Stability",
    "cluster",
    "register_allocation",
    "stability",
]
