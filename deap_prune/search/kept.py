"""What a run that was started from Python keeps in its folder, so that commands can open it.

``dense.safetensors`` holds the network's weights, ``data.safetensors`` calibration and validation tensors (only on
request). The network's class is not stored: a factory makes it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.config import ModelConfig
from deap_prune.data import Splits
from deap_prune.data.batches import is_tensor_pair
from deap_prune.errors import ConfigError, DataError, RunError
from deap_prune.files import remove_file, write_bytes
from deap_prune.search.lock import KEPT_MARK
from deap_prune.structure.slim import unwrap
from deap_prune.task import Task
from deap_prune.weights import build_model

WEIGHTS, DATA = "dense.safetensors", "data.safetensors"
MOST_BYTES = 512 * 2**20
"""Size limit of weights that are kept without being asked for."""


class Keeper:
    """Writes weights, and data if asked, into the run folder when a run begins.

    Args:
        folder: The run folder.
        task: Network and data; data as lists of batches or pairs of tensors.
        data: Whether calibration and validation tensors are kept.

    Raises:
        DataError: If data is to be kept that is not (inputs, targets) tensors.
    """

    def __init__(self, folder: Path, task: Task, *, data: bool) -> None:
        self._folder, self._task = folder, task
        self._tensors = _flat(task) if data else {}

    def write(self, *, new: bool) -> None:
        """Write the files that are missing, with a warning if the weights are not kept.

        Args:
            new: Whether the run is new: what a run left that was killed before it began is removed then.
        """
        from safetensors.torch import save

        for name, tensors in ((WEIGHTS, self._weights()), (DATA, self._tensors)):
            if new:
                remove_file(self._folder / name)
            if tensors and not (self._folder / name).exists():
                plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
                write_bytes(self._folder / name, save(plain, metadata=KEPT_MARK))

    def _weights(self) -> Mapping[str, Tensor]:
        """The state of the network if it is small and consists of tensors alone; else nothing, with a warning."""
        state = unwrap(self._task.model).state_dict()
        reason = "its state holds objects that are no tensors"
        if all(isinstance(value, Tensor) for value in state.values()):
            size = sum(t.numel() * t.element_size() for t in state.values())
            if size <= MOST_BYTES:
                return state
            reason = f"they have {size / 2**20:,.0f} MB, and at most {MOST_BYTES / 2**20:,.0f} are kept"
        warnings.warn(
            f"the weights of the network are not kept in '{self._folder}': {reason}; commands on this run need "
            "--set model.weights=FILE",
            stacklevel=2,
        )
        return {}


def checked_factory(factory: str, model: nn.Module) -> ModelConfig:
    """The factory as a config names it, if it makes networks with the model's parameters.

    Raises:
        ConfigError: If it can't be imported, fails, or makes another network.
    """
    config = ModelConfig(factory=factory)
    if factory.startswith("__main__:"):
        raise ConfigError(f"factory '{factory}' is in the program itself, where commands can't import it from")
    with torch.random.fork_rng():
        made = build_model(config)
    try:
        made.load_state_dict(unwrap(model).state_dict())
    except RuntimeError as error:
        raise ConfigError(f"factory '{factory}' makes another network: {' '.join(str(error).split())[:300]}") from error
    return config


def kept_task(folder: Path, config: ModelConfig | None) -> tuple[Task, Splits]:
    """Network and data of a run that was started from Python, and its images as splits without training images.

    Args:
        folder: The run folder.
        config: The network's factory, from config.yaml or an override; weights default to those in the folder.

    Raises:
        RunError: If the factory or the data is missing (the message names the remedy), or a file is damaged.
        PruneError: If the network can't be made.
    """
    missing = {
        "its network's factory: give --model module:function": config is None,
        "its data: dp.search(..., keep_data=True) keeps it": not (folder / DATA).is_file(),
    }
    if config is None or any(missing.values()):
        lacking = "; ".join(text for text, lacks in missing.items() if lacks)
        raise RunError(
            f"'{folder}' was started from Python and lacks {lacking}. In Python result.slim(solution) needs neither; "
            "dp.resume(folder, model, example_inputs, calibration=..., validation=...) gives a result again"
        )
    if config.weights is None:
        if not (folder / WEIGHTS).is_file():
            raise RunError(
                f"'{folder}' does not hold the weights of its network, which are kept up to {MOST_BYTES // 2**20} MB; "
                "give them: --set model.weights=FILE"
            )
        config = config.model_copy(update={"weights": str(folder / WEIGHTS)})
    model = build_model(config)
    example, calibration, validation = _read(folder / DATA)
    pairs = _joined(calibration), _joined(validation)
    classes = 0 if pairs[0][1].is_floating_point() else int(max(pair[1].max() for pair in pairs)) + 1

    def no_training_images() -> tuple[Tensor, Tensor]:
        raise RunError(f"'{folder}' was started from Python and keeps no training images: give --data FOLDER")

    return Task(model, example, calibration, validation), Splits(*pairs, no_training_images, None, classes)


def _flat(task: Task) -> dict[str, Tensor]:
    """All tensors of the data by names: ``calibration/0`` of a pair, ``calibration/7/0`` of batches."""
    tensors: dict[str, Tensor] = {}
    for name, data in (("calibration", task.calibration), ("validation", task.validation)):
        batches: Any = {name: data} if is_tensor_pair(data) else {f"{name}/{i}": b for i, b in enumerate(data)}
        for key, batch in batches.items():
            if not is_tensor_pair(batch):
                raise DataError(f"keep_data=True keeps (inputs, targets) tensors; {name} has a {type(batch).__name__}")
            tensors |= {f"{key}/0": batch[0], f"{key}/1": batch[1]}
    if not isinstance(task.example_inputs, Tensor) or task.forward is not None or task.loss is not None:
        raise DataError("keep_data=True is for networks of one input tensor, without forward= and loss=")
    return tensors | {"example": task.example_inputs}


def _read(path: Path) -> tuple[Tensor, Any, Any]:
    """Example inputs, calibration and validation data from data.safetensors."""
    from safetensors.torch import load_file

    try:
        tensors = load_file(str(path))
        data: list[Any] = []
        for name in ("calibration", "validation"):
            if f"{name}/0" in tensors:
                data.append((tensors[f"{name}/0"], tensors[f"{name}/1"]))
            else:
                count = sum(key.startswith(f"{name}/") for key in tensors) // 2
                data.append([(tensors[f"{name}/{i}/0"], tensors[f"{name}/{i}/1"]) for i in range(count)])
        return tensors["example"], data[0], data[1]
    except Exception as error:
        raise RunError(f"'{path}' can't be read as kept data: {error!r}") from error


def _joined(data: Any) -> tuple[Tensor, Tensor]:
    """A pair of tensors; of batches with inputs of different shapes the first batch."""
    if is_tensor_pair(data):
        return data
    if len({batch[0].shape[1:] for batch in data}) > 1:
        return data[0][0], data[0][1]
    return torch.cat([batch[0] for batch in data]), torch.cat([batch[1] for batch in data])
