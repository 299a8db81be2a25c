"""Commands: ``deap-prune inspect | search | resume | report | slim | finetune | export | criteria | options``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deap_prune.errors import PruneError

app = typer.Typer(
    help="Prune the filters of CNNs by blending pruning criteria, evolved with DEAP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config, or a run folder.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.SUB=VALUE", help="Override a config value.")]
Ray = Annotated[str | None, typer.Option("--ray", metavar="ADDRESS|local", help="Evaluate on a Ray cluster.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command; our own errors become one line and exit code 2."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except PruneError as error:
            Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {_plain(str(error))}", highlight=False)
            raise typer.Exit(2) from None

    return app.command()(run)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@_command
def inspect(
    config: ConfigPath,
    set: Overrides = None,
    criteria: Annotated[bool, typer.Option("--criteria", help="Compare the config's criteria as well.")] = False,
    max_flops: Annotated[float | None, typer.Option(help="Kept share of the FLOPs for their ranking.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Where criteria.png goes; the run, or here.")] = None,
    quiet: Quiet = False,
) -> None:
    """Show what can be pruned in the config's network: groups, couplings, refusals, cost; and how criteria compare."""
    from deap_prune.config import load_config
    from deap_prune.search.from_config import open_config
    from deap_prune.structure.tracing.trace import trace

    opened = open_config(load_config(config, set or ()))
    task = opened.task
    space = trace(task.model, task.example_inputs, ignore=opened.config.search.ignore)
    out.print(_plain(str(space)), highlight=False, soft_wrap=True)
    if criteria:
        from deap_prune.report.compare_criteria import compare_criteria

        target = folder or (config if config.is_dir() else Path())
        target.mkdir(parents=True, exist_ok=True)
        picture = target / "criteria.png"
        comparison = compare_criteria(opened, max_flops=max_flops, picture=picture, progress=not quiet)
        out.print(_plain(f"\n{comparison}\n\nheat maps in {picture}"), highlight=False, soft_wrap=True)


@_command
def search(
    config: ConfigPath,
    set: Overrides = None,
    folder: Annotated[str | None, typer.Option("--out", help="Run folder; the config's 'out' if left out.")] = None,
    quiet: Quiet = False,
    ray: Ray = None,
) -> None:
    """Search blends for the config's network, and write a run folder."""
    from deap_prune.config import load_config
    from deap_prune.errors import ConfigError
    from deap_prune.search import search as run
    from deap_prune.search.folder import check_folder
    from deap_prune.search.from_config import open_config

    loaded = load_config(config, set or ())
    target = folder or loaded.out
    if target is None:
        raise ConfigError("no run folder: give --out FOLDER, or set 'out' in the config")
    check_folder(Path(target))
    loaded = loaded.model_copy(update={"out": target})
    loaded.search.check()
    task = open_config(loaded).task
    result = run(
        task.model,
        task.example_inputs,
        calibration=task.calibration,
        validation=task.validation,
        out=target,
        config=loaded,
        progress=not quiet,
        ray=ray,
    )
    _report(result, target)


@_command
def resume(
    run: RunPath,
    generations: Annotated[int | None, typer.Option(help="A new last generation, to run longer.")] = None,
    quiet: Quiet = False,
    ray: Ray = None,
) -> None:
    """Continue a run from its newest checkpoint, bit for bit as if it had never stopped."""
    from deap_prune.search import resume as go_on

    _report(go_on(run, generations=generations, progress=not quiet, ray=ray), run)


@_command
def slim(
    run: RunPath,
    max_flops: Annotated[float | None, typer.Option(help="Best solution with at most this share of the FLOPs.")] = None,
    number: Annotated[int | None, typer.Option(help="Solution by its place in front.json.")] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Where to; RUN/slim.safetensors if left out.")
    ] = None,
) -> None:
    """Write the smaller network of a run's solution, exactly as it was evaluated (safetensors, and its masks)."""
    from deap_prune.files import write_text
    from deap_prune.search.reopen import open_solution
    from deap_prune.weights import save_weights

    chosen = open_solution(run, max_flops=max_flops, number=number)
    solution = chosen.solution
    target = weights or run / "slim.safetensors"
    save_weights(chosen.evaluator.slim(solution.masks), target)
    write_text(target.with_suffix(".masks.json"), solution.masks.to_json())
    out.print(_plain(f"{solution}; weights in {target}, masks in {target.with_suffix('.masks.json')}"), soft_wrap=True)


