"""The command that measures a latency table: ``latency``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deap_prune.cli.base import ConfigPath, Factory, Overrides, Quiet, command, model_override, say
from deap_prune.errors import ConfigError


@command
def latency(
    config: ConfigPath,
    file: Annotated[
        Path | None, typer.Option("--out", help="JSON file; a table of the same setting in it is completed.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="torch, onnxruntime or openvino.")] = "torch",
    batch: Annotated[int, typer.Option(help="Samples a batch.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Threads on the CPU; torch's number if left out.")] = None,
    device: Annotated[str, typer.Option(help="Torch's name of the device, for torch.")] = "cpu",
    folder: Annotated[
        Path | None, typer.Option("--export", help="Folder for ONNX files and a script that times them on a device.")
    ] = None,
    times: Annotated[Path | None, typer.Option("--import", help="times.json that the script wrote there.")] = None,
    set: Overrides = None,
    model: Factory = None,
    quiet: Quiet = False,
) -> None:
    """Measure the latency of the config's network by its widths, for max_latency, objectives and round_to: auto."""
    from deap_prune.config import load_config
    from deap_prune.costs import latency_table
    from deap_prune.costs.device import SCRIPT, Grid, read_times
    from deap_prune.search.from_config import open_config, open_folder
    from deap_prune.structure.tracing.trace import trace

    if (file is None) == (folder is None) or (folder is not None and times is not None):
        raise ConfigError("give --out FILE for a table (with --import, from the times of a device), or --export FOLDER")
    measured = None if times is None else read_times(times)
    overrides = model_override(model, set)
    opened = open_folder(config, overrides) if config.is_dir() else open_config(load_config(config, overrides))
    task = opened.task
    space = trace(task.model, task.example_inputs, ignore=opened.config.search.ignore)
    subject = (task.model, space, task.example_inputs)
    if folder is not None:
        count = Grid.of(*subject, batch=batch, threads=threads or 1).write(folder, progress=not quiet)
        say(
            f"{count} networks in {folder}; copy it to the device, run 'python {SCRIPT}' there (it needs onnxruntime "
            "and NumPy), and give the times.json that it writes to 'deap-prune latency CONFIG --import'"
        )
        return
    if measured is not None and file is not None:
        table = Grid.of(*subject, batch=measured.batch, threads=measured.threads).table(measured)
        table.save(file)
    else:
        how: dict[str, Any] = {"runtime": runtime, "batch": batch, "threads": threads, "device": device}
        table = latency_table(*subject, **how, out=file, progress=not quiet)
    predicted = table.prediction(space)
    dense, least = (float(predicted(kept)) for kept in (space.sizes, [group.blocks for group in space.groups]))
    text = f"dense network {dense:.3g} ms, narrowest {least:.3g} ms ({table.setting}); table in {file}"
    say(f"{text}; next: --set search.latency_table={file}")
