"""What is pruned, and on which data: the things that always travel together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from deap_prune.data.batches import Data, Forward, Loss, readable
from deap_prune.structure.inputs import Inputs


@dataclass(frozen=True, eq=False)
class Task:
    """A network, and the data that it is pruned with.

    Attributes:
        model: The trained network.
        example_inputs: Inputs of the network, for tracing; see :func:`deap_prune.trace`.
        calibration: Images for criteria, compensation, BN statistics and refinement.
        validation: Images that the objectives are measured on; never the test images.
        forward: Function of (model, batch) to (outputs, targets); None: batches are (inputs, targets), or inputs alone.
        loss: Function of (outputs, targets) to the mean over a batch; None: cross-entropy.
    """

    model: nn.Module
    example_inputs: Inputs
    calibration: Data
    validation: Data
    forward: Forward | None = None
    loss: Loss | None = None

    def kept(self) -> Task:
        """The task with its data as lists of batches if it came as iterators, which can be read only once."""
        return replace(
            self,
            calibration=_kept(self.calibration, "calibration"),
            validation=_kept(self.validation, "validation"),
        )

    @property
    def functions(self) -> Mapping[str, Any]:
        """``forward`` and ``loss`` as keywords."""
        return {"forward": self.forward, "loss": self.loss}


def _kept(data: Data, name: str) -> Data:
    return data if isinstance(data, (tuple, list, Tensor)) else list(readable(data, name))