@_command
def finetune(
    run: RunPath,
    max_flops: Annotated[float | None, typer.Option(help="Best solution with at most this share of the FLOPs.")] = None,
    number: Annotated[int | None, typer.Option(help="Solution by its place in front.json.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images; the config's if left out.")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="File to keep after every epoch, and to go on from.")] = None,
    set: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Slim a run's solution, fine-tune it, and print its test accuracy (or loss) before and after."""
    from deap_prune.search.reopen import open_solution
    from deap_prune.training import best_epoch
    from deap_prune.training import finetune as train
    from deap_prune.training.evaluation import loss_and_accuracy
    from deap_prune.weights import save_weights

    chosen = open_solution(run, max_flops=max_flops, number=number, overrides=set or ())
    options, splits, task = chosen.opened.config.finetune, chosen.opened.splits, chosen.opened.task
    small = chosen.evaluator.slim(chosen.solution.masks)
    test = splits.test
    before = loss_and_accuracy(small, test) if test is not None else None
    records = train(
        small,
        splits.train,
        task.validation,
        epochs=options.epochs if epochs is None else epochs,
        recipe=options.recipe,
        teacher=task.model if options.distill else None,
        augment=options.augment,
        from_scratch=options.from_scratch,
        state=state,
        seed=options.seed,
        progress=not quiet,
    )
    save_weights(small, run / "finetuned.safetensors")
    best = best_epoch(records)
    if best is not None:
        what = "loss" if best.validation_accuracy is None else "accuracy"
        (last, n), (top, k) = ((getattr(r, f"validation_{what}"), r.epoch) for r in (records[-1], best))
        out.print(f"validation {what} {last:.4f} after the last epoch ({n}), {top:.4f} after the best ({k})")
        if not splits.held_out:
            caveat = "(it was trained on those images too: --set data.exclude_from_train=true leaves them out)"
            out.print(caveat, soft_wrap=True)
    if test is not None and before is not None:
        what, place = ("loss", 0) if before[1] is None else ("accuracy", 1)
        after = loss_and_accuracy(small, test)[place]
        out.print(f"test {what} {before[place]:.4f} as pruned, {after:.4f} after fine-tuning (last epoch)")
    out.print(_plain(f"weights in {run / 'finetuned.safetensors'}"), soft_wrap=True)


@_command
def export(
    run: RunPath,
    max_flops: Annotated[float | None, typer.Option(help="Best solution with at most this share of the FLOPs.")] = None,
    number: Annotated[int | None, typer.Option(help="Solution by its place in front.json.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Fine-tuned weights of the same solution; as evaluated if left out.")
    ] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="safetensors, torch or onnx; all if left out.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Folder; RUN/export if left out.")] = None,
) -> None:
    """Write a run's solution as safetensors with a recipe, torch.export and ONNX, and check and time them."""
    from deap_prune.export import FORMATS
    from deap_prune.export import export as write
    from deap_prune.search.reopen import open_solution
    from deap_prune.weights import load_weights

    chosen = open_solution(run, max_flops=max_flops, number=number)
    solution, opened = chosen.solution, chosen.opened
    small = chosen.evaluator.slim(solution.masks)
    if weights is not None:
        load_weights(small, weights)
    written = write(
        small,
        opened.splits.validation[0][:32],
        to or run / "export",
        formats=tuple(formats or FORMATS),
        dense=opened.task.model,
        masks=solution.masks,
        model=opened.config.model,
        ignore=opened.config.search.ignore,
    )
    out.print(_plain(f"{solution}\n{written}"), highlight=False, soft_wrap=True)


@_command
def report(
    run: RunPath,
    singles: Annotated[int, typer.Option(help="Budgets at which single criteria and baselines are evaluated.")] = 6,
    network: Annotated[bool, typer.Option(help="Open the config's network and data, which imports code.")] = True,
    beside: Annotated[list[Path] | None, typer.Option(help="Another run to draw on the same axes.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write a run's report.html (one page, opened in any browser), and its pictures as PNG and SVG in RUN/report."""
    from deap_prune.report import report as write

    path = write(run, singles=singles, network=network, beside=beside or (), progress=not quiet)
    out.print(_plain(f"{path}, pictures in {run / 'report'}"), soft_wrap=True)


@_command
def criteria() -> None:
    """List the criteria."""
    from deap_prune.criteria import CRITERIA

    table = Table("name", "importance of a filter", "reference", box=None)
    for entry in CRITERIA:
        table.add_row(entry.name, _plain(entry.summary), _plain(entry.reference))
    out.print(table)


@_command
def options() -> None:
    """List the options of a config; those of its search are the options of dp.search."""
    from deap_prune.config import describe_options

    table = Table("option", "default", "meaning", box=None)
    for row in describe_options():
        table.add_row(*map(_plain, row))
    out.print(table)


def _report(result: Any, folder: Path | str) -> None:
    """Print the front as a table with the dense network in its last row, and the run folder."""
    front, dense = result.front, result.front.dense
    table = Table("solution", *front.weights, "multiply-adds", "parameters", box=None)

    def row(name: str, values: Mapping[str, float], flops: int, params: int) -> None:
        costs = f"{flops:,} ({flops / dense['flops']:.1%})", f"{params:,} ({params / dense['params']:.1%})"
        table.add_row(name, *(f"{v:.4f}" for v in values.values()), *costs)

    for number, s in enumerate(front):
        row(str(number), s.values, s.flops, s.params)
    row("dense", dense["values"], dense["flops"], dense["params"])
    out.print(table)
    summary = f"{len(front)} solution{'s' * (len(front) != 1)} after {result.evaluations} evaluations, in {folder}"
    out.print(_plain(f"{summary}; next: deap-prune slim {folder}"), soft_wrap=True)


if __name__ == "__main__":
    app()
