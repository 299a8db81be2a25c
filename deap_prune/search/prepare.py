"""What a search starts from: space, scores, clusters, genome and fitness."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor

from deap_prune.blending.baselines import GENOMES, AnyGenome
from deap_prune.blending.budget import check_budgets, check_limits
from deap_prune.blending.clusters import cluster
from deap_prune.costs.latency import LatencyTable
from deap_prune.criteria.table import ScoreTable, score
from deap_prune.data.batches import Data, cross_entropy, is_tensor_pair
from deap_prune.data.hold_out import hold_out
from deap_prune.errors import PruneWarning
from deap_prune.evolution.loop import ALGORITHMS
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.options import SearchOptions
from deap_prune.progress import Shown, step
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.trace import trace
from deap_prune.task import Task


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task, ready to be searched.

    Attributes:
        genome: Space, clusters, and the way from individuals to masks.
        evaluator: The fitness that compares candidates.
        scores: Scores of all filters by all criteria.
        table: Latency table of the options, if there is one.
    """

    genome: AnyGenome
    evaluator: Evaluator
    scores: ScoreTable
    table: LatencyTable | None = None


def traced(task: Task, options: SearchOptions) -> tuple[PruningSpace, LatencyTable | None]:
    """The network's space, with the latencies of the options' table if there is one, and the table.

    Raises:
        ModelError: If the network can't be traced.
        ConfigError: If the table can't be read, or was measured on another network.
    """
    space = trace(task.model, task.example_inputs, ignore=options.ignore)
    if options.latency_table is None:
        return space, None
    table = LatencyTable.load(options.latency_table)
    return table.on(space), table


def _warn_of_other_shapes(task: Task) -> None:
    """Warn if the example inputs are larger or smaller than the images: FLOPs are those of the example inputs."""
    example, images = task.example_inputs, task.calibration
    if isinstance(example, Tensor) and is_tensor_pair(images) and example.shape[1:] != images[0].shape[1:]:
        shapes = (" x ".join(map(str, x.shape[1:])) for x in (example, images[0]))
        text = "the example inputs are {}, the calibration images {}: FLOPs are those of the example inputs"
        warnings.warn(text.format(*shapes), PruneWarning, stacklevel=2)


def prepare(task: Task, options: SearchOptions, *, progress: Shown = False) -> Prepared:
    """Trace, score, cluster, and make the genome and the fitness. Bad input raises its error here.

    Raises:
        PruneError: A subclass that says what is wrong.
    """
    options.check()
    check_limits(options.limits)
    size = sum(parameter.numel() for parameter in task.model.parameters())
    step(f"tracing {type(task.model).__name__}: {size:,} parameters", shown=progress)
    space, table = traced(task, options)
    check_budgets(space, options.limits)
    options.warn_if_degenerate()
    _warn_of_other_shapes(task)
    validation, guard = hold_out(task.validation, options.guard)
    evaluator = Evaluator(
        task.model,
        space,
        calibration=task.calibration,
        validation=validation,
        guard=guard,
        **task.functions,
        **options.evaluator_settings(),
    )
    what = f"{int(space.sizes.sum()):,} filters in {len(space.groups)} groups by {len(options.criteria)} criteria"
    step(f"scoring {what}, on {_size(task.calibration)}", shown=progress)
    scores = score(
        evaluator.network,
        space,
        task.calibration,
        criteria=options.criteria,
        forward=task.forward,
        loss=task.loss or cross_entropy,
        labels=options.labels,
        seed=options.seed,
        progress=progress,
    )
    genome = GENOMES[ALGORITHMS[options.algorithm].genome](
        space,
        scores,
        cluster(scores, n_clusters=options.n_clusters, seed=options.seed),
        allocation=options.allocation,
        max_flops=options.genome_budget,
        max_params=options.max_params,
        max_latency=options.max_latency,
        round_to=options.round_to,
        min_keep=options.min_keep,
    )
    return Prepared(genome, evaluator, scores, table)


def _size(data: Data) -> str:
    """The size of data that a task keeps: tensors, or a list of batches."""
    return f"{len(data[0]):,} images" if is_tensor_pair(data) else f"{len(list(data)):,} batches"
