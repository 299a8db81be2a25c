"""A finished run, opened again: a solution, with the evaluator that its values come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deap_prune.blending.budget import Limit
from deap_prune.data.hold_out import hold_out
from deap_prune.errors import RunError
from deap_prune.evolution.checkpoint import Checkpoints
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.fitness.settings import Settings
from deap_prune.options import EndOptions
from deap_prune.search.fingerprint import fingerprint
from deap_prune.search.from_config import OpenedConfig, open_folder
from deap_prune.search.prepare import traced
from deap_prune.structure.space import flops, params


@dataclass(frozen=True, eq=False)
class OpenedSolution:
    """A solution of a run.

    Attributes:
        solution: The solution.
        evaluator: Evaluates as the front was evaluated.
        opened: Config, task and data of the run.
    """

    solution: Solution
    evaluator: Evaluator
    opened: OpenedConfig


def open_solution(
    run: str | Path,
    *,
    max_flops: Limit = None,
    max_params: Limit = None,
    max_latency: Limit = None,
    knee: bool = False,
    number: int | None = None,
    overrides: Sequence[str] = (),
) -> OpenedSolution:
    """A solution of a run whose config names its network and data.

    Args:
        run: The run folder.
        max_flops: The best solution within this limit (a kept share, or an amount such as "150M"); None: no limit.
        max_params: The same for the parameters.
        max_latency: The same for the latency.
        knee: The solution at the front's knee, in the place of a budget.
        number: The solution's place in front.json, in the place of a budget.
        overrides: ``key.sub=value`` each, for the config (of fine-tuning, for example).

    Raises:
        RunError: If the folder holds no front, no such solution, or was run with another model or other data.
        BudgetError: If no solution is that cheap.
    """
    front = ParetoFront.load(run)
    if number is not None and not 0 <= number < len(front):
        raise RunError(f"'{run}' has solutions 0 to {len(front) - 1}; number is {number}")
    limits: dict[str, Any] = {"max_flops": max_flops, "max_params": max_params, "max_latency": max_latency}
    solution: Solution
    if number is not None:
        solution = front[number]
    elif knee:
        solution = front.knee()
    else:
        solution = front.best(**limits)
    opened = open_run(run, overrides)
    options, task = opened.config.search, opened.task
    space, _ = traced(task, options)
    if (flops(space, solution.masks), params(space, solution.masks)) != (solution.flops, solution.params):
        raise RunError(f"front.json in '{run}' was changed: FLOPs or parameters are not those of the masks")
    evaluator = Evaluator(
        task.model,
        space,
        calibration=task.calibration,
        validation=hold_out(task.validation, options.guard)[0],
        **options.evaluator_settings(),
    )
    return OpenedSolution(solution, as_final(evaluator, front, options), opened)


def as_final(evaluator: Evaluator, front: ParetoFront, options: EndOptions) -> Evaluator:
    """An evaluator that evaluates as the front was evaluated: on all images as they are, refined if the front is."""
    how = {"refine": bool(front.settings.get("refine")), "recover": int(front.settings.get("recover") or 0)}
    images = front.settings.get("refine_images") if how["refine"] else None  # a resumed run may have changed the option
    how |= {"refine_images": images or options.refine_images, "refine_rows": Settings.refine_rows}
    return evaluator.with_settings(**how, select=False, augment=False, precision="fp32")


def open_run(run: str | Path, overrides: Sequence[str] = ()) -> OpenedConfig:
    """Network and data of a run that its config names.

    Args:
        run: The run folder.
        overrides: ``key.sub=value`` each, for the config (of fine-tuning, for example).

    Raises:
        RunError: If the run was started from Python and its folder lacks factory or data, or the run had another
            model or other data.
    """
    opened = open_folder(run, overrides)
    checkpoints = Checkpoints(Path(run), fingerprint(opened.task, opened.config.search))
    checkpoints.newest()  # raises an error that names what differs, if weights or data do
    return opened
