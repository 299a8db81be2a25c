"""The report of a run: one HTML page, and its pictures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deap_prune.arguments import CountOrZero, checked
from deap_prune.progress import Shown

if TYPE_CHECKING:
    from deap_prune.search import Result


@checked
def report(
    run: str | Path,
    *,
    result: Result | None = None,
    singles: CountOrZero = 6,
    network: bool = True,
    beside: Sequence[str | Path] = (),
    progress: Shown = False,
    overrides: Sequence[str] = (),
) -> Path:
    """Write ``report.html`` and the folder ``report`` (each picture as PNG and SVG) into a run folder.

    The page is one file that loads nothing from the internet. Everything about criteria (agreement, clusters, blends,
    single criteria, baselines) is computed from the network: that of ``result``, or that of the model and data in the
    run's config. If neither is available, the page gives the reason and shows the rest.

    Args:
        run: The run folder.
        result: Result of ``dp.search`` or ``dp.resume``, for a run that was started from Python.
        singles: Number of budgets at which every single criterion, random filters and the mean rank of all criteria
            (Borda) are evaluated, with uniform widths; 0 omits them.
        network: If False, only read the folder; the factory in its config is not imported.
        beside: Folders of other runs of the same network, such as a baseline; their fronts share the axes, and a table
            compares the runs.
        progress: Show progress; "bar" or "log" choose its form.
        overrides: ``key.sub=value`` each, for the run's config, such as ``model.factory=module:function``.

    Returns:
        Path of the page.

    Raises:
        RunError: If the folder contains no front, ``singles`` is negative, or a run in ``beside`` has another network
            or other objectives.
    """
    from deap_prune.report.facts import gather
    from deap_prune.report.page import render
    from deap_prune.report.pictures import draw

    folder = Path(run)
    facts = gather(
        folder,
        result=result,
        singles=singles,
        network=network,
        progress=progress,
        beside=beside,
        overrides=overrides,
    )
    draw(facts, folder / "report")
    return render(facts, folder / "report.html")
