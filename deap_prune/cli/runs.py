"""Commands that make, continue and describe runs: ``search | resume | report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deap_prune.cli.base import (
    ConfigPath,
    Factory,
    Overrides,
    Quiet,
    Ray,
    RunPath,
    Yes,
    command,
    model_override,
    out,
    say,
)

if TYPE_CHECKING:
    from deap_prune.config import Config
    from deap_prune.search import Result
    from deap_prune.search.from_config import OpenedConfig


@command
def search(
    config: ConfigPath,
    set: Overrides = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Run folder; the config's 'out', or a numbered one in runs.")
    ] = None,
    yes: Yes = False,
    quiet: Quiet = False,
    ray: Ray = None,
) -> None:
    """Search blends for the config's network, and write a run folder."""
    from deap_prune.config import load_config
    from deap_prune.search.run_names import numbered

    loaded = load_config(config, set or ())
    configured = None if loaded.out is None else Path(loaded.out)
    target = folder or configured or numbered(Path("runs"), config.stem)
    result, opened = start(loaded, target, replace=yes, progress=not quiet, ray=ray)
    _end(result, opened if loaded.slim_and_report else None, target, quiet)


@command
def resume(
    run: RunPath,
    generations: Annotated[int | None, typer.Option(help="A new last generation, to run longer.")] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.SUB=VALUE", help="Change an option of the end: search.refine_images=2000."),
    ] = None,
    model: Factory = None,
    quiet: Quiet = False,
    ray: Ray = None,
) -> None:
    """Continue a run from its newest checkpoint, bit for bit as if it had never stopped.

    A finished run is refined anew with other options of its end: refine_images, recover, finalists.
    """
    from deap_prune.config import load_config
    from deap_prune.search import resume as go_on
    from deap_prune.search.from_config import open_folder

    ends = (run / "config.yaml").is_file() and load_config(run).slim_and_report
    opened = open_folder(run, model_override(model)) if ends or model is not None else None
    changes = _changes(set or ()) | ({} if generations is None else {"generations": generations})
    if opened is None:
        result = go_on(run, **changes, progress=not quiet, ray=ray)
    else:
        task = opened.task
        result = go_on(
            run,
            task.model,
            task.example_inputs,
            calibration=task.calibration,
            validation=task.validation,
            **changes,
            progress=not quiet,
            ray=ray,
        )
    _end(result, opened if ends else None, run, quiet)


def _changes(overrides: Sequence[str]) -> dict[str, Any]:
    """The options of a search that ``--set`` changes."""
    from deap_prune.config import config_of
    from deap_prune.errors import ConfigError

    keys = [override.partition("=")[0] for override in overrides]
    for key in keys:
        if not key.startswith("search."):
            raise ConfigError(f"--set {key}: resume changes options of the search, such as search.refine_images=2000")
    options = config_of({}, overrides).search
    return {name: getattr(options, name) for name in (key.split(".")[1] for key in keys)}


def _end(result: Result, opened: OpenedConfig | None, folder: Path, quiet: bool) -> None:
    """Show the result; export and report it if the run is opened for that."""
    from deap_prune.cli.finish import finish

    show_result(result, folder, advice="" if opened else f"; next: deap-prune slim {folder}")
    if opened is not None:
        finish(result, opened, folder, progress=not quiet)


@command
def report(
    run: RunPath,
    others: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Runs to compare it with.")] = None,
    singles: Annotated[int, typer.Option(help="Budgets at which single criteria and baselines are evaluated.")] = 6,
    network: Annotated[bool, typer.Option(help="Open the config's network and data, which imports code.")] = True,
    model: Factory = None,
    quiet: Quiet = False,
) -> None:
    """Write a run's report.html (one page), compared with other runs, and its pictures as PNG and SVG in RUN/report."""
    from deap_prune.errors import ConfigError
    from deap_prune.report import report as write

    if model is not None and not network:
        raise ConfigError("--model and --no-network exclude each other; give one of them")
    path = write(
        run, singles=singles, network=network, beside=others or (), progress=not quiet, overrides=model_override(model)
    )
    say(f"{path}, pictures in {run / 'report'}")


@command
def watch(
    run: RunPath,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; any free one if left out.")] = 0,
) -> None:
    """Serve a run's report on this machine while the run goes on; the page updates itself."""
    from deap_prune.report import live

    if not run.exists():
        say(f"'{run}' does not exist yet; the page shows a run when one begins there")
    with live.served(run, port=port) as watched:
        say(f"open {watched.address} (Ctrl+C stops it; the address is secret)")
        try:
            live.wait()
        except KeyboardInterrupt:
            say("stopped")


def start(
    config: Config, folder: Path, *, replace: bool, progress: bool, ray: str | None = None
) -> tuple[Result, OpenedConfig]:
    """Search in a new run folder. An earlier run there is removed only when the network and images have opened."""
    from deap_prune.search import search as run
    from deap_prune.search.folder import check_folder
    from deap_prune.search.from_config import open_config
    from deap_prune.search.run_names import remove_run
    from deap_prune.user_modules import import_modules

    import_modules(config.imports)
    config.search.check()
    if not replace:
        check_folder(folder)
    config = config.model_copy(update={"out": str(folder)})
    opened = open_config(config)
    if replace:
        remove_run(folder)
    task = opened.task
    result = run(
        task.model,
        task.example_inputs,
        calibration=task.calibration,
        validation=task.validation,
        out=folder,
        config=config,
        progress=progress,
        ray=ray,
    )
    return result, opened


def show_result(result: Result, folder: Path, *, advice: str = "") -> None:
    """Print the front as a table with the dense network in its last row, the run folder, and what to do next."""
    from rich.table import Table

    front, dense = result.front, result.front.dense
    table = Table("solution", *front.weights, "multiply-adds", "parameters", box=None)
    rows = [(str(number), s.values, s.flops, s.params) for number, s in enumerate(front)]
    for name, values, flops, params in [*rows, ("dense", dense["values"], dense["flops"], dense["params"])]:
        costs = f"{flops:,} ({flops / dense['flops']:.1%})", f"{params:,} ({params / dense['params']:.1%})"
        table.add_row(name, *(f"{value:.4f}" for value in values.values()), *costs)
    out.print(table)
    summary = f"{len(front)} solution{'s' * (len(front) != 1)} after {result.evaluations} evaluations, in {folder}"
    say(summary + advice)
