"""Training a network in place, with or without a teacher, and its accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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

from deap_prune.batches import Data, Forward, check_labels, default_forward, resolve_device, stream
from deap_prune.data import augment as shift_and_mirror
from deap_prune.errors import ConfigError, DataError, ModelError
from deap_prune.graphs import Graphs
from deap_prune.recipe import Recipe
from deap_prune.training import (
    Average,
    EpochRecord,
    Shuffled,
    best_epoch,
    load_state,
    reset,
    save_state,
    set_rate,
    shuffled,
)

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""A batch of inputs and a generator on the CPU to inputs of the same shape."""

Step = Callable[[Any], tuple[Tensor, int]]
"""A batch to its loss and size; the weights have moved."""

__all__ = ["Augment", "EpochRecord", "Recipe", "accuracy", "best_epoch", "finetune"]


def finetune(
    model: nn.Module,
    train: Data,
    validation: Data | None = None,
    *,
    epochs: int,
    recipe: Recipe | None = None,
    teacher: nn.Module | None = None,
    augment: bool | Augment = False,
    from_scratch: bool = False,
    state: str | Path | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    forward: Forward | None = None,
    progress: bool = True,
) -> list[EpochRecord]:
    """Train a network in place; it ends with the weights of the last epoch, in eval mode, on its own device.

    With a teacher the loss is (1 - a) CE(z, y) + a T^2 KL(softmax(t / T) || softmax(z / T)), where a is
    ``recipe.distill``, T is ``recipe.temperature`` and z and t are the logits of network and teacher (Hinton
    et al., "Distilling the Knowledge in a Neural Network", 2015). On a CPU a seed gives equal weights again;
    the global random state is left as it was.

    Args:
        model: The network; parameters with ``requires_grad=False`` stay as they are, and statistics of frozen norms.
        train: Float inputs (N, ...) and int64 targets (N,). Two tensors are shuffled anew for each epoch into
            batches of nearly equal size.
        validation: What to measure the accuracy on after each epoch. It decides nothing but when to stop, and that only
            with ``recipe.patience``.
        epochs: How often to go through ``train``.
        recipe: Optimizer, schedule and distillation; default ``Recipe()``.
        teacher: A network with the same classes, left unchanged.
        augment: True for random shifts and mirror images (see deap_prune.data.augment), or a function of
            inputs and generator.
        from_scratch: First reset all weights and buffers by each module's ``reset_parameters``.
        state: File (safetensors) to keep after every epoch; if it is there, training goes on from it, on a CPU as if
            it had never stopped.
        device: Where to train; "auto" is CUDA where there is any, else the CPU.
        seed: Of the resetting, the order, the augmentation and dropout.
        forward: Model and batch to (logits, targets); default: ``model(inputs)``, batch (inputs, targets).
        progress: Show a bar with loss and accuracy.

    Examples:
        >>> records = dp.finetune(small, data["calibration"], epochs=2, teacher=model, progress=False)
        >>> [record.epoch for record in records], small.training
        ([1, 2], False)

    Returns:
        One record for each epoch.

    Raises:
        DataError: If there is no batch, targets do not fit to inputs or network, or there is no such device.
        ModelError: If nothing can be trained or reset, the teacher does not fit, or the loss is not finite.
        ConfigError: If the epochs or the validation data do not fit the recipe.
        RunError: If ``state`` is of another training.
    """
    recipe = recipe or Recipe()
    if epochs < 1 or recipe.warmup_epochs >= epochs:
        raise ConfigError(
            f"epochs={epochs} with warmup_epochs={recipe.warmup_epochs}; give at least 1 epoch, "
            "and more than the warm-up takes"
        )
    if recipe.patience is not None and validation is None:
        raise ConfigError(f"patience={recipe.patience} follows the validation accuracy; give validation data")
    if teacher is model:
        raise ModelError("the teacher is the network itself; give the unpruned one (copy.deepcopy before pruning)")
    place = resolve_device(device)
    generator = torch.Generator().manual_seed(seed)
    change = shift_and_mirror if augment is True else augment or None
    trainer = _Trainer(model, teacher, recipe, epochs, forward or default_forward, change, place, generator)
    cuda = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(cuda), _placed(place, model, keep_modes=False), _placed(place, teacher):
        torch.manual_seed(seed)
        if from_scratch:
            reset(model)
        settings = {**asdict(recipe), "epochs": epochs, "seed": seed, "from_scratch": from_scratch}
        settings |= {"teacher": teacher is not None, "augment": change is not None}
        kept = None if state is None else (Path(state), settings)
        return trainer.run(shuffled(train, recipe.batch_size, generator, place), validation, kept, progress)


