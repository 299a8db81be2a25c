"""Commands that write the network of a run's solution: ``slim | finetune | export``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deap_prune.cli.base import (
    Factory,
    Knee,
    MaxFlops,
    MaxLatency,
    MaxParams,
    Number,
    Overrides,
    Quiet,
    RunPath,
    chosen,
    command,
    model_override,
    out,
    say,
)

if TYPE_CHECKING:
    from torch import nn

    from deap_prune.search.finished_run import OpenedSolution
    from deap_prune.training import EpochRecord


@command
def slim(
    run: RunPath,
    max_flops: MaxFlops = None,
    max_params: MaxParams = None,
    max_latency: MaxLatency = None,
    knee: Knee = False,
    number: Number = None,
    target: Annotated[
        Path | None,
        typer.Option("--out", help="A .safetensors file, or a folder for dp.load; RUN/slim.safetensors if left out."),
    ] = None,
    model: Factory = None,
) -> None:
    """Write the smaller network of a run's solution, exactly as it was evaluated (safetensors, and its masks)."""
    from deap_prune.export import export as write
    from deap_prune.files import write_text
    from deap_prune.weights import check_weights_file, save_weights

    overrides = model_override(model)
    target = target or run / "slim.safetensors"
    choice = chosen(run, (max_flops, max_params, max_latency), knee, number, overrides)
    if target.suffix == ".safetensors":
        check_weights_file(target)
    solution, opened = choice.solution, choice.opened
    small = choice.evaluator.slim(solution.masks)
    if target.suffix == ".safetensors":
        save_weights(small, target)
        write_text(target.with_suffix(".masks.json"), solution.masks.to_json())
        say(f"{solution}; weights in {target}, masks in {target.with_suffix('.masks.json')}")
        return
    write(
        small,
        opened.task.example_inputs,
        target,
        formats=("safetensors",),
        masks=solution.masks,
        model=opened.config.model,
        ignore=opened.config.search.ignore,
    )
    say(f'{solution}; weights and recipe in {target}: dp.load("{target}") makes the network')


@command
def finetune(
    run: RunPath,
    max_flops: MaxFlops = None,
    max_params: MaxParams = None,
    max_latency: MaxLatency = None,
    knee: Knee = False,
    number: Number = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images; default: the config's.")] = None,
    state: Annotated[Path | None, typer.Option(help="File to keep after every epoch, and to go on from.")] = None,
    target: Annotated[
        Path | None, typer.Option("--out", help="Weights file; RUN/finetuned.safetensors if left out.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FOLDER", help="Images to train on, for a run that Python started.")
    ] = None,
    model: Factory = None,
    set: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Slim a run's solution, fine-tune it, and print its test accuracy (or loss) before and after."""
    from deap_prune.training import finetune as train
    from deap_prune.training.evaluation import loss_and_accuracy
    from deap_prune.weights import check_weights_file, save_weights

    target = target or run / "finetuned.safetensors"
    overrides = _data_override(data) + model_override(model, set)
    choice = chosen(run, (max_flops, max_params, max_latency), knee, number, overrides)
    check_weights_file(target)
    options, splits, task = choice.opened.config.finetune, choice.opened.splits, choice.opened.task
    small = choice.evaluator.slim(choice.solution.masks)
    images, test = splits.train, splits.test
    before = loss_and_accuracy(small, test) if test is not None else None
    records = train(
        small,
        images,
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
    save_weights(small, target)
    _show_best(records, held_out=splits.held_out)
    if test is not None and before is not None:
        _show_test(before, loss_and_accuracy(small, test))
    say(f"weights in {target}")


def _show_test(before: tuple[float, float | None], after: tuple[float, float | None]) -> None:
    """Print the test accuracy, or the test loss of a network without labels, before and after training."""
    what, place = ("loss", 0) if before[1] is None else ("accuracy", 1)
    out.print(f"test {what} {before[place]:.4f} as pruned, {after[place]:.4f} after fine-tuning (last epoch)")


def _data_override(data: str | None) -> list[str]:
    """The overrides of a config that ``--data`` stands for."""
    import json

    from deap_prune.search.first_config import data_section

    return [] if data is None else [f"data={json.dumps(data_section(Path(data), enlarges=False).values)}"]


def _show_best(records: Sequence[EpochRecord], *, held_out: bool) -> None:
    """Print the validation accuracy (or loss) after the last epoch and after the best."""
    from deap_prune.training import best_epoch

    best = best_epoch(records)
    if best is None:
        return
    what = "loss" if best.validation_accuracy is None else "accuracy"
    (last, n), (top, k) = ((getattr(r, f"validation_{what}"), r.epoch) for r in (records[-1], best))
    out.print(f"validation {what} {last:.4f} after the last epoch ({n}), {top:.4f} after the best ({k})")
    if not held_out:
        out.print(
            "(it was trained on those images too: --set data.exclude_from_train=true leaves them out)", soft_wrap=True
        )


@command
def export(
    run: RunPath,
    max_flops: MaxFlops = None,
    max_params: MaxParams = None,
    max_latency: MaxLatency = None,
    knee: Knee = False,
    number: Number = None,
    weights: Annotated[
        Path | None, typer.Option(help="Fine-tuned weights of the same solution; as evaluated if left out.")
    ] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="safetensors, torch or onnx; all if left out.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="ONNX in eight bits alone, compared with fp32 and the dense network.")
    ] = False,
    target: Annotated[
        Path | None, typer.Option("--out", help="Folder, RUN/export if left out; an earlier export is replaced.")
    ] = None,
    model: Factory = None,
) -> None:
    """Write a run's solution as safetensors with a recipe, torch.export and ONNX, and check and time them."""
    from deap_prune.errors import RunError
    from deap_prune.export import FORMATS
    from deap_prune.export import export as write
    from deap_prune.weights import load_weights

    if int8 and formats:
        raise RunError("--int8 writes one ONNX file in eight bits; leave --format out, or export twice")
    overrides = model_override(model)
    choice = chosen(run, (max_flops, max_params, max_latency), knee, number, overrides)
    solution, opened = choice.solution, choice.opened
    small = choice.evaluator.slim(solution.masks)
    if weights is not None:
        load_weights(small, weights)
        values = choice.evaluator.measure(small, solution.masks)  # those of the front are of other weights
        solution = replace(solution, values=dict(zip(choice.evaluator.names, values, strict=True)))
        say(f"with the weights of {weights}, on the validation images:")
    if int8:
        say(_in_eight_bits(replace(choice, solution=solution), small, target or run / "export"))
        return
    written = write(
        small,
        opened.splits.validation[0][:32],
        target or run / "export",
        formats=tuple(formats or FORMATS),
        dense=opened.task.model,
        masks=solution.masks,
        model=opened.config.model,
        ignore=opened.config.search.ignore,
    )
    say(f"{solution}\n{written}")


def _in_eight_bits(choice: OpenedSolution, network: nn.Module, folder: Path) -> str:
    """Write a network in eight bits, and return the comparison."""
    from deap_prune.int8 import export_int8

    task, splits = choice.opened.task, choice.opened.splits
    test = splits.validation if splits.test is None else splits.test
    options: dict[str, Any] = {
        "calibration": task.calibration,
        "test": test,
        "dense": task.model,
        "forward": task.forward,
    }
    done = export_int8(network, task.example_inputs, folder, **options)
    images = "validation" if splits.test is None else "test"
    return f"{choice.solution}\n{done}\naccuracy on {images} images; one sample in ONNX Runtime on the CPU (median)"
