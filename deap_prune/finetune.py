"""Training a network in place, with or without a teacher, and its accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import length_hint
from typing import Any, cast

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.batches import Data, Forward, check_labels, default_forward, resolve_device, to_batches
from deap_prune.data import augment as shift_and_mirror
from deap_prune.errors import ConfigError, DataError, ModelError
from deap_prune.recipe import Recipe

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""A batch of inputs and a generator on the CPU to inputs of the same shape."""

__all__ = ["Augment", "EpochRecord", "Recipe", "accuracy", "finetune"]


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of finetune.

    Attributes:
        epoch: From 1.
        train_loss: Mean over the images of the epoch, while the weights changed, in nats.
        validation_accuracy: In 0 .. 1, after the epoch; None without validation data.
        lr: Learning rate of the last batch.
        seconds: Wall-clock time, validation included.
    """

    epoch: int
    train_loss: float
    validation_accuracy: float | None
    lr: float
    seconds: float


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
        model: The network; parameters with ``requires_grad=False`` stay as they are.
        train: Float inputs (N, ...) and int64 targets (N,). Two tensors are shuffled anew for each epoch into
            batches of nearly equal size.
        validation: What to measure the accuracy on after each epoch. No decision rests on it.
        epochs: How often to go through ``train``.
        recipe: Optimizer, schedule and distillation; default ``Recipe()``.
        teacher: A network with the same classes, left unchanged.
        augment: True for random shifts and mirror images (see deap_prune.data.augment), or a function of
            inputs and generator.
        from_scratch: First reset all weights and buffers by each module's ``reset_parameters``.
        device: Where to train; "auto" is CUDA where there is any, else the CPU.
        seed: Of the resetting, the order, the augmentation and dropout.
        forward: Model and batch to (logits, targets); default: ``model(inputs)``, batch (inputs, targets).
        progress: Show a bar with loss and accuracy.

    Returns:
        One record for each epoch.

    Raises:
        DataError: If there is no batch, targets do not fit to inputs or network, or there is no such device.
        ModelError: If nothing can be trained or reset, the teacher does not fit, or the loss is not finite.
        ConfigError: If the epochs do not fit the recipe.
    """
    recipe = recipe or Recipe()
    if epochs < 1 or recipe.warmup_epochs >= epochs:
        raise ConfigError(
            f"epochs={epochs} with warmup_epochs={recipe.warmup_epochs}; give at least 1 epoch, "
            "and more than the warm-up takes"
        )
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
            _reset(model)
        return trainer.run(_shuffled(train, recipe.batch_size, generator), validation, progress)


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
    batches = to_batches(data, name="the data for the accuracy", batch_size=batch_size, device=place)
    with _placed(place, model), torch.no_grad():
        for batch in batches:
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

    def run(self, batches: Iterable[Any], validation: Data | None, progress: bool) -> list[EpochRecord]:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.data = parameter.data.contiguous()  # see loss
        if not parameters:
            raise ModelError("no parameter has requires_grad=True; call model.requires_grad_(True) to train it")
        optimizer = self.recipe.make_optimizer(parameters)
        records: list[EpochRecord] = []
        columns = TextColumn("epoch {task.completed:.1f}/{task.total}"), BarColumn(), TimeRemainingColumn()
        console = Console(stderr=True)
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, disable=not progress) as bar:
            task = bar.add_task("", total=self.epochs, note="")
            for epoch in range(self.epochs):
                start = time.perf_counter()
                loss = self.epoch(epoch, batches, optimizer, lambda done: bar.update(task, completed=done))
                score = None
                if validation is not None:
                    score = accuracy(self.model, validation, device=self.place, forward=self.forward)
                lr = optimizer.param_groups[0]["lr"]
                records.append(EpochRecord(epoch + 1, loss, score, lr, time.perf_counter() - start))
                note = f"loss {loss:.4f}" + ("" if score is None else f", accuracy {score:.2%}")
                bar.update(task, completed=epoch + 1, note=note)
        return records

    def epoch(
        self,
        epoch: int,
        batches: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        report: Callable[[float], None],
    ) -> float:
        """Go through the batches once; the mean loss."""
        self.model.train()
        steps, count, total = length_hint(batches), 0, torch.zeros((), device=self.place)
        for step, batch in enumerate(batches):
            done = epoch + ((step + 0.5) / steps if steps else 0.5)
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.rate(done, self.epochs)
            loss, size = self.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * size
            count += size
            report(done)
        if not count:
            raise DataError(f"no batch in epoch {epoch + 1}; give tensors or a DataLoader, not a used generator")
        mean = float(total) / count
        if not math.isfinite(mean):
            raise ModelError(
                f"the loss is {mean} in epoch {epoch + 1} with lr={self.recipe.lr}; try a tenth, and see "
                "that inputs and weights are finite"
            )
        return mean

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        """Cross-entropy, with the teacher's part if there is one, and how many images it averages."""
        # Contiguous: torch 2.15's oneDNN corrupts memory in some channels-last weight gradients (odd widths).
        batch = tree_map(lambda leaf: leaf.to(self.place).contiguous() if isinstance(leaf, Tensor) else leaf, batch)
        if self.augment:
            batch = (self.augment(batch[0], self.generator), *batch[1:])
        logits, targets = _logits(self.forward, self.model, batch)
        hard = F.cross_entropy(logits, targets)
        if self.teacher is None:
            return hard, len(targets)
        with torch.no_grad():
            wanted, _ = _logits(self.forward, self.teacher, batch)
        if wanted.shape != logits.shape:
            raise ModelError(
                f"the teacher gives {tuple(wanted.shape)} and the network {tuple(logits.shape)}; give a "
                "teacher with the same classes"
            )
        t, weight = self.recipe.temperature, self.recipe.distill
        student, master = F.log_softmax(logits / t, 1), F.log_softmax(wanted / t, 1)
        soft = F.kl_div(student, master, reduction="batchmean", log_target=True) * t**2
        return (1 - weight) * hard + weight * soft, len(targets)


