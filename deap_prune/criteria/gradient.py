"""Criteria on the change of the loss if a filter is pruned: first order, second order, and synaptic flow."""

from __future__ import annotations

from torch import Tensor

from deap_prune.criteria.registry import register_criterion


@register_criterion("taylor_activation", needs="activation_taylor", reference="Molchanov et al. 2017, arXiv 1611.06440")
def taylor_activation(activation_taylor: Tensor) -> Tensor:
    """|sum over positions of z dL/dz|, mean over the images, divided by its L2 norm over the layer."""
    change = activation_taylor.abs().mean(dim=0)
    return change / change.norm().clamp_min(1e-30)


@register_criterion("taylor_weight", needs="weight_taylor", reference="Molchanov et al. 2019, arXiv 1906.10771, eq. 8")
def taylor_weight(weight_taylor: Tensor) -> Tensor:
    """Squared first-order change of the loss without the filter: (sum_w w dL/dw)^2, mean over batches."""
    return weight_taylor.square().mean(dim=0)


@register_criterion("taylor_gate", needs="gate_taylor", reference="Molchanov et al. 2019, arXiv 1906.10771, sec. 3.3")
def taylor_gate(gate_taylor: Tensor) -> Tensor:
    """Squared first-order change if a unit gate after the BN closes: (gamma dL/dgamma + beta dL/dbeta)^2."""
    return gate_taylor.square().mean(dim=0)


@register_criterion(
    "group_fisher", needs=("group_taylor", "filter_flops"), reference="Liu et al. 2021, arXiv 2108.00708"
)
def group_fisher(group_taylor: Tensor, filter_flops: Tensor) -> Tensor:
    """Squared change of the loss over all coupled layers, per FLOP saved: mean_n (sum a dL/da)^2 / flops."""
    return group_taylor.square().mean(dim=0) / filter_flops


@register_criterion("snip", needs=("weight", "gradient"), reference="Lee et al. 2019, arXiv 1810.02340")
def snip(weight: Tensor, gradient: Tensor) -> Tensor:
    """Connection sensitivity of the filter as a share of the layer's: sum_w |w dL/dw| / total."""
    change = (weight * gradient).abs().sum(dim=1)
    return change / change.sum().clamp_min(1e-30)


@register_criterion("grasp", needs=("weight", "hessian_gradient"), reference="Wang et al. 2020, arXiv 2002.07376")
def grasp(weight: Tensor, hessian_gradient: Tensor) -> Tensor:
    """First-order loss of gradient flow without the filter: sum_w w (H g); no temperature in the loss."""
    return (weight * hessian_gradient).sum(dim=1)


@register_criterion("obd", needs=("weight", "gradient_square"), reference="LeCun et al. 1989, Optimal Brain Damage")
def obd(weight: Tensor, gradient_square: Tensor) -> Tensor:
    """Second-order rise of the loss, diagonal Hessian: sum_w w^2 h / 2, h the mean squared gradient of an image."""
    return (weight.square() * gradient_square).sum(dim=1) / 2


@register_criterion(
    "obd_c",
    needs=("output_square", "output_gradient_square"),
    reference="Wang et al. 2019, arXiv 1905.05934 (EigenDamage), C-OBD",
)
def obd_c(output_square: Tensor, output_gradient_square: Tensor) -> Tensor:
    """Second-order rise of the loss, Kronecker-factored Hessian: s_ii w_i^T A w_i / 2.

    A is the second moment of the layer's input patches, a mean over positions; s_ii that of the gradient of output i, a
    sum over positions. Since w_i^T A w_i is the second moment of output i before its bias, no matrix is needed.
    """
    return output_square * output_gradient_square / 2


@register_criterion("synflow", needs=("weight", "flow_gradient"), reference="Tanaka et al. 2020, arXiv 2006.05467")
def synflow(weight: Tensor, flow_gradient: Tensor) -> Tensor:
    """Synaptic flow through the filter: sum_w |w dR/dw|, with R = 1^T prod |W| 1."""
    return (weight * flow_gradient).abs().sum(dim=1)