def accuracy(
    model: nn.Module,
    data: Data,
    *,
    batch_size: int = 500,
    device: str | torch.device = "auto",
    forward: Forward | None = None,
) -> float:
    """Share of images, 0 .. 1, whose largest logit is the target's (top-1), in eval mode.

    The network is left in the modes and on the device that it came in.

    Args:
        model: The network.
        data: Inputs (N, ...) and targets (N,), or batches of them.
        batch_size: Images a batch, when two tensors are given.
        device: Where to compute; "auto" is CUDA where there is any, else the CPU.
        forward: Model and batch to (logits, targets); default: ``model(inputs)``, batch (inputs, targets).

    Raises:
        DataError: If there is no batch, targets do not fit to inputs or network, or there is no such device.
        ModelError: If the network does not give logits (N, classes).
    """
    place = resolve_device(device)
    hits = count = 0
    with _placed(place, model), torch.no_grad():
        for batch in stream(data, name="the data for the accuracy", batch_size=batch_size, device=place):
            logits, targets = _logits(forward or default_forward, model, batch)
            hits += int((logits.argmax(1) == targets).sum())
            count += len(targets)
    return hits / count


@dataclass(frozen=True)
class _Trainer:
    """What does not change from batch to batch."""

    model: nn.Module
    teacher: nn.Module | None
    recipe: Recipe
    epochs: int
    forward: Forward
    augment: Augment | None
    place: torch.device
    generator: torch.Generator

    def run(
        self,
        batches: Iterable[Any],
        validation: Data | None,
        kept: tuple[Path, Mapping[str, Any]] | None,
        progress: bool,
    ) -> list[EpochRecord]:
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
                score = None
                if validation is not None:
                    with average.shown() if average else nullcontext():
                        score = accuracy(self.model, validation, device=self.place, forward=self.forward)
                lr = float(optimizer.param_groups[0]["lr"])
                records.append(EpochRecord(epoch + 1, loss, score, lr, time.perf_counter() - start))
                if kept is not None:
                    about = {"settings": kept[1], "records": [asdict(r) for r in records]}
                    save_state(kept[0], self.model, optimizer, average, self.generator, about)
                note = f"loss {loss:.4f}" + ("" if score is None else f", accuracy {score:.2%}")
                bar.update(task, completed=epoch + 1, note=note)
        if average is not None:
            self.model.load_state_dict(average.tensors)
        for parameter in parameters:
            parameter.data = parameter.data.contiguous()
        return records

    def is_patient_no_more(self, records: Sequence[EpochRecord]) -> bool:
        best = best_epoch(records)
        return (
            self.recipe.patience is not None and best is not None and len(records) - best.epoch >= self.recipe.patience
        )

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
        if not isinstance(batches, Shuffled) or not batches.targets.is_cuda or self.forward is not default_forward:
            return partial(self.step, optimizer)
        with torch.no_grad():
            logits, _ = _logits(self.forward, self.model, (batches.inputs[:2], batches.targets[:2]))
        check_labels(logits, batches.targets, name="the data")
        return Graphs(partial(self.step, optimizer, check=False), name="the training step", alters=True)

    def step(self, optimizer: torch.optim.Optimizer, batch: Any, *, check: bool = True) -> tuple[Tensor, int]:
        """Forward, backward, and the weights' change; the loss, and how many images it averages."""
        loss, size = self.loss(batch, check)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach(), size

    def loss(self, batch: Any, check: bool) -> tuple[Tensor, int]:
        """Cross-entropy, with the teacher's part if there is one, and how many images it averages."""
        with self.autocast():
            logits, targets = _logits(self.forward, self.model, batch, check)
        logits = logits.float()
        hard = F.cross_entropy(logits, targets)
        if self.teacher is None:
            return hard, len(targets)
        with torch.no_grad(), self.autocast():
            wanted, _ = _logits(self.forward, self.teacher, batch, check)
        if wanted.shape != logits.shape:
            raise ModelError(
                f"the teacher gives {tuple(wanted.shape)} and the network {tuple(logits.shape)}; give a "
                "teacher with the same classes"
            )
        t, weight = self.recipe.temperature, self.recipe.distill
        student, master = F.log_softmax(logits / t, 1), F.log_softmax(wanted.float() / t, 1)
        soft = F.kl_div(student, master, reduction="batchmean", log_target=True) * t**2
        return (1 - weight) * hard + weight * soft, len(targets)

    def autocast(self) -> torch.autocast:
        # No casts are remembered: a captured step would go on using them after the weights have changed.
        enabled = self.recipe.precision == "bf16"
        return torch.autocast(self.place.type, torch.bfloat16, enabled=enabled, cache_enabled=False)


def _logits(forward: Forward, model: nn.Module, batch: Any, check: bool = True) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and int64 targets (N,) in 0 .. classes - 1; looking at labels makes a GPU wait."""
    logits, targets = forward(model, batch)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(targets):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"the network gives {shape} for {len(targets)} targets; give logits (N, classes), if need be "
            "by forward=, a function of model and batch to (logits, targets)"
        )
    if targets.dtype != torch.int64 or targets.ndim != 1:
        raise DataError(f"targets are {targets.dtype} {tuple(targets.shape)}; give torch.int64 (N,)")
    if check:
        check_labels(logits, targets, name="the data")
    return logits, targets


@contextmanager
def _placed(place: torch.device, model: nn.Module | None, *, keep_modes: bool = True) -> Iterator[None]:
    """Bring a network to a device in eval mode; afterwards home again, in its old modes or in eval mode."""
    if model is None:
        yield
        return
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.to(place).eval()
        yield
    finally:
        model.to(home).eval()
        if keep_modes:
            for module, mode in modes:
                module.training = mode
