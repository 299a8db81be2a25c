"""DEAP's terms and signatures: individuals, operators, selection, toolbox, algorithms, front."""

from deap_prune.evolution import algorithms as _algorithms  # noqa: F401  registers the algorithms
from deap_prune.evolution.first_population import StartingPoints
from deap_prune.evolution.front import ParetoFront, Solution, best_per_bin
from deap_prune.evolution.generation import Generation
from deap_prune.evolution.individual import BlendIndividual, fitness_class
from deap_prune.evolution.loop import ALGORITHMS, Algorithm, Loop, Variation, eaBlend, register_algorithm
from deap_prune.evolution.operators import (
    bounded,
    cxBlendLayers,
    cxBlendMix,
    cxBlendSBX,
    cxBlendStages,
    cxBlendWidths,
    initBlend,
    initBlendAffine,
    initBlendSingle,
    mutBlend,
    mutBlendCandidates,
    mutBlendFactors,
    mutBlendTrade,
)
from deap_prune.evolution.problem import BlendProblem
from deap_prune.evolution.selection import selBlend, selBlendNSGA3, selBlendParents
from deap_prune.evolution.steady_state import steady_state
from deap_prune.evolution.stops import MaxEvaluations, MaxSeconds, Patience, Target
from deap_prune.evolution.toolbox import make_toolbox

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "BlendIndividual",
    "BlendProblem",
    "Generation",
    "Loop",
    "MaxEvaluations",
    "MaxSeconds",
    "ParetoFront",
    "Patience",
    "Solution",
    "StartingPoints",
    "Target",
    "Variation",
    "best_per_bin",
    "bounded",
    "cxBlendLayers",
    "cxBlendMix",
    "cxBlendSBX",
    "cxBlendStages",
    "cxBlendWidths",
    "eaBlend",
    "fitness_class",
    "initBlend",
    "initBlendAffine",
    "initBlendSingle",
    "make_toolbox",
    "mutBlend",
    "mutBlendCandidates",
    "mutBlendFactors",
    "mutBlendTrade",
    "register_algorithm",
    "selBlend",
    "selBlendNSGA3",
    "selBlendParents",
    "steady_state",
]
