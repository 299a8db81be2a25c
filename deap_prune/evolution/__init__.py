"""DEAP's terms and signatures: individuals, operators, toolbox, loop, front."""

from deap_prune.evolution.algorithms import Generation, eaBlend
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.evolution.individual import BlendIndividual, fitness_class
from deap_prune.evolution.operators import cxBlendLayers, initBlend, mutBlend, selBlend
from deap_prune.evolution.toolbox import BlendProblem, make_toolbox

__all__ = [
    "BlendIndividual",
    "BlendProblem",
    "Generation",
    "ParetoFront",
    "Solution",
    "cxBlendLayers",
    "eaBlend",
    "fitness_class",
    "initBlend",
    "make_toolbox",
    "mutBlend",
    "selBlend",
]
