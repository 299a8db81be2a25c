"""The command that measures a latency table: ``latency``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deap_prune.cli.base import ConfigPath, Factory, Overrides, Quiet, command, model_override, say


@command
def latency(
    config: ConfigPath,
    file: Annotated[Path, typer.Option("--out", help="JSON file; a table of the same setting in it is completed.")],
    runtime: Annotated[str, typer.Option(help="torch or onnxruntime.")] = "torch",
    batch: Annotated[int, typer.Option(help="Samples a batch.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Threads on the CPU; torch's number if left out.")] = None,
    device: Annotated[str, typer.Option(help="Torch's name of the device, for torch.")] = "cpu",
    set: Overrides = None,
    model: Factory = None,
    quiet: Quiet = False,
) -> None:
    """Measure the latency of the config's network by its widths, for max_latency, objectives and round_to: auto."""
    from deap_prune.config import load_config
    from deap_prune.costs import latency_table
    from deap_prune.search.from_config import open_config, open_folder
    from deap_prune.structure.tracing.trace import trace

    overrides = model_override(model, set)
    opened = open_folder(config, overrides) if config.is_dir() else open_config(load_config(config, overrides))
    task = opened.task
    space = trace(task.model, task.example_inputs, ignore=opened.config.search.ignore)
    how: dict[str, Any] = {"runtime": runtime, "batch": batch, "threads": threads, "device": device}
    table = latency_table(task.model, space, task.example_inputs, **how, out=file, progress=not quiet)
    predicted = table.on(space).latency_of
    if predicted is not None:
        dense, least = (float(predicted(kept)) for kept in (space.sizes, [group.blocks for group in space.groups]))
        text = f"dense network {dense:.3g} ms, narrowest {least:.3g} ms ({runtime}, batch {batch}); table in {file}"
        say(f"{text}; next: --set search.latency_table={file}")
