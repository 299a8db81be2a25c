"""A solution of a finished run, with the evaluator that judged it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deap_prune.config import load_config
from deap_prune.errors import RunError
from deap_prune.evolution.checkpoint import Checkpoints
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.search.finalists import hold_out
from deap_prune.search.folder import fingerprint
from deap_prune.search.workspace import Workspace
from deap_prune.structure.tracing.trace import trace


def recall(
    run: str | Path, *, max_flops: float | None = None, number: int | None = None, overrides: Sequence[str] = ()
) -> tuple[Evaluator, Solution, Workspace]:
    """Evaluator, solution and workspace of a run that its config describes.

    Args:
        run: The run folder.
        max_flops: The best solution with at most this kept share of the FLOPs; the best at all if left out.
        number: The solution at this place of front.json instead.
        overrides: ``key.sub=value`` each, for the config (of fine-tuning, say).

    Raises:
        RunError: If the folder holds no front, no such solution, or was run with another model or other data.
        BudgetError: If no solution is that cheap.
    """
    front = ParetoFront.load(run)
    if number is not None and not 0 <= number < len(front):
        raise RunError(f"'{run}' has solutions 0 to {len(front) - 1}; number is {number}")
    solution: Solution = front[number] if number is not None else front.best(max_flops=max_flops)
    work = reopen(run, overrides)
    config = work.config
    evaluator = Evaluator(
        work.model,
        trace(work.model, work.example, ignore=config.search.ignore),
        calibration=work.calibration,
        validation=hold_out(work.validation, config.search.guard)[0],
        **config.search.fitness(),
    )
    return evaluator.in_full(refine=bool(front.settings.get("refine"))), solution, work


def reopen(run: str | Path, overrides: Sequence[str] = ()) -> Workspace:
    """Model and data of a run that its config describes.

    Args:
        run: The run folder.
        overrides: ``key.sub=value`` each, for the config (of fine-tuning, say).

    Raises:
        RunError: If the run was started from Python, or with another model or other data.
    """
    config = load_config(run, overrides)
    if config.model is None or config.data is None:
        raise RunError(
            f"'{run}' was started from Python, so its config.yaml names no model; there, use result.slim(solution), or "
            f"front = dp.ParetoFront.load('{run}') and dp.Evaluator(model, space, calibration=..., validation=..., "
            "objectives=tuple(front.weights), **front.settings).slim(front.best(max_flops=...).masks)"
        )
    work = Workspace.open(config)
    identity = fingerprint(work.model, config.search, work.calibration, work.validation)
    Checkpoints(Path(run), identity).newest()  # the same weights and data, or an error that names what differs
    return work