@dataclass(frozen=True)
class _Shuffled:
    """Two tensors in batches whose sizes differ by one at most, so that none is too small for batch norm."""

    inputs: Tensor
    targets: Tensor
    size: int
    generator: torch.Generator

    def __len__(self) -> int:
        return math.ceil(len(self.targets) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.targets), generator=self.generator)
        for indices in order.tensor_split(len(self)):
            yield self.inputs[indices], self.targets[indices]


def _shuffled(data: Data, size: int, generator: torch.Generator) -> Iterable[Any]:
    """Two tensors in shuffled batches; batches as they are."""
    if not isinstance(data, (tuple, list)) or len(data) != 2 or not all(isinstance(d, Tensor) for d in data):
        return data
    inputs, targets = data
    if len(inputs) != len(targets) or not len(targets):
        raise DataError(
            f"{len(inputs)} inputs and {len(targets)} targets to train on; give as many of each, at least 1"
        )
    return _Shuffled(inputs, targets, size, generator)


def _logits(forward: Forward, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and int64 targets (N,) in 0 .. classes - 1."""
    logits, targets = forward(model, batch)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(targets):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"the network gives {shape} for {len(targets)} targets; give logits (N, classes), if need be "
            "by forward=, a function of model and batch to (logits, targets)"
        )
    if targets.dtype != torch.int64 or targets.ndim != 1:
        raise DataError(f"targets are {targets.dtype} {tuple(targets.shape)}; give torch.int64 (N,)")
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


def _reset(model: nn.Module) -> None:
    """Start all weights anew; nothing is touched if some cannot be."""
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None and not hasattr(module, "reset_parameters"):
            raise ModelError(
                f"'{name}' ({type(module).__name__}) has weights and no reset_parameters(); add the method, "
                "or train a newly built network without from_scratch"
            )
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            cast(Callable[[], None], module.reset_parameters)()
