"""The loop of a training: epochs, steps, and the figures that are recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from deap_prune.cuda_graphs import Graphs
from deap_prune.data.batches import (
    Data,
    Forward,
    Loss,
    check_labels,
    count_samples,
    default_forward,
    logits_of,
    tensors_of,
)
from deap_prune.data.splits import augment as shift_and_mirror
from deap_prune.errors import DataError, ModelError
from deap_prune.training.evaluation import loss_and_accuracy
from deap_prune.training.losses import are_labels, from_teacher, on_targets, one_label_each, single
from deap_prune.training.recipe import Recipe
from deap_prune.training.state import Average, EpochRecord, Shuffled, best_epoch, load_state, save_state, set_rate

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""A batch of inputs and a generator on the CPU to inputs of the same shape."""

Step = Callable[[Any], tuple[Tensor, int]]
"""A batch to its loss and size; the weights have moved."""


@dataclass(frozen=True)
class Trainer:
    """What does not change from batch to batch."""

    model: nn.Module
    teacher: nn.Module | None
    recipe: Recipe
    epochs: int
    forward: Forward
    augment: Augment | None
    place: torch.device
    generator: torch.Generator
    own: Loss | None = None

    def run(
        self,
        batches: Iterable[Any],
        validation: Data | None,
        kept: tuple[Path, Mapping[str, Any]] | None,
        progress: bool,
    ) -> list[EpochRecord]:
        """Train, epoch by epoch, from where the kept state is."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.data = self.laid_out(parameter.data)
        if not parameters:
            raise ModelError("no parameter has requires_grad=True; call model.requires_grad_(True) to train it")
        optimizer = self.recipe.make_optimizer(parameters)
        average = Average(self.model, self.recipe.ema) if self.recipe.ema is not None else None
        records: list[EpochRecord] = []
        if kept is not None and kept[0].is_file():
            about = load_state(kept[0], self.model, optimizer, average, self.generator, kept[1])
            records = [EpochRecord(**record) for record in about["records"]]
        step = self.stepper(batches, optimizer)
        columns = TextColumn("epoch {task.completed:.1f}/{task.total}"), BarColumn(), TimeRemainingColumn()
        console = Console(stderr=True)
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, disable=not progress) as bar:
            task = bar.add_task("", total=self.epochs, note="", completed=len(records))
            while len(records) < self.epochs and not self.is_patient_no_more(records):
                start, epoch = time.perf_counter(), len(records)
                loss = self.epoch(epoch, batches, step, optimizer, average, partial(bar.update, task))
                on_validation, hits = self.measured(validation, average)
                lr = float(optimizer.param_groups[0]["lr"])
                records.append(EpochRecord(epoch + 1, loss, hits, lr, time.perf_counter() - start, on_validation))
                if kept is not None:
                    about = {"settings": kept[1], "records": [asdict(r) for r in records]}
                    save_state(kept[0], self.model, optimizer, average, self.generator, about)
                bar.update(task, completed=epoch + 1, note=str(records[-1]))
        if average is not None:
            self.model.load_state_dict(average.tensors)
        for parameter in parameters:
            parameter.data = parameter.data.contiguous()
        return records

    def measured(self, validation: Data | None, average: Average | None) -> tuple[float | None, float | None]:
        """Loss and accuracy on the validation data, of the averaged weights if there are any."""
        if validation is None:
            return None, None
        with average.shown() if average else nullcontext():
            return loss_and_accuracy(self.model, validation, device=self.place, forward=self.forward, loss=self.own)

    def is_patient_no_more(self, records: Sequence[EpochRecord]) -> bool:
        """Whether so many epochs have brought nothing better as the recipe allows."""
        patience, best = self.recipe.patience, best_epoch(records, by_loss=self.own is not None)
        return patience is not None and best is not None and len(records) - best.epoch >= patience

    def epoch(
        self,
        epoch: int,
        batches: Iterable[Any],
        step: Step,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        report: Callable[..., None],
    ) -> float:
        """Go through the batches once; the mean loss."""
        self.model.train()
        for layer in self.model.modules():  # frozen: its statistics stay too
            if isinstance(layer, _BatchNorm) and layer.affine and not layer.weight.requires_grad:
                layer.eval()
        steps, count, total = length_hint(batches), 0, torch.zeros((), device=self.place)
        for number, batch in enumerate(batches):
            done = epoch + ((number + 0.5) / steps if steps else 0.5)
            set_rate(optimizer, self.recipe.rate(done, self.epochs))
            loss, size = step(self.prepare(batch))
            if average is not None:
                average.update()
            total += loss * size
            count += size
            report(completed=done)
        if not count:
            raise DataError(f"no batch in epoch {epoch + 1}; give tensors or a DataLoader, not a used generator")
        mean = float(total) / count
        if not math.isfinite(mean):
            raise ModelError(
                f"the loss is {mean} in epoch {epoch + 1} with lr={self.recipe.lr}; try a tenth, and see "
                "that inputs and weights are finite"
            )
        return mean

    def prepare(self, batch: Any) -> Any:
        """A batch as the network takes it in training: on the device, augmented."""
        batch = tree_map(lambda x: x.to(self.place) if isinstance(x, Tensor) else x, batch)
        if self.augment is shift_and_mirror:
            _check_places(batch)
        if self.augment:
            batch = (self.augment(batch[0], self.generator), *batch[1:])
        return tree_map(lambda x: self.laid_out(x) if isinstance(x, Tensor) else x, batch)

    def laid_out(self, tensor: Tensor) -> Tensor:
        """As the device's convolutions like it best."""
        if tensor.dim() == 4 and self.place.type == "cuda" and self.recipe.precision == "bf16":
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor.contiguous()  # torch 2.15's oneDNN corrupts memory in some channels-last gradients (odd widths)

    def stepper(self, batches: Iterable[Any], optimizer: torch.optim.Optimizer) -> Step:
        """What takes a step with a batch: as CUDA graphs where all data is on the device and its labels are known."""
        step = partial(self.step, optimizer)
        if self.own is not None or self.forward is not default_forward:
            return step  # may look at values
        if not isinstance(batches, Shuffled) or not batches.targets.is_cuda:
            return step
        with torch.no_grad():
            outputs, targets = self.forward(self.model, (batches.inputs[:2], batches.targets[:2]))
        if not one_label_each(outputs, targets):
            return step
        check_labels(outputs, batches.targets, name="the data")
        return Graphs(partial(step, check=False), name="the training step", alters=True)

    def step(self, optimizer: torch.optim.Optimizer, batch: Any, *, check: bool = True) -> tuple[Tensor, int]:
        """Forward, backward, and the weights' change; the loss, and how many images it averages."""
        loss, size = self.loss(batch, check)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach(), size

    def loss(self, batch: Any, check: bool) -> tuple[Tensor, int]:
        """The loss on the targets, with the teacher's part if there is one, and how many samples it averages."""
        with self.autocast():
            outputs, targets = self.forward(self.model, batch)
        outputs = single(outputs)
        # Looking at labels makes a GPU wait, and can't be captured.
        hard = on_targets(self.own, outputs, targets) if check else F.cross_entropy(outputs, targets)
        size = max(count_samples(batch), 1)
        if self.teacher is None:
            return hard, size
        with torch.no_grad(), self.autocast():
            wanted, _ = self.forward(self.teacher, batch)
        classes = self.own is None or are_labels(logits_of(outputs), targets)
        soft = from_teacher(outputs, single(wanted), self.recipe.temperature, classes=classes)
        return (1 - self.recipe.distill) * hard + self.recipe.distill * soft, size

    def autocast(self) -> torch.autocast:
        """The recipe's precision; no casts are remembered, a captured step would go on using them as weights change."""
        enabled = self.recipe.precision == "bf16"
        return torch.autocast(self.place.type, torch.bfloat16, enabled=enabled, cache_enabled=False)


def _check_places(batch: Any) -> None:
    """Targets that are maps would have to be shifted and mirrored with the inputs.

    Raises:
        DataError: If a target has the height and width of the inputs.
    """
    inputs, targets = batch[0], tensors_of(batch[1:2])
    if any(x.dim() > 2 and x.shape[-2:] == inputs.shape[-2:] for x in targets):
        raise DataError(
            "augment=True shifts and mirrors inputs alone, and the targets are maps; augment both together in a "
            "DataLoader, or give a function of (inputs, generator) that moves nothing"
        )
