"""The application, its console, and the options that commands share."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from deap_prune.errors import ConfigError, PruneError, RegistryError, RunError

if TYPE_CHECKING:
    from deap_prune.search.finished_run import OpenedSolution


class _Commands(TyperGroup):
    """The commands; options that can't be parsed are one line, as our other errors are."""

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """Run a command; see ``click.Command.main``."""
        run: Any = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **kwargs)
        given = kwargs.get("args") or (args[0] if args else None) or sys.argv[1:]
        try:
            if "" in given:
                raise ConfigError("an argument is an empty text; give a value, or leave the option out")
            status = run(*args, standalone_mode=False, **kwargs)
        except Exception as error:
            click_text = getattr(error, "format_message", None)  # typer brings click along, or imports it
            if click_text is None and not isinstance(error, ConfigError):
                raise
            text = " ".join(str(error if click_text is None else click_text()).split()).rstrip(".")
            command = getattr(getattr(error, "ctx", None), "command_path", "deap-prune")
            print(f"error: {text}; '{command} --help' shows what to give", file=sys.stderr)
            sys.exit(2)
        sys.exit(status if isinstance(status, int) else 0)


app = typer.Typer(
    cls=_Commands,
    help="Prune the filters of CNNs by blending pruning criteria, evolved with DEAP.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config, or a run folder.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.SUB=VALUE", help="Override a config value.")]
Ray = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS|local", help="On a Ray cluster; ',workers=64,num_gpus=0.25' may follow."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Yes = Annotated[bool, typer.Option("--yes", help="Overwrite what an earlier run or command wrote there.")]
Factory = Annotated[
    str | None,
    typer.Option("--model", metavar="MODULE:FUNCTION", help="Makes the network of a run that Python started."),
]
MaxFlops = Annotated[str | None, typer.Option(help="Best solution with at most this share of the FLOPs (or '150M').")]
MaxParams = Annotated[str | None, typer.Option(help="The same for the parameters (a share, or '2M').")]
MaxLatency = Annotated[str | None, typer.Option(help="The same for the latency (a share, or '4 ms').")]
Knee = Annotated[bool, typer.Option("--knee", help="The solution at the front's knee.")]
Number = Annotated[int | None, typer.Option(help="Solution by its place in front.json.")]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command; our own errors become one line and exit code 2, our own warnings one line.

    Interrupts become one line that says how to go on, and exit code 128 + number of the signal.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        errors = Console(stderr=True, soft_wrap=True)
        shown: set[str] = set()

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if str(message) in shown:
                return
            shown.add(str(message))
            errors.print(f"[bold yellow]warning:[/] {plain(str(message))}", highlight=False)

        with warnings.catch_warnings(), _interruptible():
            warnings.showwarning = show
            try:
                function(*args, **kwargs)
            except PruneError as error:
                errors.print(f"[bold red]error:[/] {plain(str(error) + _advice(error))}", highlight=False)
                raise typer.Exit(2) from None
            except KeyboardInterrupt as error:
                advice = "; ".join(getattr(error, "__notes__", ["nothing was changed: run the command again"]))
                errors.print(f"[bold red]interrupted:[/] {plain(advice)}", highlight=False)
                raise typer.Exit(128 + getattr(error, "number", signal.SIGINT)) from None
            except BrokenPipeError:  # the reader of the output has gone, as with head
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python writes its buffer at the end
                raise typer.Exit(128 + signal.SIGPIPE) from None
            except (OSError, MemoryError) as error:
                cause = str(error) or "not enough memory"
                advice = "what was finished is kept: run the command again when the cause is gone"
                errors.print(f"[bold red]error:[/] {plain(cause)}; {advice}", highlight=False)
                raise typer.Exit(2) from None

    return app.command()(run)


def _advice(error: PruneError) -> str:
    """How the command line gets to know a criterion, objective, ... of the user's own, if a name is unknown."""
    if not isinstance(error, RegistryError) or not str(error).startswith("unknown "):
        return ""
    return "; for one of your own, imports: [MODULE] in the config names the module that registers it (docs/own.md)"


class _Signalled(KeyboardInterrupt):
    """An interrupt by another signal than Ctrl-C's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _interruptible() -> Iterator[None]:
    """End like Ctrl-C on signals that ask a process to stop; a second one ends it at once."""
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]

    def stop(number: int, _: Any) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        raise _Signalled(number)

    if threading.current_thread() is not threading.main_thread():  # as in some test runners
        yield
        return
    ignored = [n for n in numbers if signal.getsignal(n) is signal.SIG_IGN]  # nohup
    before = {n: signal.signal(n, stop) for n in numbers if n not in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def plain(text: str) -> str:
    """The text without rich's markup."""
    from rich.markup import escape

    return escape(text)


def say(text: str) -> None:
    """Print a text as it is."""
    out.print(plain(text), highlight=False, soft_wrap=True)


def model_override(factory: str | None, overrides: Sequence[str] | None = None) -> list[str]:
    """The overrides of a config, with that of ``--model``."""
    return [*(overrides or ()), *([] if factory is None else [f"model.factory={factory}"])]


def chosen(
    run: Path,
    budgets: tuple[str | None, str | None, str | None],
    knee: bool,
    number: int | None,
    overrides: Sequence[str] = (),
) -> OpenedSolution:
    """The solution that the options choose, with its evaluator and data.

    Args:
        run: The run folder.
        budgets: Limits of FLOPs, parameters and latency.
        knee: The solution at the front's knee.
        number: The solution's place in front.json.
        overrides: ``key.sub=value`` each, for the config.

    Raises:
        RunError: If the options exclude each other, or as for ``open_solution``.
        BudgetError: If no solution is that cheap.
    """
    from deap_prune.search.finished_run import open_solution

    if any(budget is not None for budget in budgets) + knee + (number is not None) > 1:
        raise RunError("--number, --knee and a budget (--max-flops, --max-params) exclude each other; give one of them")
    limits: dict[str, Any] = dict(zip(("max_flops", "max_params", "max_latency"), budgets, strict=True))
    return open_solution(run, **limits, knee=knee, number=number, overrides=overrides)
