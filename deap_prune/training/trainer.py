"""The training loop: epochs, steps and records."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from deap_prune.cuda_graphs import Graphs
from deap_prune.data.batches import (
    Data,
    Forward,
    Loss,
    are_class_labels,
    check_labels,
    count_samples,
    default_forward,
    logits_of,
    readable,
    tensors_of,
)
from deap_prune.data.check_batches import errors_name
from deap_prune.data.splits import augment as shift_and_mirror
from deap_prune.data.unchanged import unchanged
from deap_prune.errors import DataError, ModelError
from deap_prune.progress import Shown, training_bar
from deap_prune.training.evaluation import loss_and_accuracy
from deap_prune.training.losses import distillation_loss, has_one_label_each, in_fp32, target_loss
from deap_prune.training.recipe import Recipe
from deap_prune.training.state import (
    EpochRecord,
    ShuffledBatches,
    WeightAverage,
    best_epoch,
    load_state,
    save_state,
    set_rate,
)

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Function of (inputs, generator on the CPU) to inputs of the same shape."""

Step = Callable[[Any], tuple[Tensor, int]]
"""Function of a batch that changes the weights; gives the loss and the number of samples."""


@dataclass(frozen=True)
class Trainer:
    """Trains a network in place.

    Attributes:
        model: The network in training.
        teacher: A network with outputs of the same shapes, or None.
        recipe: Optimizer, schedule and distillation.
        epochs: Number of passes through the data.
        forward: Function of (model, batch) to (outputs, targets).
        augment: Transforms the inputs of a batch, or None.
        device: Device to train on.
        generator: Random numbers of the order and the augmentation.
        user_loss: The user's loss, or None for cross-entropy.
    """

    model: nn.Module
    teacher: nn.Module | None
    recipe: Recipe
    epochs: int
    forward: Forward
    augment: Augment | None
    device: torch.device
    generator: torch.Generator
    user_loss: Loss | None = None
    _tried: list[bool] = field(default_factory=list, init=False)

    def run(
        self,
        batches: Iterable[Any],
        validation: Data | None,
        saved: tuple[Path, Mapping[str, Any]] | None,
        progress: Shown,
    ) -> list[EpochRecord]:
        """Train all epochs, after those in the saved state.

        Args:
            batches: Training data.
            validation: Data to measure after each epoch, or None.
            saved: File of the saved state, and the settings that it must have; None to save nothing.
            progress: Show a bar.
        """
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.data = self.in_layout(parameter.data)
        if not parameters:
            raise ModelError("no parameter has requires_grad=True; call model.requires_grad_(True) to train it")
        optimizer = self.recipe.make_optimizer(parameters)
        average = WeightAverage(self.model, self.recipe.ema) if self.recipe.ema is not None else None
        records: list[EpochRecord] = []
        if saved is not None and saved[0].is_file():
            metadata = load_state(saved[0], self.model, optimizer, average, self.generator, saved[1])
            records = [EpochRecord(**record) for record in metadata["records"]]
        step = self.make_step(batches, optimizer)
        with training_bar("epoch", self.epochs, shown=progress, completed=len(records)) as report:
            while len(records) < self.epochs and not self.patience_exhausted(records):
                start, epoch = time.perf_counter(), len(records)
                loss = self.train_epoch(epoch, batches, step, optimizer, average, report)
                validation_loss, accuracy = self.measure(validation, average)
                lr, seconds = float(optimizer.param_groups[0]["lr"]), time.perf_counter() - start
                records.append(EpochRecord(epoch + 1, loss, accuracy, lr, seconds, validation_loss))
                if saved is not None:
                    metadata = {"settings": saved[1], "records": [asdict(r) for r in records]}
                    save_state(saved[0], self.model, optimizer, average, self.generator, metadata)
                report(completed=epoch + 1, note=str(records[-1]))
        if average is not None:
            self.model.load_state_dict(average.tensors)
        for parameter in parameters:
            parameter.data = parameter.data.contiguous()
        return records

    def measure(self, validation: Data | None, average: WeightAverage | None) -> tuple[float | None, float | None]:
        """Loss and accuracy on the validation data, with the averaged weights if there are any."""
        if validation is None:
            return None, None
        with average.applied() if average else nullcontext():
            return loss_and_accuracy(
                self.model, validation, device=self.device, forward=self.forward, loss=self.user_loss
            )

    def patience_exhausted(self, records: Sequence[EpochRecord]) -> bool:
        """Whether ``recipe.patience`` epochs have passed without improvement."""
        patience, best = self.recipe.patience, best_epoch(records, by_loss=self.user_loss is not None)
        return patience is not None and best is not None and len(records) - best.epoch >= patience

    def train_epoch(
        self,
        epoch: int,
        batches: Iterable[Any],
        step: Step,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        report: Callable[..., None],
    ) -> float:
        """Train on every batch once; the mean loss."""
        self.model.train()
        for layer in self.model.modules():  # the statistics of a frozen batch norm do not change
            if isinstance(layer, _BatchNorm) and layer.affine and not layer.weight.requires_grad:
                layer.eval()
        steps, count, total = length_hint(batches), 0, torch.zeros((), device=self.device)
        for number, batch in enumerate(readable(batches, "the training data")):
            fraction = epoch + ((number + 0.5) / steps if steps else 0.5)
            set_rate(optimizer, self.recipe.rate(fraction, self.epochs))
            with errors_name("training"):
                loss, size = step(self.prepare(batch))
            if average is not None:
                average.update()
            total += loss * size
            count += size
            report(completed=fraction)
        if not count:
            raise DataError(f"no batch in epoch {epoch + 1}; give tensors or a DataLoader, not an exhausted generator")
        mean = float(total) / count
        if not math.isfinite(mean):
            raise ModelError(
                f"the loss is {mean} in epoch {epoch + 1} with lr={self.recipe.lr}; try a tenth of it, and check "
                "that inputs and weights are finite"
            )
        return mean

    def prepare(self, batch: Any) -> Any:
        """The batch on the device, augmented."""
        batch = tree_map(lambda x: x.to(self.device) if isinstance(x, Tensor) else x, batch)
        if self.augment is shift_and_mirror:
            _check_targets_are_no_maps(batch)
        if self.augment:
            batch = (self.augment(batch[0], self.generator), *batch[1:])
        return tree_map(lambda x: self.in_layout(x) if isinstance(x, Tensor) else x, batch)

    def in_layout(self, tensor: Tensor) -> Tensor:
        """The tensor in the memory format that convolutions are fastest in on this device."""
        if tensor.dim() == 4 and self.device.type == "cuda" and self.recipe.precision == "bf16":
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor.contiguous()  # torch 2.15's oneDNN corrupts memory in some channels-last gradients (odd widths)

    def make_step(self, batches: Iterable[Any], optimizer: torch.optim.Optimizer) -> Step:
        """The training step, captured as a CUDA graph if the data is on the device and has one label a sample."""
        step = partial(self.step, optimizer)
        if self.user_loss is not None or self.forward is not default_forward:
            return step  # the user's function may depend on values, which a graph can't
        if not isinstance(batches, ShuffledBatches) or not batches.targets.is_cuda:
            return step
        with torch.no_grad():
            outputs, targets = self.forward(self.model, (batches.inputs[:2], batches.targets[:2]))
        if not has_one_label_each(outputs, targets):
            return step
        check_labels(outputs, batches.targets, name="the data")
        return Graphs(partial(step, check=False), name="the training step", alters=True)

    def step(self, optimizer: torch.optim.Optimizer, batch: Any, *, check: bool = True) -> tuple[Tensor, int]:
        """Forward, backward and update; the loss and the number of samples."""
        loss, size = self.loss(batch, check)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach(), size

    def loss(self, batch: Any, check: bool) -> tuple[Tensor, int]:
        """The loss on the targets, with the distillation loss if there is a teacher, and the number of samples."""
        run, user_loss = self.forward, self.user_loss
        if check and not self._tried and (self.teacher or user_loss or run is not default_forward):  # the first time
            self._tried.append(True)
            run = partial(unchanged, run, name="the network (or forward)")
            user_loss = None if user_loss is None else partial(unchanged, user_loss, name="loss=")
        with self.autocast():
            outputs, targets = run(self.model, batch)
        outputs = in_fp32(outputs)
        # Checking labels makes the CPU wait for the GPU, and can't be captured.
        hard = target_loss(user_loss, outputs, targets) if check else F.cross_entropy(outputs, targets)
        size = max(count_samples(batch), 1)
        if self.teacher is None:
            return hard, size
        with torch.no_grad(), self.autocast():
            teacher_outputs, _ = self.forward(self.teacher, batch)
        classes = self.user_loss is None or are_class_labels(logits_of(outputs), targets)
        soft = distillation_loss(outputs, in_fp32(teacher_outputs), self.recipe.temperature, classes=classes)
        return (1 - self.recipe.distill) * hard + self.recipe.distill * soft, size

    def autocast(self) -> torch.autocast:
        """Autocast to the recipe's precision; without a cache, from which a captured step would take old weights."""
        enabled = self.recipe.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)


def _check_targets_are_no_maps(batch: Any) -> None:
    """Raise an error if targets are maps, which would have to be shifted and mirrored with the inputs.

    Raises:
        DataError: If a target has the height and width of the inputs.
    """
    inputs, targets = batch[0], tensors_of(batch[1:2])
    if any(x.dim() > 2 and x.shape[-2:] == inputs.shape[-2:] for x in targets):
        raise DataError(
            "augment=True shifts and mirrors inputs alone, and the targets are maps; augment both together in a "
            "DataLoader, or give a function of (inputs, generator) that moves no pixels"
        )
