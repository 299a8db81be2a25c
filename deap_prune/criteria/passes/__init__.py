"""How statistics are gathered: passes over the weights and over the calibration data.

==================  ==================================================================================================
file                statistics that it gathers
==================  ==================================================================================================
weights             ``weight``, ``out_weight``, ``scale``, ``shift``, ``filter_flops``, ``noise``: no data needed
forward_backward    one forward pass, with one backward pass if a gradient is needed: ``weight_taylor``,
                    ``gate_taylor``, ``gradient``, and the statistics of the next two files
layer_inputs        ``activation_mean``, ``activation_rate``, ``activation_pooled``, ``activation_taylor``,
                    ``group_taylor``
layer_outputs       ``gradient_square``, ``output_square``, ``output_gradient_square``
derivatives         ``hessian_gradient`` (one more backward pass), ``flow_gradient`` (one image)
feature_maps        ``map_rank``, ``independence``, ``contribution``: the first images
gating              ``loss_rise``, ``divergence`` (one forward pass per filter), ``attention`` (a short training)
second_moments      ``unexplained``, ``elimination_cost``: one forward pass, then closed form
==================  ==================================================================================================

``statistics`` explains each of them, ``context`` holds what all passes share, and ``collect`` runs the passes that the
chosen criteria need.
"""
