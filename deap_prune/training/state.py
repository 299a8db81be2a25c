"""What training needs around its steps: batches, records, averaged weights, and the state that it goes on from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from deap_prune.data.batches import Data
from deap_prune.errors import DataError, ModelError, RunError


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of finetune.

    Attributes:
        epoch: From 1.
        train_loss: Mean over the images of the epoch, while the weights changed (cross-entropy in nats, or your loss).
        validation_accuracy: In 0 .. 1, after the epoch; None without validation data, or if samples have no label each.
        lr: Learning rate of the last batch.
        seconds: Wall-clock time, validation included.
        validation_loss: Mean over the validation data, after the epoch; None without.
    """

    epoch: int
    train_loss: float
    validation_accuracy: float | None
    lr: float
    seconds: float
    validation_loss: float | None = None

    def __str__(self) -> str:
        if self.validation_accuracy is not None:
            return f"loss {self.train_loss:.4f}, accuracy {self.validation_accuracy:.2%}"
        found = "" if self.validation_loss is None else f", validation {self.validation_loss:.4f}"
        return f"loss {self.train_loss:.4f}{found}"


def best_epoch(records: Sequence[EpochRecord], *, by_loss: bool = False) -> EpochRecord | None:
    """The epoch of the best validation accuracy, the first of equals; None without validation data.

    For a look: the network has the last epoch's weights.

    Args:
        records: Of :func:`finetune`.
        by_loss: The least validation loss counts, as it does where there is no accuracy; what ``patience`` follows with
            a loss of your own.
    """
    accuracies = [(r.validation_accuracy, r) for r in records if r.validation_accuracy is not None]
    measured = [(r.validation_loss, r) for r in records if r.validation_loss is not None]
    losses = [(-loss, r) for loss, r in measured if math.isfinite(loss)]
    values = losses if by_loss or not accuracies else accuracies
    return max(values, key=lambda pair: pair[0])[1] if values else None


@dataclass(frozen=True)
class Shuffled:
    """Two tensors in batches whose sizes differ by one at most, so that none is too small for batch norm."""

    inputs: Tensor
    targets: Tensor
    size: int
    generator: torch.Generator

    def __len__(self) -> int:
        return math.ceil(len(self.targets) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.targets), generator=self.generator).to(self.inputs.device)
        for indices in order.tensor_split(len(self)):
            yield self.inputs[indices], self.targets[indices.to(self.targets.device)]


def shuffled(data: Data, size: int, generator: torch.Generator, place: torch.device) -> Iterable[Any]:
    """Two tensors in shuffled batches, on the device if a quarter of its free memory holds them; batches as they are.

    Raises:
        DataError: If the tensors' lengths differ, or are 0.
    """
    if not isinstance(data, (tuple, list)) or len(data) != 2 or not all(isinstance(d, Tensor) for d in data):
        return data
    inputs, targets = data
    if len(inputs) != len(targets) or not len(targets):
        raise DataError(
            f"{len(inputs)} inputs and {len(targets)} targets to train on; give as many of each, at least 1"
        )
    size_in_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (inputs, targets))
    if place.type == "cuda" and 4 * size_in_bytes < torch.cuda.mem_get_info(place)[0]:
        inputs, targets = inputs.to(place), targets.to(place)
    return Shuffled(inputs, targets, size, generator)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Change the learning rate, in place where it is a tensor: a captured step reads it there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class Average:
    """Exponential moving average of a network's weights and floating-point buffers; other buffers are the newest.

    Polyak and Juditsky 1992; the decay warms up as min(decay, (1 + steps) / (10 + steps)), so that the first steps are
    forgotten.

    Args:
        model: The network that is trained.
        decay: Share of the old average that stays at a step, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.steps = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - decay)
            else:
                self.tensors[name].copy_(tensor)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The network has the averaged weights, for a while."""
        current = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            self.model.load_state_dict(current)


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    generator: torch.Generator,
    about: Mapping[str, Any],
) -> None:
    """Write all that training goes on from as one safetensors file, in one step; no pickle.

    Args:
        path: The file.
        model: Its weights.
        optimizer: Its state, parameter by parameter.
        average: Averaged weights, if there are any.
        generator: Of order and augmentation.
        about: JSON values: what the training is, and its records.
    """
    from safetensors.torch import save_file

    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.tensors.items()}
    tensors |= {"random.order": generator.get_state(), "random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    note = json.dumps({**about, "averaged steps": 0 if average is None else average.steps})
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, str(beside), {"about": note})
    beside.replace(path)


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    generator: torch.Generator,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Set everything to what :func:`save_state` wrote.

    Args:
        path: The file.
        model: As then; so are optimizer, average and generator.
        optimizer: Fresh.
        average: Fresh.
        generator: Any.
        settings: ``about["settings"]`` must be equal.

    Returns:
        ``about``.

    Raises:
        RunError: If the file can't be read, or is of another training.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"'{path}' can't be read as the state of a training: {error}; remove it to begin anew"
        ) from error
    differing = [name for name, value in settings.items() if about["settings"].get(name) != value]
    if differing:
        raise RunError(f"'{path}' is of a training with another {', '.join(differing)}; give the same, or another file")
    try:
        model.load_state_dict(_part(tensors, "model."))
    except RuntimeError as error:
        raise RunError(f"'{path}' is of another network: {str(error).splitlines()[-1].strip()}") from error
    stored: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        number, _, key = name.partition(".")
        stored.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": stored})
    if average is not None:
        for name, value in _part(tensors, "average.").items():
            average.tensors[name].copy_(value)
        average.steps = about["averaged steps"]
    generator.set_state(tensors["random.order"])
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return about


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def reset(model: nn.Module) -> None:
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
