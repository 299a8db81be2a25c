"""Derivatives other than the gradient of the loss: Hessian times gradient, and synaptic flow."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from deap_prune.criteria.passes.context import Calibration, StatisticsTable, floats, gathers
from deap_prune.criteria.passes.forward_backward import add_weight_rows
from deap_prune.data.batches import count_samples, samples_of
from deap_prune.progress import track
from deap_prune.structure.tracing.clean_copy import pristine


@gathers("hessian_gradient", after=["gradient"])
def hessian_gradient(calibration: Calibration, needs: frozenset[str]) -> StatisticsTable:
    """H g, with g the gradient of the loss over all batches: the gradient of (g held constant) x gradient.

    The statistic is absent, with a warning, if torch cannot differentiate an operator of the network twice.
    """
    total: dict[str, Tensor] = {}
    parameters = {n: p for n, p in calibration.network.named_parameters() if n in calibration.gradients}
    for number, batch in enumerate(track(calibration.batches, "Hessian times gradient", shown=calibration.progress)):
        share = count_samples(batch) / calibration.samples
        first = torch.autograd.grad(calibration.loss_of(batch, number), list(parameters.values()), create_graph=True)
        product = torch.stack([(g * calibration.gradients[n]).sum() for n, g in zip(parameters, first, strict=True)])
        try:
            second = torch.autograd.grad(product.sum(), list(parameters.values()), allow_unused=True)
        except RuntimeError as error:
            warnings.warn(f"no second derivatives of this network, so no 'hessian_gradient': {error}", stacklevel=2)
            return {}
        for name, value in zip(parameters, second, strict=True):
            if value is not None:
                total[name] = total[name] + share * value if name in total else share * value
    table: StatisticsTable = {}
    add_weight_rows(calibration, "hessian_gradient", total, table)
    return table


@gathers("flow_gradient")
def flow_gradient(calibration: Calibration, needs: frozenset[str]) -> StatisticsTable:
    """Gradient of R, the sum of the outputs for an input of ones, in a copy whose parameters are absolute values.

    The copy runs in float64, because R is a product over all layers. Its batch normalisations keep scale and shift but
    subtract no mean, so that the flow stays positive. The statistic is absent, with a warning, if the network cannot
    run in float64.
    """
    positive = pristine(calibration.network).double()
    with torch.no_grad():
        for p in positive.parameters():
            p.abs_()
        for layer in positive.modules():
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
                layer.running_mean.zero_()

    def ones(x: Any) -> Any:
        return torch.ones_like(x, dtype=torch.float64) if isinstance(x, Tensor) and x.is_floating_point() else x

    try:
        outputs, _ = calibration.forward(positive, tree_map(ones, samples_of(calibration.batches[0], slice(1))))
    except RuntimeError as error:
        warnings.warn(f"the network does not run in float64, so no 'flow_gradient': {error}", stacklevel=2)
        return {}
    torch.stack([out.sum() for out in floats(outputs)]).sum().backward()
    gradients = {name: p.grad for name, p in positive.named_parameters() if p.grad is not None}
    table: StatisticsTable = {}
    add_weight_rows(calibration, "flow_gradient", gradients, table)
    return table
