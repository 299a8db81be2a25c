"""Prune the filters of CNNs by blending pruning criteria, evolved with DEAP.

The trained network is looked at once and turned into numbers; evolution works on those numbers; masks are the only way
back to the network. ``trace`` says what can be pruned, ``score`` how important each filter is by each criterion,
``cluster`` which criteria rank filters alike, ``Genome`` decodes individuals to masks, ``Evaluator`` is the fitness of
masks, ``make_toolbox`` puts them into DEAP. ``search`` does all of it in one call. Operators are in ``dp.operators``,
algorithms in ``dp.algorithms``, Ray workers in ``dp.distributed``.

The examples in the docstrings continue this one:
    >>> import torch
    >>> from torch import nn
    >>> import deap_prune as dp
    >>> body = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten())
    >>> model = nn.Sequential(*body, nn.Linear(96, 5)).eval()
    >>> images, labels = torch.randn(40, 3, 8, 8), torch.randint(5, (40,))  # yours, and a trained network
    >>> data = {"calibration": (images[:20], labels[:20]), "validation": (images[20:], labels[20:])}
    >>> space = dp.trace(model, images)
    >>> scores = dp.score(model, space, data["calibration"], criteria=("l1", "l2", "taylor_weight"))
    >>> clusters = dp.cluster(scores, n_clusters=2)
    >>> genome = dp.Genome(space, scores, clusters, allocation="uniform", max_flops=0.5)
    >>> evaluate = dp.Evaluator(model, space, **data)
    >>> masks = genome.decode(genome.single("l2"))
    >>> small = evaluate.slim(masks)
    >>> sum(p.numel() for p in small.parameters()) == dp.params(space, masks) < space.params
    True
"""

from importlib.metadata import version as _version

from deap_prune import algorithms, errors, operators
from deap_prune.blending import ALLOCATIONS as _ALLOCATIONS
from deap_prune.blending import CriteriaClusters, Genome, cluster, register_allocation
from deap_prune.costs import latency_table, register_cost
from deap_prune.criteria import CRITERIA as _CRITERIA
from deap_prune.criteria import ScoreTable, register_criterion, score
from deap_prune.errors import PruneError
from deap_prune.evolution import ParetoFront, Solution, make_toolbox
from deap_prune.evolution import workers as distributed
from deap_prune.export import export, load
from deap_prune.fitness import OBJECTIVES as _OBJECTIVES
from deap_prune.fitness import Evaluator, register_objective
from deap_prune.interop import BlendedImportance, optuna_objective
from deap_prune.reconstruction import refine
from deap_prune.reconstruction.recovery import recover
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
from deap_prune.training import Recipe, accuracy, finetune

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
    "BlendedImportance",
    "CriteriaClusters",
    "Evaluator",
    "FilterGroup",
    "Genome",
    "LayerSpec",
    "Masks",
    "ParetoFront",
    "PruneError",
    "PruningSpace",
    "Recipe",
    "Result",
    "ScoreTable",
    "Solution",
    "accuracy",
    "algorithms",
    "allocations",
    "cluster",
    "criteria",
    "distributed",
    "errors",
    "export",
    "finetune",
    "flops",
    "latency_table",
    "load",
    "make_toolbox",
    "masked",
    "objectives",
    "operators",
    "optuna_objective",
    "params",
    "recover",
    "refine",
    "register_allocation",
    "register_cost",
    "register_criterion",
    "register_layer",
    "register_objective",
    "report",
    "resume",
    "score",
    "search",
    "slim",
    "trace",
]
