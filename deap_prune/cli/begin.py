"""Commands for a network and images of one's own: ``init | prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deap_prune.cli.base import Overrides, Quiet, Yes, app, command, say
from deap_prune.cli.finish import finish
from deap_prune.cli.runs import show_result, start

Data = Annotated[
    Path,
    typer.Option("--data", metavar="FOLDER", help="Images, one sub-folder for each class (or train and test in it)."),
]
Weights = Annotated[
    Path | None, typer.Option(help="State dict of the network; torchvision's pretrained weights if left out.")
]
Budget = Annotated[float, typer.Option(help="Kept share of the FLOPs.")]
Seconds = Annotated[float, typer.Option(help="Time limit of the search.")]


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Prune the filters of CNNs by blending pruning criteria, evolved with DEAP."""
    if version:
        from importlib.metadata import version as of

        say(f"deap-prune {of('deap-prune')}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        say(context.get_help())
        raise typer.Exit(2)


@command
def init(
    model: Annotated[str, typer.Option("--model", help="module:function, or a name in torchvision.models.")],
    data: Data,
    weights: Weights = None,
    max_flops: Budget = 0.5,
    max_seconds: Seconds = 900,
    target: Annotated[Path, typer.Option("--out", help="The config.")] = Path("config.yaml"),
    yes: Yes = False,
) -> None:
    """Write a commented config for a network and images of one's own."""
    from deap_prune.errors import ConfigError
    from deap_prune.files import write_text
    from deap_prune.search.first_config import commented, first_config

    sections = first_config(model, data, weights=weights, max_flops=max_flops, max_seconds=max_seconds)
    if target.exists() and not yes:
        raise ConfigError(f"'{target}' exists; give another --out, or --yes to overwrite it")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, commented(sections, f"deap-prune search {target}; all keys: deap-prune options"))
    say(f"{target}; next: deap-prune search {target}")


@command
def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="module:function, or a name in torchvision.models.")],
    data: Data,
    weights: Weights = None,
    max_flops: Budget = 0.5,
    max_seconds: Seconds = 900,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Run folder; a numbered one in runs if left out.")
    ] = None,
    set: Overrides = None,
    yes: Yes = False,
    quiet: Quiet = False,
) -> None:
    """From a network to a smaller one: search, export to OUT/slim (dp.load reads it), and write the report."""
    from deap_prune.config import config_of, reach_factories
    from deap_prune.search.first_config import first_config
    from deap_prune.search.run_names import numbered

    sections = first_config(model, data, weights=weights, max_flops=max_flops, max_seconds=max_seconds)
    target = folder or numbered(Path("runs"), model.rpartition(":")[2])
    ends = {"out": str(target), "slim_and_report": True}
    config = reach_factories(config_of({**sections, **ends}, set or ()), (Path(),))
    chosen = any(override.startswith(("data.size=", "data=")) for override in set or ())
    if config.data is not None and not chosen and "size" in (images := config.data.model_dump()):
        say(f"images of {images['size']} x {images['size']} pixels; others: --set data.size=N")
    result, opened = start(config, target, replace=yes, progress=not quiet)
    show_result(result, target)
    finish(result, opened, target, progress=not quiet)
