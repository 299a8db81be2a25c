"""The statistics that criteria may use, with their shapes."""

from __future__ import annotations

# Each value is one tensor per layer of the group, or one for the group; "layers" of a group are its filter layers,
# its normalisations, or the next layers, which read its channels.
STATISTICS = {
    # weights.py: the parameters alone, no data
    "weight": "(filters, k): weights of the filter in a convolution or linear layer, flattened",
    "out_weight": "(filters, k): weights by which a next layer multiplies the filter's channel",
    "scale": "(filters,): |gamma| of the normalisation, mean over the filter's channels",
    "shift": "(filters,): |beta| of the normalisation, mean over the filter's channels",
    "filter_flops": "(filters,): multiply-adds that pruning one filter of the group saves",
    "noise": "(filters,): uniform noise in [0, 1)",
    # layer_inputs.py: hooks on the next layers, in the forward_backward pass
    "activation_mean": "(filters,): mean |activation| in a next layer's input, over images and positions",
    "activation_rate": "(filters,): share of activations above zero; only if a next layer's input is a ReLU's output",
    "activation_pooled": "(images, filters): activation in a next layer's input, mean over positions",
    "activation_taylor": "(images, filters): activation x dL/dactivation in a next layer's input, sum over positions",
    "group_taylor": "(images, filters): activation_taylor, sum over all next layers of the group",
    # layer_outputs.py: hooks on the layers with filters, in the forward_backward pass
    "gradient_square": "(filters, k): square of one image's dL/dweight, mean over images",
    "output_square": "(filters,): square of the layer's output without its bias, mean over images and positions",
    "output_gradient_square": "(filters,): square of one image's dL/doutput, sum over positions, mean over images",
    # forward_backward.py: gradients of the parameters
    "weight_taylor": "(batches, filters): weight x dL/dweight, sum over the filter",
    "gate_taylor": "(batches, filters): gamma dL/dgamma + beta dL/dbeta, the first-order effect of closing a unit gate",
    "gradient": "(filters, k): dL/dweight, mean over images",
    # derivatives.py
    "hessian_gradient": "(filters, k): Hessian of the loss times its gradient",
    "flow_gradient": "(filters, k): dR/d|weight|, R the output of the network of absolute weights for an input of ones",
    # feature_maps.py: the first images only
    "map_rank": "(filters,): rank of the feature map, mean over images; only if a next layer's input has maps",
    "independence": "(filters,): nuclear norm of all feature maps minus that without the filter's, mean over images",
    "contribution": "(filters, samples): the filter's part of outputs of a next layer, at random places",
    # gating.py: the first images only, or a short training
    "loss_rise": "(filters,): rise of the loss if the filter's channel is zero in the next layers' inputs",
    "divergence": "(filters,): KL(p || q) in nats, p the network's outputs, q those without the filter's channel",
    "attention": "(filters,): mean gate of a squeeze-and-excitation block trained before a next layer",
    # second_moments.py
    "unexplained": "(filters,): relative squared error of a next layer's output without the filter, others re-fitted",
    "elimination_cost": "(filters,): next layers' error when the filter is removed, after all that are worth less",
}
