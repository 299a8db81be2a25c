"""What a config names, opened: the network, its data, one sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deap_prune.config import Config
from deap_prune.data import Splits, load_data
from deap_prune.errors import ConfigError
from deap_prune.weights import build_model


@dataclass(frozen=True, eq=False)
class Workspace:
    """A config's network and data."""

    config: Config
    model: nn.Module
    splits: Splits

    @classmethod
    def open(cls, config: Config) -> Workspace:
        """Build the network and load the data.

        Raises:
            ConfigError: If the config has no model or no data section.
            ModelError: If the weights are missing or unusable.
            DataError: If the data is.
        """
        if config.model is None or config.data is None:
            missing = " and ".join(n for n in ("model", "data") if getattr(config, n) is None)
            raise ConfigError(f"the config has no {missing} section; see configs/ for examples")
        model = build_model(config.model)
        return cls(config, model, load_data(**config.data.model_dump()))

    @property
    def example(self) -> Tensor:
        """One sample, for tracing."""
        shape = self.config.model.input_shape if self.config.model else None
        return torch.zeros(1, *shape) if shape else self.splits.calibration[0][:1]

    @property
    def calibration(self) -> tuple[Tensor, Tensor]:
        """Training images that criteria and BN statistics are computed on."""
        return self.splits.calibration

    @property
    def validation(self) -> tuple[Tensor, Tensor]:
        """Training images that candidates are judged on."""
        return self.splits.validation
