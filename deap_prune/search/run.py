"""The one-call door: from a trained network to a front and a run folder, and back into it after a stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deap import tools
from torch import nn

from deap_prune.blending.baselines import GENOMES, AnyGenome
from deap_prune.blending.budget import check_budget
from deap_prune.blending.clusters import CriteriaClusters, cluster
from deap_prune.config import Config, SearchConfig, dump_config, load_config, validated
from deap_prune.criteria.table import ScoreTable, score
from deap_prune.data.batches import Data, Forward, Loss, cross_entropy, iterable, resolve_device
from deap_prune.errors import ConfigError, RunError
from deap_prune.evolution.checkpoint import Checkpoints
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.evolution.generation import Callback, Generation
from deap_prune.evolution.loop import ALGORITHMS
from deap_prune.evolution.problem import BlendProblem
from deap_prune.files import write_text
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.progress import SearchBar
from deap_prune.randomness import random_states, restore_random_states
from deap_prune.search.finalists import Guard, final_front, hold_out
from deap_prune.search.folder import (
    cache_journal,
    check_folder,
    fingerprint,
    unpack_cache,
    write_history,
    write_result,
    write_versions,
)
from deap_prune.search.loop import evolve, option_toolbox, ray_workers
from deap_prune.search.warm_start import begin_warm
from deap_prune.search.workspace import Workspace
from deap_prune.structure.inputs import Inputs
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.trace import ignored_names, trace


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a search gives.

    Attributes:
        front: The Pareto front (one solution with a single objective).
        logbook: DEAP's logbook, one record a generation.
        space: What could be pruned.
        scores: Scores of all filters by all criteria.
        clusters: The criteria clusters.
        evaluator: Judges as the front was judged (refined, on all images): its networks are those of the figures.
        fitness: The evaluator of the search; its cache holds every candidate (with ``redraw``: of the last generation).
        genome: From individuals to masks.
    """

    front: ParetoFront
    logbook: tools.Logbook
    space: PruningSpace
    scores: ScoreTable
    clusters: CriteriaClusters
    evaluator: Evaluator
    fitness: Evaluator
    genome: AnyGenome

    def __repr__(self) -> str:
        return f"{self.front}\n({self.evaluations} networks judged; .front, .best, .slim(solution), .logbook, .space)"

    @property
    def best(self) -> Solution:
        """The best by the first objective (with one objective: the best inside the budget)."""
        return self.front.best()

    @property
    def evaluations(self) -> int:
        """Networks that were built and judged."""
        return self.fitness.counters.candidates

    def slim(self, solution: Solution | Masks | int) -> nn.Module:
        """The network of a solution (its place in the front, or masks), exactly as its figures were judged."""
        if isinstance(solution, Masks):
            return self.evaluator.slim(solution)
        return self.evaluator.slim((solution if isinstance(solution, Solution) else self.front[solution]).masks)


def search(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    calibration: Data,
    validation: Data,
    out: str | Path | None = None,
    forward: Forward | None = None,
    loss: Loss | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    ray: str | None = None,
    config: Config | None = None,
    **options: Any,
) -> Result:
    """Search blends of criteria for the best pruned networks.

    Traces the network, scores and clusters the criteria, evolves blends, and writes a run folder if ``out`` is given.
    Python's, NumPy's and torch's global generators are seeded for the run and set back after it.

    Args:
        model: A trained network; it comes back unchanged.
        example_inputs: See :func:`deap_prune.trace`.
        calibration: For criteria and BN statistics.
        validation: For the objectives; never the test images.
        out: Run folder; checkpoints go there after every generation.
        forward: Function of (model, batch) to (outputs, targets).
        loss: For other tasks than classification: function of (outputs, targets) to the mean over a batch. Criteria on
            the loss and the objective ``loss`` use it; cross-entropy if left out.
        callbacks: Called with the :class:`Generation` after each; one may set ``stop``.
        progress: Show bars.
        ray: Judge on a Ray cluster: its address, or "local"; the result is the same (see ``dp.distributed``).
        config: A whole config (the command line's); its ``search`` section takes the place of ``options``.
        **options: Fields of ``SearchConfig``: criteria, n_clusters, allocation, objectives, max_flops, population,
            generations, seed, ...

    Raises:
        PruneError: Of the kind that fits, before anything is written, if the input is bad or ``out`` holds a run.
    """
    if config is not None and options:
        raise ConfigError(f"config= holds all options; put {', '.join(options)} into its search section")
    if config is None:
        if "ignore" in options:
            options["ignore"] = ignored_names(model, options["ignore"])
        config = Config(search=validated(SearchConfig, options))
    folder = None if out is None else Path(out)
    if folder is not None:
        check_folder(folder)
    task = _Task(model, example_inputs, calibration, validation, forward, loss)
    return _run(task, config, folder, callbacks, progress, ray)


