"""The report of a run: one page to look at, and its pictures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deap_prune.errors import RunError

if TYPE_CHECKING:
    from deap_prune.search import Result


def report(
    run: str | Path,
    *,
    result: Result | None = None,
    singles: int = 6,
    network: bool = True,
    beside: Sequence[str | Path] = (),
    progress: bool = False,
) -> Path:
    """Write ``report.html`` and the folder ``report`` (each picture as PNG and SVG) into a run folder.

    The page is one file that asks nothing of any network. What concerns the criteria (their agreement and clusters, the
    blends that won, single criteria and baselines beside the front) is computed anew from the network: of ``result``,
    or of the model and data that the run's config names. Without either, the page says so and shows the rest.

    Args:
        run: The run folder.
        result: What ``dp.search`` or ``dp.resume`` gave, for a run that was started from Python.
        singles: At how many budgets every single criterion, random filters and the mean rank of all criteria (Borda)
            are judged, with uniform widths; 0 leaves them out.
        network: False: only read the folder; its config's factory is not imported.
        beside: Other runs of the same network, such as a baseline's; their fronts are drawn on the same axes.
        progress: Show a bar.

    Returns:
        Path of the page.

    Raises:
        RunError: If the folder holds no front, ``singles`` is negative, a run beside it is of another network or
            other objectives, or plotly is missing (extra ``report``).
    """
    from deap_prune.report.facts import gather
    from deap_prune.report.page import plotly_source, render
    from deap_prune.report.pictures import draw

    folder = Path(run)
    if singles < 0:
        raise RunError(f"singles is {singles}; give the number of budgets, or 0 for none")
    source = plotly_source()
    facts = gather(folder, result=result, singles=singles, network=network, progress=progress, beside=beside)
    draw(facts, folder / "report")
    return render(facts, source, folder / "report.html")
