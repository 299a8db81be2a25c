"""From a config to the network and the data that it names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deap_prune.config import Config, load_config
from deap_prune.data import Splits, load_data
from deap_prune.errors import ConfigError
from deap_prune.search.kept import kept_task
from deap_prune.task import Task
from deap_prune.user_modules import import_modules
from deap_prune.weights import build_model

MOST_NUMBERS = 10**8
"""Size limit of the example inputs that a config describes."""


@dataclass(frozen=True, eq=False)
class OpenedConfig:
    """A config with its network and its data.

    Attributes:
        config: The config.
        task: Network, one sample for tracing, calibration and validation images.
        splits: All splits of the data, the test images too.
    """

    config: Config
    task: Task
    splits: Splits


def open_config(config: Config) -> OpenedConfig:
    """Import the modules that the config names, build the network and load the data.

    Raises:
        ConfigError: If the config has no model or no data section, or a module can't be imported.
        ModelError: If the weights are missing or unusable.
        DataError: If the data is.
    """
    if config.model is None or config.data is None:
        missing = " and ".join(n for n in ("model", "data") if getattr(config, n) is None)
        raise ConfigError(f"the config has no {missing} section; see configs/ for examples")
    import_modules(config.imports)
    model = build_model(config.model)
    splits = load_data(**config.data.model_dump())
    shape = config.model.input_shape
    if shape and math.prod(shape) > MOST_NUMBERS:
        raise ConfigError(f"model.input_shape is {shape}; give a shape of at most {MOST_NUMBERS:,} numbers")
    example = torch.zeros(1, *shape) if shape else splits.calibration[0][:1]
    return OpenedConfig(config, Task(model, example, splits.calibration, splits.validation), splits)


def open_folder(folder: str | Path, overrides: Sequence[str] = ()) -> OpenedConfig:
    """Network and data of a run folder; of a run that was started from Python, what its folder keeps.

    Args:
        folder: The run folder.
        overrides: ``key.sub=value`` each, for the config. A ``data`` section for a run that was started from Python
            gives training and test images only.

    Raises:
        RunError: If the run was started from Python, and its folder lacks the factory or the data.
        PruneError: As for :func:`open_config`.
    """
    config = load_config(folder, overrides)
    if load_config(folder).data is not None:
        return open_config(config)
    import_modules(config.imports)
    task, splits = kept_task(Path(folder), config.model)
    return OpenedConfig(config, task, splits if config.data is None else load_data(**config.data.model_dump()))
