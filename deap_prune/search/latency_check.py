"""The end of a search with a latency table: the front's networks timed, beside the latencies that were predicted."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from deap_prune.costs import LatencyCheck, LatencyTable, check_latency
from deap_prune.costs.latency import ELSEWHERE
from deap_prune.costs.runtimes import installed_runtimes
from deap_prune.evolution.front import ParetoFront
from deap_prune.files import write_text
from deap_prune.progress import Shown, step
from deap_prune.structure.inputs import first_line
from deap_prune.structure.slim import slim
from deap_prune.structure.space import PruningSpace
from deap_prune.task import Task

FILE = "latency.json"


def check_front(
    front: ParetoFront,
    task: Task,
    space: PruningSpace,
    table: LatencyTable,
    folder: Path | None,
    *,
    deadline: float | None,
    shown: Shown,
) -> LatencyCheck | None:
    """Time the front's networks in the table's setting, with their speed-ups on all installed runtimes.

    Args:
        front: The front of the search.
        task: The task, with the dense network.
        space: Its pruning space.
        table: The latency table of the search.
        folder: The run folder, for latency.json; None: nothing is written.
        deadline: ``time.monotonic()`` after which nothing is timed; None: no limit.
        shown: Print the comparison.

    Returns:
        The comparison, in the front's order; None if there is no network, the table is of another device, it is too
        late, or a runtime fails (with a warning: a finished search does not depend on it).
    """
    if folder is not None:
        (folder / FILE).unlink(missing_ok=True)  # of an earlier end of the run
    late = deadline is not None and time.monotonic() > deadline
    if late or table.about["device"] == ELSEWHERE or not len(front):
        return None
    masks = [solution.masks for solution in front]
    try:
        networks = [slim(task.model, space, one) for one in masks]
        subject = (networks, masks, table, task.model, space, task.example_inputs)
        check = check_latency(*subject, runtimes=installed_runtimes(), repeats=9)
    except Exception as error:  # a runtime may raise anything
        warnings.warn(f"the latencies of the front were not measured: {first_line(error)}", stacklevel=2)
        return None
    step(str(check), shown=shown)
    if folder is not None:
        write_text(folder / FILE, check.to_json())
    return check