def resume(
    out: str | Path,
    model: nn.Module | None = None,
    example_inputs: Inputs | None = None,
    *,
    calibration: Data | None = None,
    validation: Data | None = None,
    forward: Forward | None = None,
    loss: Loss | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    ray: str | None = None,
    generations: int | None = None,
) -> Result:
    """Go on with a run, from its newest checkpoint, bit for bit as if it had never stopped.

    Args:
        out: The run folder.
        model: The network; may be left out if the run's config.yaml names model and data (command-line runs).
        example_inputs: As for :func:`search`.
        calibration: The same data.
        validation: The same data.
        forward: As for :func:`search`.
        loss: As for :func:`search`.
        callbacks: As for :func:`search`.
        progress: Show bars.
        ray: As for :func:`search`.
        generations: A new last generation, to run longer.

    Raises:
        RunError: If the folder holds no run, or the run had other settings, another model or other data.
    """
    folder = Path(out)
    if not (folder / "config.yaml").is_file():
        raise RunError(f"'{folder}' holds no run (no config.yaml); start one with dp.search(..., out='{folder}')")
    config = load_config(folder)
    if generations is not None:
        longer = validated(SearchConfig, {**config.search.model_dump(), "generations": generations})
        config = config.model_copy(update={"search": longer})
    if model is None and config.model is not None and config.data is not None:
        work = Workspace.open(config)
        model, example_inputs, calibration, validation = work.model, work.example, work.calibration, work.validation
    if model is None or example_inputs is None or calibration is None or validation is None:
        raise RunError(
            f"'{folder}' was started from Python: pass model, example_inputs, calibration= and validation= "
            "as to dp.search"
        )
    task = _Task(model, example_inputs, calibration, validation, forward, loss)
    return _run(task, config, folder, callbacks, progress, ray)


@dataclass(frozen=True, eq=False)
class _Task:
    """What is pruned, and for what."""

    model: nn.Module
    example_inputs: Inputs
    calibration: Data
    validation: Data
    forward: Forward | None
    loss: Loss | None


@torch.inference_mode(False)  # a caller's would let no gradient through
def _run(
    task: _Task, config: Config, folder: Path | None, callbacks: Sequence[Callback], progress: bool, ray: str | None
) -> Result:
    """Both doors lead here: with a checkpoint in the folder the run goes on from it."""
    before, threads = random_states(), torch.get_num_threads()
    config = _resolved(config)
    options = config.search
    try:
        torch.set_num_threads(options.threads or threads)
        calibration, validation = _keep(task.calibration, "calibration"), _keep(task.validation, "validation")
        task = replace(task, calibration=calibration, validation=validation)
        genome, evaluator, scores = prepare(**vars(task), options=options, progress=progress)
        problem, toolbox = BlendProblem(genome, evaluator), option_toolbox(genome, evaluator, options)
        begin_warm(toolbox, problem, options, folder)
        hooks, state = list(callbacks), None
        if options.guard:
            hooks.append(Guard(evaluator, problem, options.reference))
        with ray_workers(ray, evaluator) as workers, SearchBar(options.generations, evaluator, shown=progress) as bar:
            if workers is not None:
                toolbox.register("map", workers)
            if folder is not None:
                identity = fingerprint(task.model, options, task.calibration, task.validation)
                checkpoints = Checkpoints(
                    folder, identity, partial(_counted, evaluator), cache_journal(folder, evaluator)
                )
                state = _open_folder(folder, checkpoints, config, evaluator, problem)
                hooks += [checkpoints, lambda state: write_history(folder, state.logbook)]
            state = evolve(toolbox, problem, evaluator, options, [*hooks, bar], state)
        front, judge = final_front(problem, evaluator, state, options, progress=progress)
        result = Result(front, state.logbook, genome.space, scores, genome.clusters, judge, evaluator, genome)
        if folder is not None:
            write_result(folder, result.front, result.logbook)
        return result
    finally:
        restore_random_states(before)
        torch.set_num_threads(threads)


