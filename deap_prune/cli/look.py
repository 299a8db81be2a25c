"""Commands that show something and search nothing: ``inspect | criteria | options``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from deap_prune.cli.base import ConfigPath, Factory, Overrides, Quiet, command, model_override, out, plain, say


@command
def inspect(
    config: ConfigPath,
    set: Overrides = None,
    criteria: Annotated[bool, typer.Option("--criteria", help="Compare the config's criteria as well.")] = False,
    max_flops: Annotated[float | None, typer.Option(help="Kept share of the FLOPs for their ranking.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Where criteria.png goes; the run, or here.")] = None,
    model: Factory = None,
    quiet: Quiet = False,
) -> None:
    """Show what can be pruned in the config's network: groups, couplings, refusals, cost; and how criteria compare."""
    from deap_prune.config import load_config
    from deap_prune.errors import ConfigError
    from deap_prune.search.from_config import open_config, open_folder
    from deap_prune.structure.tracing.trace import trace

    if not criteria and (max_flops is not None or folder is not None):
        raise ConfigError("--max-flops and --out are for the comparison of criteria; give --criteria too")
    overrides = model_override(model, set)
    opened = open_folder(config, overrides) if config.is_dir() else open_config(load_config(config, overrides))
    task = opened.task
    space = trace(task.model, task.example_inputs, ignore=opened.config.search.ignore)
    say(str(space))
    if criteria:
        from deap_prune.report.compare_criteria import compare_criteria

        target = folder or (config if config.is_dir() else Path())
        target.mkdir(parents=True, exist_ok=True)
        picture = target / "criteria.png"
        comparison = compare_criteria(opened, max_flops=max_flops, picture=picture, progress=not quiet)
        say(f"\n{comparison}\n\nheat maps in {picture}")


@command
def criteria() -> None:
    """List the criteria."""
    from deap_prune.criteria import CRITERIA

    table = Table("name", "importance of a filter", "reference", box=None)
    for entry in CRITERIA:
        table.add_row(entry.name, plain(entry.summary), plain(entry.reference))
    out.print(table)


@command
def options() -> None:
    """List the options of a config; those of its search are the options of dp.search."""
    from deap_prune.config import describe_options

    table = Table("option", "default", "meaning", box=None)
    for row in describe_options():
        table.add_row(*map(plain, row))
    out.print(table)
