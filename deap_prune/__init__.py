"""Prune the filters of CNNs by blending pruning criteria, evolved with DEAP.

The trained network is looked at once and turned into numbers; evolution works on those numbers; masks are the only way
back to the network. ``trace`` finds what can be pruned, ``score`` how important each filter is by each criterion,
``cluster`` which criteria say the same, ``Genome`` turns individuals into masks, ``Evaluator`` judges masks,
``make_toolbox`` puts it into DEAP. ``search`` does all of it in one call.
"""

from importlib.metadata import version as _version

from deap_prune import errors
from deap_prune.blending import ALLOCATIONS as _ALLOCATIONS
from deap_prune.blending import CriteriaClusters, Genome, Layout, Stability, cluster, register_allocation, stability
from deap_prune.criteria import CRITERIA as _CRITERIA
from deap_prune.criteria import ScoreTable, register_criterion, score
from deap_prune.errors import PruneError
from deap_prune.evolution import (
    BlendIndividual,
    BlendProblem,
    Generation,
    ParetoFront,
    Solution,
    cxBlendLayers,
    eaBlend,
    fitness_class,
    initBlend,
    make_toolbox,
    mutBlend,
    selBlend,
)
from deap_prune.export import Exported, export, rebuild
from deap_prune.finetune import Recipe, accuracy, finetune
from deap_prune.fitness import OBJECTIVES as _OBJECTIVES
from deap_prune.fitness import Evaluator, register_objective
from deap_prune.interop import BlendedImportance
from deap_prune.report import report
from deap_prune.search import Result, resume, search
from deap_prune.structure import (
    FilterGroup,
    LayerSpec,
    Masks,
    PruningSpace,
    flops,
    masked,
    params,
    register_layer,
    slim,
    trace,
)

__version__ = _version("deap-prune")


def criteria() -> dict[str, str]:
    """Names of the criteria, each with a line and its reference."""
    return _CRITERIA.describe()


def objectives() -> dict[str, str]:
    """Names of the objectives, each with a line."""
    return _OBJECTIVES.describe()


def allocations() -> dict[str, str]:
    """Names of the allocations, each with a line."""
    return _ALLOCATIONS.describe()


__all__ = [
    "BlendIndividual",
    "BlendProblem",
    "BlendedImportance",
    "CriteriaClusters",
    "Evaluator",
    "Exported",
    "FilterGroup",
    "Generation",
    "Genome",
    "LayerSpec",
    "Layout",
    "Masks",
    "ParetoFront",
    "PruneError",
    "PruningSpace",
    "Recipe",
    "Result",
    "ScoreTable",
    "Solution",
    "Stability",
    "accuracy",
    "allocations",
    "cluster",
    "criteria",
    "cxBlendLayers",
    "eaBlend",
    "errors",
    "export",
    "finetune",
    "fitness_class",
    "flops",
    "initBlend",
    "make_toolbox",
    "masked",
    "mutBlend",
    "objectives",
    "params",
    "rebuild",
    "register_allocation",
    "register_criterion",
    "register_layer",
    "register_objective",
    "report",
    "resume",
    "score",
    "search",
    "selBlend",
    "slim",
    "stability",
    "trace",
]
