"""Names of devices, and a network on the device that it is needed on, for a while."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating_on(device: torch.device, model: nn.Module, *, restore_modes: bool = True) -> Iterator[None]:
    """Move a network to a device and into eval mode; afterwards it is on its own device again.

    Args:
        device: Where it computes meanwhile.
        model: The network.
        restore_modes: Afterwards every module is in the mode that it was in before; if False, all are in eval mode.
    """
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.to(device).eval()
        yield
    finally:
        model.to(home).eval()
        if restore_modes:
            for module, mode in modes:
                module.training = mode


def name_of(device: torch.device) -> str:
    """Name of a device for reports; of a CPU with the number of torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} {device.type}, {torch.get_num_threads()} threads"