def _counted(evaluator: Evaluator) -> dict[str, Any]:
    """What a checkpoint keeps of the evaluator, beside its cache; a latency would differ when it is measured again."""
    dense = evaluator.dense["values"]
    return {"candidates": evaluator.counters.candidates, "generation": evaluator.generation, "dense": dense}


def _open_folder(
    folder: Path, checkpoints: Checkpoints, config: Config, evaluator: Evaluator, problem: BlendProblem
) -> Generation | None:
    """Where the run stands, if it has begun; from here on the folder exists, with the resolved config in it."""
    stored = checkpoints.load(problem.individual, lambda extra, lines: unpack_cache(extra, lines, evaluator))
    wanted = config.search.generations
    if stored is not None and stored.number > wanted:
        raise RunError(f"'{folder}' is at generation {stored.number} already, beyond generations={wanted}")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", dump_config(config))
    write_versions(folder)
    return stored


def _resolved(config: Config) -> Config:
    """With the device and the number of threads spelled out: sums in another order round differently."""
    options = config.search
    found = {"device": str(resolve_device(options.device)), "threads": options.threads or torch.get_num_threads()}
    if options.budgets:
        each = -(-(options.generations + 1) // len(options.budgets))
        found["generations_per_budget"] = options.generations_per_budget or each
    return config.model_copy(update={"search": options.model_copy(update=found)})


def prepare(
    model: nn.Module,
    example_inputs: Inputs,
    calibration: Data,
    validation: Data,
    options: SearchConfig,
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    progress: bool = False,
) -> tuple[AnyGenome, Evaluator, ScoreTable]:
    """Everything that a search stands on: space, scores, clusters, genome, evaluator; bad input ends here.

    Raises:
        PruneError: Of the kind that fits.
    """
    options.check()
    max_flops = (min(options.budgets), max(options.budgets)) if options.budgets else options.max_flops
    check_budget(max_flops, 0.0)
    space = trace(model, example_inputs, ignore=options.ignore)
    check_budget(max_flops, space.min_flops / space.flops)
    validation, guard = hold_out(validation, options.guard)
    data = {"calibration": calibration, "validation": validation, "guard": guard}
    evaluator = Evaluator(model, space, **data, forward=forward, loss=loss, **options.fitness())
    scores = score(
        evaluator.network,
        space,
        calibration,
        criteria=options.criteria,
        reduction=options.reduction,
        forward=forward,
        loss=loss or cross_entropy,
        labels=options.labels,
        seed=options.seed,
        progress=progress,
    )
    genome = GENOMES[ALGORITHMS[options.algorithm].genome](
        space,
        scores,
        cluster(scores, n_clusters=options.n_clusters, method=options.clustering, seed=options.seed),
        allocation=options.allocation,
        max_flops=max_flops,
        normaliser=options.normaliser,
        round_to=options.round_to,
        min_keep=options.min_keep,
        candidates=options.candidates,
    )
    return genome, evaluator, scores


def _keep(data: Data, name: str) -> Data:
    """An iterator can be read once only: keep its batches."""
    return data if isinstance(data, (tuple, list)) else list(iterable(data, name))
