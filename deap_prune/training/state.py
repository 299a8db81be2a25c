"""Around the training steps: shuffled batches, epoch records, averaged weights, and the saved state."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from deap_prune.data.batches import Data, check_dense, is_tensor_pair, iterable
from deap_prune.errors import DataError, ModelError, RunError
from deap_prune.files import make_folder, parse_json, write_bytes


@dataclass(frozen=True)
class EpochRecord:
    """Loss and accuracy of one epoch of :func:`deap_prune.finetune`.

    Attributes:
        epoch: Number of the epoch, from 1.
        train_loss: Mean training loss of the epoch (cross-entropy in nats, or your loss). The weights change meanwhile.
        validation_accuracy: Accuracy after the epoch, in [0, 1]; None without validation data or without one label a
            sample.
        lr: Learning rate of the last batch.
        seconds: Wall-clock time, validation included.
        validation_loss: Mean loss on the validation data after the epoch; None without validation data.
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
        validation = "" if self.validation_loss is None else f", validation {self.validation_loss:.4f}"
        return f"loss {self.train_loss:.4f}{validation}"


def best_epoch(records: Sequence[EpochRecord], *, by_loss: bool = False) -> EpochRecord | None:
    """The first epoch with the best validation accuracy, or None without validation data.

    The network has the last epoch's weights, whichever epoch is best.

    Args:
        records: Of :func:`deap_prune.finetune`.
        by_loss: Compare by the validation loss, as ``patience`` does with your own loss. Without an accuracy the loss
            is compared in any case.
    """
    accuracies = [(r.validation_accuracy, r) for r in records if r.validation_accuracy is not None]
    measured = [(r.validation_loss, r) for r in records if r.validation_loss is not None]
    losses = [(-loss, r) for loss, r in measured if math.isfinite(loss)]
    values = losses if by_loss or not accuracies else accuracies
    return max(values, key=lambda pair: pair[0])[1] if values else None


@dataclass(frozen=True)
class ShuffledBatches:
    """Two tensors in shuffled batches. Their sizes differ by at most one: no batch is too small for batch norm."""

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


def shuffled_batches(data: Data, size: int, generator: torch.Generator, device: torch.device) -> Iterable[Any]:
    """Two tensors as shuffled batches; an iterable of batches as it is.

    On CUDA the tensors are moved to the device if they fit into a quarter of its free memory.

    Raises:
        DataError: If the lengths of the tensors differ or are 0.
    """
    if isinstance(data, Tensor):
        raise DataError("the data to train on is one tensor; give (inputs, targets), or an iterable of such batches")
    if not is_tensor_pair(data):
        return iterable(data, "the training data")
    check_dense(data, "the training data")
    inputs, targets = data
    if len(inputs) != len(targets) or not len(targets):
        raise DataError(f"{len(inputs)} inputs and {len(targets)} targets to train on; give equally many, at least 1")
    size_in_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (inputs, targets))
    if device.type == "cuda" and 4 * size_in_bytes < torch.cuda.mem_get_info(device)[0]:
        inputs, targets = inputs.to(device), targets.to(device)
    return ShuffledBatches(inputs, targets, size, generator)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate. A tensor is changed in place, because a captured step reads it there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class WeightAverage:
    """Exponential moving average of a network's weights and floating-point buffers (Polyak and Juditsky 1992).

    The decay warms up as min(decay, (1 + steps) / (10 + steps)), so that the first steps lose their weight. Buffers of
    other types have their newest values.

    Args:
        model: The network in training.
        decay: Weight of the old average in an update, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.steps = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - decay)
            else:
                self.tensors[name].copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the averaged weights inside the ``with`` block."""
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
    average: WeightAverage | None,
    generator: torch.Generator,
    metadata: Mapping[str, Any],
) -> None:
    """Write the state of a training to one safetensors file, which replaces the old file in one step.

    Args:
        path: The file.
        model: The network; its weights and buffers are stored.
        optimizer: Its state is stored for each parameter.
        average: The averaged weights, or None.
        generator: Random numbers of the order and the augmentation.
        metadata: JSON values: the settings and the epoch records.
    """
    from safetensors.torch import save

    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.tensors.items()}
    tensors |= {"random.order": generator.get_state(), "random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    text = json.dumps({**metadata, "averaged steps": 0 if average is None else average.steps})
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    make_folder(path.parent, may_be_link=True)
    write_bytes(path, save(plain, {"about": text, "sha256": _checksum(text, plain)}))


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the metadata and of all tensors, by name."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Metadata(BaseModel):
    """What a training state holds beside tensors."""

    settings: dict[str, Any]
    records: list[EpochRecord]
    averaged_steps: Annotated[int, Field(ge=0, alias="averaged steps")]


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    generator: torch.Generator,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Restore the state that :func:`save_state` wrote, in place.

    Args:
        path: The file.
        model: A network of the same architecture.
        optimizer: A new optimizer of its parameters.
        average: A new average of its weights, or None.
        generator: Random numbers of the order and the augmentation.
        settings: Must equal ``metadata["settings"]`` in the file.

    Returns:
        The metadata of the file.

    Raises:
        RunError: If the file can't be read, is damaged (its checksum differs), or belongs to a training with other
            settings or of another network.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if _checksum(about["about"], tensors) != about.get("sha256"):
            raise ValueError("its checksum differs")
        metadata: dict[str, Any] = parse_json(about["about"], finite=False)
        Metadata.model_validate(metadata)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"'{path}' can't be read as the state of a training: {error}; remove it to start again"
        ) from error
    differing = [name for name, value in settings.items() if metadata["settings"].get(name) != value]
    if differing:
        raise RunError(
            f"'{path}' belongs to a training with another {', '.join(differing)}; give the same, or another file"
        )
    try:
        model.load_state_dict(_part(tensors, "model."))
    except RuntimeError as error:
        raise RunError(f"'{path}' belongs to another network: {str(error).splitlines()[-1].strip()}") from error
    try:
        _restore(tensors, optimizer, average, generator)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"'{path}' belongs to another training: {error}; remove it to start again") from error
    if average is not None:
        average.steps = metadata["averaged steps"]
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return metadata


def _restore(
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    generator: torch.Generator,
) -> None:
    """Set optimizer, averaged weights and random numbers to those stored."""
    stored: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        number, _, key = name.partition(".")
        stored.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": stored})
    if average is not None:
        for name, value in _part(tensors, "average.").items():
            average.tensors[name].copy_(value)
    generator.set_state(tensors["random.order"])
    torch.set_rng_state(tensors["random.cpu"])


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def reset_weights(model: nn.Module) -> None:
    """Reset all weights by each module's ``reset_parameters``.

    Raises:
        ModelError: If a module with weights has no such method; no weight is changed then.
    """
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None and not hasattr(module, "reset_parameters"):
            raise ModelError(
                f"'{name}' ({type(module).__name__}) has weights and no reset_parameters(); add the method, "
                "or train a newly built network without from_scratch"
            )
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            cast(Callable[[], None], module.reset_parameters)()
