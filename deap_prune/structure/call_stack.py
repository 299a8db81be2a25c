"""Which module of a network runs the present line of code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

from torch import nn


def module_frames() -> Iterator[tuple[FrameType, nn.Module]]:
    """Frames of the methods of modules that are running, and these modules, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(first, nn.Module):
            yield frame, first
        frame = frame.f_back


def described(name: str, module: nn.Module | None) -> str:
    """A module in words, for the reason of a refusal; empty for the network itself."""
    if not name or module is None:
        return ""
    kind = type(module)
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return f" (in '{name}', {kind.__name__}: inputs of recurrent layers stay dense)"
    custom = not kind.__module__.startswith("torch.") and not list(module.children())
    lines = f"@dp.register_layer({kind.__name__}) def spec(layer): return dp.LayerSpec(...)"
    return f" (in '{name}', {kind.__name__}{'; describe it: ' + lines if custom else ''})"
