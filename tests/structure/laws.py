"""The laws on any network: masked = slim on a randomised float64 copy, closed-form cost = fvcore's count."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import deap_prune as dp
from deap_prune.structure.inputs import as_call, forward
from deap_prune.structure.outputs import open_outputs
from deap_prune.structure.tracing.proof import randomised
from tests.helpers.pruning import draw_masks, gap, outputs_masked, outputs_slim


class _Opened(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any) -> Any:
        return tuple(open_outputs(self.model(*args)).tensors)


def fvcore_total(model: nn.Module, inputs: Any) -> int:
    """FLOPs of one call as fvcore itself counts them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        args, kwargs = as_call(inputs)
        analysis = FlopCountAnalysis(_Opened(model).eval(), (*args, *kwargs.values()))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(analysis.total())


def check_laws(
    model: nn.Module, inputs: Any, *, sample: Any = None, count: bool = True, seeds: int = 3, **options: Any
) -> dp.PruningSpace:
    """Trace a network and hold both laws for random masks.

    Args:
        model: The network.
        inputs: Example inputs.
        sample: The inputs of one sample, for the count; None: ``inputs``.
        count: Compare with fvcore's count.
        seeds: Number of random masks.
        options: Keywords of ``dp.trace``.
    """
    space = dp.trace(model, inputs, **options)
    random = randomised(model, seed=5)
    noise = torch.Generator().manual_seed(7)

    def draw(x: Any) -> Any:
        real = isinstance(x, Tensor) and x.is_floating_point()
        return torch.randn(x.shape, generator=noise, dtype=torch.float64) if real else x

    call = tree_map(draw, as_call(inputs))
    for seed in range(seeds):
        masks = draw_masks(space, seed)
        small = outputs_slim(random, space, masks, call)
        assert gap(small, outputs_masked(random, space, masks, call)) < 1e-9
        slim = dp.slim(model, space, masks)
        assert dp.params(space, masks) == sum(p.numel() for p in slim.parameters())
        with torch.no_grad():
            assert forward(slim.eval(), as_call(inputs))
        if count:
            assert dp.flops(space, masks) == fvcore_total(slim, inputs if sample is None else sample)
    return space
