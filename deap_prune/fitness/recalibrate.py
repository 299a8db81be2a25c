"""Batch-normalisation statistics of a pruned network, re-estimated on calibration data.

Pruning changes the inputs of every BN layer, so with the old statistics a good candidate gets a bad value (EagleEye, Li
et al. 2020, arXiv 2007.02491). The statistics are reset to plain averages over the calibration batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deap_prune.data.batches import Forward
from deap_prune.errors import DataError


@torch.no_grad()
def recalibrate_bn(model: nn.Module, batches: Iterable[Any], *, forward: Forward) -> None:
    """Replace the running statistics of every BN layer, in place; all other layers stay in eval mode.

    Args:
        model: The network; it is in eval mode afterwards.
        batches: Calibration batches on its device; the averages are exact if they have equal sizes.
        forward: Function of (model, batch) to (outputs, targets).

    Raises:
        DataError: If a batch of one sample reaches a layer that needs more.
    """
    model.eval()
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
        layer.train()
    try:
        for batch in batches:
            forward(model, batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            "a calibration batch has a single sample, so no batch statistics; use drop_last=True, or give tensors"
        ) from error
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
