"""What follows a search that is to give a smaller network: the export and the report."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deap_prune.cli.base import say

if TYPE_CHECKING:
    from deap_prune.search import Result
    from deap_prune.search.from_config import OpenedConfig


def finish(result: Result, opened: OpenedConfig, folder: Path, *, progress: bool) -> None:
    """Export the best network to ``slim`` in the run folder, and write the report.

    Args:
        result: Result of the search.
        opened: Network and images of the run.
        folder: The run folder.
        progress: Show progress.
    """
    from deap_prune.report import report

    _write_slim(result, opened, folder / "slim")
    say(f"report: {report(folder, result=result, singles=2, progress=progress)}")


def _write_slim(result: Result, opened: OpenedConfig, folder: Path) -> None:
    """Export the best network in all formats whose packages are there, and print its accuracy beside the dense one."""
    from deap_prune.export import export
    from deap_prune.training import accuracy

    formats = ["safetensors", "torch"]
    formats += ["onnx"] * all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    task, config = opened.task, opened.config
    small = result.slim(result.best)
    written = export(
        small,
        opened.splits.validation[0][:32],
        folder,
        formats=formats,
        dense=task.model,
        masks=result.best.masks,
        model=config.model,
        ignore=config.search.ignore,
    )
    say(str(written))
    if config.search.labels:
        sets: Sequence[tuple[str, Any]] = (("validation", opened.splits.validation), ("test", opened.splits.test))
        for name, images in sets:
            if images is not None:
                dense, slim = (accuracy(network, images) for network in (task.model, small))
                say(f"{name} accuracy: dense {dense:.4f}, slim {slim:.4f} ({len(images[1])} images)")
    say(f'in Python: dp.load("{folder}")')
