"""``search`` and ``resume``: from a trained network to a front and a run folder, and back into a run after a stop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deap_prune.arguments import CountOrZero, checked
from deap_prune.config import Config, dump_config, load_config, search_options
from deap_prune.data.batches import Data, Forward, Loss, is_tensor_pair, resolve_device
from deap_prune.errors import ConfigError, RunError
from deap_prune.evolution.checkpoint import Checkpoints
from deap_prune.evolution.generation import Callback, Generation
from deap_prune.evolution.problem import BlendProblem
from deap_prune.files import run_of, write_text
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.fitness.trial import RefinementCost
from deap_prune.options import SearchOptions, check_removed
from deap_prune.progress import Shown, step
from deap_prune.randomness import random_states, restore_random_states
from deap_prune.search.check_arguments import check_arguments, run_folder
from deap_prune.search.describe import hash_of
from deap_prune.search.evolve import evolve, ray_workers, seeded_toolbox
from deap_prune.search.final_front import Ending, final_front
from deap_prune.search.fingerprint import fingerprint
from deap_prune.search.folder import (
    cache_journal,
    check_folder,
    checkpoint_extra,
    restore_evaluator,
    returns_journal,
    write_history,
    write_result,
    write_versions,
)
from deap_prune.search.from_config import open_folder
from deap_prune.search.guard import Guard
from deap_prune.search.kept import DATA, Keeper, checked_factory
from deap_prune.search.latency_check import check_front
from deap_prune.search.live_state import live_writer
from deap_prune.search.lock import locked
from deap_prune.search.prepare import Prepared, prepare
from deap_prune.search.progress import SearchProgress
from deap_prune.search.result import Result
from deap_prune.search.time_limit import TimeLimit, estimated_refinement, time_limit
from deap_prune.search.warm_start import register_warm_start
from deap_prune.structure.inputs import Inputs
from deap_prune.structure.tracing.trace import ignored_names
from deap_prune.task import Task
from deap_prune.user_modules import import_modules


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
    progress: Shown = True,
    ray: str | None = None,
    config: Config | None = None,
    factory: str | None = None,
    keep_data: bool = False,
    **options: Any,
) -> Result:
    """Search blends of criteria for the best pruned networks.

    Traces the network, scores and clusters the criteria, evolves blends, and writes a run folder if ``out`` is given.
    The global generators of Python, NumPy and torch are seeded for the run and restored after it.

    Args:
        model: A trained network; it comes back unchanged.
        example_inputs: See :func:`deap_prune.trace`.
        calibration: Images for criteria, compensation, BN statistics and refinement.
        validation: Images for the objectives; never the test images.
        out: Run folder; a checkpoint is written there after every generation.
        forward: Function of (model, batch) to (outputs, targets).
        loss: For other tasks than classification: function of (outputs, targets) to the mean over a batch. Criteria on
            the loss and the objective ``loss`` use it; cross-entropy by default.
        callbacks: Called with the :class:`Generation` after each generation; a callback may set ``stop``.
        progress: Show progress; "bar" or "log" choose its form.
        ray: Evaluate on a Ray cluster: its address, or "local"; options of ``dp.distributed.ray_map`` may follow, as in
            "auto,workers=64,num_gpus=0.25". The result is the same, except with the algorithm ``steady_state``.
        config: A whole config (of the command line); its ``search`` section replaces ``options``.
        factory: "module:function" that makes the network without arguments, so that commands can open the run folder;
            without it they need ``--model``. The folder holds the weights.
        keep_data: Store calibration and validation tensors in the run folder, which commands need.
        **options: Fields of :class:`deap_prune.options.SearchOptions`: criteria, allocation, objectives, max_flops,
            population, generations, seed, ...

    Raises:
        PruneError: A subclass that says what is wrong, before anything is written, if the input is bad or ``out``
            holds a run.
    """
    if config is not None and options:
        raise ConfigError(f"config= holds all options; put {', '.join(options)} into its search section")
    if config is None:
        if "ignore" in options:
            options["ignore"] = ignored_names(model, options["ignore"])
        source = None if factory is None else checked_factory(factory, model)
        config = Config(search=search_options(options), model=source)
    folder = None if out is None else run_folder(out)
    if folder is not None:
        check_folder(folder)
    task = Task(model, example_inputs, calibration, validation, forward, loss)
    if keep_data:  # an iterator can be read only once
        with torch.inference_mode(False), torch.random.fork_rng():
            task = task.kept()
    keeper = None if folder is None or config.data is not None else Keeper(folder, task, data=keep_data)
    with nullcontext() if folder is None else locked(folder, new=True):
        return _run(task, config, folder, callbacks, keeper, progress=progress, ray=ray)


@checked
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
    progress: Shown = True,
    ray: str | None = None,
    generations: CountOrZero | None = None,
    **options: Any,
) -> Result:
    """Continue a run from its newest checkpoint, bit for bit as if it had never stopped.

    A finished run with other options of its end (``refine_images=2000``) refines its front anew.

    Args:
        out: The run folder.
        model: The network; may be left out if the run folder has model and data: runs of the command line, and runs
            with ``factory=`` and ``keep_data=True``.
        example_inputs: As for :func:`search`.
        calibration: The same data as before.
        validation: The same data as before.
        forward: As for :func:`search`.
        loss: As for :func:`search`.
        callbacks: As for :func:`search`.
        progress: Show progress; "bar" or "log" choose its form.
        ray: As for :func:`search`.
        generations: A new number of generations, to run longer.
        **options: New values of ``max_seconds``, ``patience``, ``recover``, ``finalists`` and, unless candidates are
            compared as drafts, ``refine`` and ``refine_images``.

    Raises:
        ConfigError: If another option is given.
        RunError: If the folder holds no run, or the run had other settings, another model or other data.
    """
    folder = run_folder(out)
    if not (folder / "config.yaml").is_file():
        raise RunError(f"'{folder}' holds no run (no config.yaml); start one with dp.search(..., out='{folder}')")
    config = load_config(folder)
    import_modules(config.imports)
    changes = options if generations is None else {**options, "generations": generations}
    config = config.model_copy(update={"search": _changed(config.search, changes, folder)})
    if model is None and config.model is not None and (config.data is not None or (folder / DATA).is_file()):
        task = open_folder(folder).task
    elif model is None or example_inputs is None or calibration is None or validation is None:
        raise RunError(
            f"'{folder}' was started from Python: pass model, example_inputs, calibration= and validation= to "
            "dp.resume, as to dp.search; the command 'deap-prune resume' takes --model module:function in their place "
            "if the run had keep_data=True"
        )
    else:
        task = Task(model, example_inputs, calibration, validation, forward, loss)
    keeper = Keeper(folder, task, data=False) if config.data is None else None
    with locked(folder, new=False):
        return _run(task, config, folder, callbacks, keeper, progress=progress, ray=ray)


def _changed(options: SearchOptions, changes: dict[str, Any], folder: Path) -> SearchOptions:
    """The options with changes that leave a run the same run."""
    check_removed(changes)
    for name in changes:
        if name not in options.may_change:
            raise ConfigError(
                f"resume does not change '{name}', only {', '.join(options.may_change)}; a new run begins from this "
                f"front with warm_start='{folder}' (generations=0: without further children)"
            )
    return search_options({**vars(options), **changes}) if changes else options


@torch.inference_mode(False)  # the caller's inference mode would prevent gradients
def _run(
    task: Task,
    config: Config,
    folder: Path | None,
    callbacks: Sequence[Callback],
    keeper: Keeper | None,
    *,
    progress: Shown,
    ray: str | None,
) -> Result:
    """Run from the beginning, or from the newest checkpoint in the folder if there is one."""
    check_arguments(task, callbacks, progress)
    begun, states, threads = time.monotonic(), random_states(), torch.get_num_threads()
    config = _resolved(config)
    step("reading the images", shown=progress and not is_tensor_pair(task.calibration))
    options, task = config.search, task.kept()
    try:
        torch.set_num_threads(options.threads or threads)
        prepared = prepare(task, options, progress=progress)
        problem = BlendProblem(prepared.genome, prepared.evaluator)
        cost = estimated_refinement(prepared.evaluator, options, shown=progress)
        limit = time_limit(options, begun, cost, shown=progress)
        identity = {} if folder is None else fingerprint(task, options, prepared.genome.space)
        parts = (identity, config, folder, prepared, problem, callbacks, keeper)
        state = _evolved(*parts, limit=limit, cost=cost, progress=progress, ray=ray)
        ending = (problem, prepared.evaluator, state, options, folder, limit, progress, _hash_of_task(identity))
        final = final_front(Ending(*ending))
        genome = prepared.genome
        facts = (genome.space, prepared.scores, genome.clusters, genome)
        result = Result(final.front, state.logbook, *facts, final.evaluator, prepared.evaluator)
        if folder is not None:
            write_result(folder, result.front, result.logbook)
        if prepared.table is not None:
            deadline = None if limit is None else limit.deadline
            check_front(result.front, task, genome.space, prepared.table, folder, deadline=deadline, shown=progress)
        return result
    finally:
        restore_random_states(states)
        torch.set_num_threads(threads)


def _evolved(
    identity: dict[str, str],
    config: Config,
    folder: Path | None,
    prepared: Prepared,
    problem: BlendProblem,
    callbacks: Sequence[Callback],
    keeper: Keeper | None,
    *,
    limit: TimeLimit | None,
    cost: RefinementCost | None,
    progress: Shown,
    ray: str | None,
) -> Generation:
    """The last state of the evolution."""
    options, evaluator = config.search, prepared.evaluator
    toolbox = seeded_toolbox(prepared.genome, evaluator, options)
    register_warm_start(toolbox, problem, options, folder)
    hooks, state, returns = list(callbacks), None, None
    if options.guard:
        hooks.append(Guard(evaluator, problem))
    step(f"starting Ray workers ({ray})", shown=progress and ray is not None)
    with ray_workers(ray, evaluator) as workers, SearchProgress(options, evaluator, cost, shown=progress) as bar:
        if workers is not None:
            toolbox.register("map", workers)
        if folder is not None:
            checkpoints = Checkpoints(
                folder,
                identity,
                partial(checkpoint_extra, evaluator),
                cache_journal(folder, evaluator),
            )
            state = _stored(checkpoints, evaluator, problem, options.generations)
            _write_beginning(folder, config, keeper, run_of(folder) or _hash_of_task(identity))
            returns = returns_journal(folder, options, checkpoints.fingerprint)
            watched = live_writer(folder, problem, options.generations)
            hooks += [checkpoints, lambda state: write_history(folder, state.logbook), watched]
        done = state is not None and state.number == options.generations
        step("all generations are done; a larger number (generations=) makes the run longer", shown=done and progress)
        bar.begin(state)
        return evolve(toolbox, problem, evaluator, options, [*hooks, bar], state, limit=limit, journal=returns)


def _stored(
    checkpoints: Checkpoints, evaluator: Evaluator, problem: BlendProblem, generations: int
) -> Generation | None:
    """The state of the newest checkpoint, if there is one."""
    stored = checkpoints.load(problem.individual, lambda extra, lines: restore_evaluator(extra, lines, evaluator))
    if stored is not None and stored.number > generations:
        folder = checkpoints.folder.parent
        raise RunError(f"'{folder}' is at generation {stored.number} already, beyond generations={generations}")
    return stored


def _hash_of_task(identity: dict[str, str]) -> str:
    """Hash of what a run depends on, apart from versions."""
    return hash_of({name: text for name, text in identity.items() if name != "environment"})


def _write_beginning(folder: Path, config: Config, keeper: Keeper | None, run: str) -> None:
    """Write what a run folder holds before the first generation; with the config it can be resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    if keeper is not None:
        keeper.write(new=not (folder / "config.yaml").exists())
    write_text(folder / "config.yaml", dump_config(config, run))
    write_versions(folder)


def _resolved(config: Config) -> Config:
    """The config with device and threads spelled out: results depend on them."""
    options = config.search
    threads = options.threads or torch.get_num_threads()
    resolved = replace(options, device=str(resolve_device(options.device)), threads=threads)
    return config.model_copy(update={"search": resolved})
