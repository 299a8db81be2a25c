"""A clean copy of the user's network, and what is refused because a clean copy would be another network."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deap_prune.errors import ModelError
from deap_prune.structure.inputs import Call, evaluating, first_line, forward, same_draws

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def pristine(network: nn.Module) -> nn.Module:
    """A copy without hooks, in eval mode, its tensors contiguous.

    Raises:
        ModelError: If the network is no ``nn.Module`` or a ScriptModule, holds a compiled module, can't be copied, has
            lazy layers that no input has shaped yet, or layers whose weight a hook computes.
    """
    if not isinstance(network, nn.Module):
        raise ModelError(f"the network is a {type(network).__name__}; give the nn.Module, its weights loaded")
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                "the network is a ScriptModule, which can't be narrowed; give the nn.Module it was made from"
            )
        if name and hasattr(module, "_orig_mod"):
            raise ModelError(
                f"'{name}' is compiled; give the network as it was before torch.compile ('{name}._orig_mod')"
            )
        for hook in module._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils"):  # spectral_norm, weight_norm, prune
                raise ModelError(
                    f"'{name}' computes its weight in a hook ({type(hook).__name__}); bake it first: torch.nn.utils."
                    "remove_spectral_norm, remove_weight_norm, or prune.remove"
                )
    if lazy := [name for name, p in network.named_parameters() if nn.parameter.is_lazy(p)]:
        raise ModelError(f"'{lazy[0]}' has no shape yet (a lazy layer); run the network once: model(example_inputs)")
    try:
        network = copy.deepcopy(network).eval()
    except RuntimeError as error:
        kept = _kept_graph(network)
        reason = f"{kept} is part of an autograd graph; detach it, or set it to None" if kept else first_line(error)
        raise ModelError(f"the network can't be copied: {reason}") from error
    for module in network.modules():
        for hooks in HOOKS:
            getattr(module, hooks).clear()
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    return network


def _kept_graph(network: nn.Module) -> str:
    """An attribute that holds a tensor which autograd made (an activation that was kept), or nothing."""
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if any(isinstance(leaf, Tensor) and leaf.grad_fn is not None for leaf in tree_leaves(value)):
                return f"'{name}.{key}'" if name else f"'{key}'"
    return ""


def check_hooks(network: nn.Module, clean: nn.Module, call: Call) -> None:
    """Refuse a network that computes something else without its forward hooks: copies have none.

    Args:
        network: With its hooks; they run once. Without any, nothing runs.
        clean: The copy without hooks.
        call: One forward pass.

    Raises:
        ModelError: If the outputs differ, or the copy fails where the network does not.
    """
    hooked = [name or "the network" for name, m in network.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    if not hooked:
        return
    where = f"forward hooks (on {', '.join(hooked[:3])}{', ...' if len(hooked) > 3 else ''})"
    advice = "copies that are pruned have no hooks: move what they do into forward"
    with torch.no_grad(), evaluating(network):
        try:
            with same_draws():
                with_hooks = forward(network, call)
        except Exception:  # the network itself fails: the tracer says so
            return
        try:
            with same_draws():
                without = forward(clean, call)
        except Exception as error:
            raise ModelError(f"without its {where} the network fails: {first_line(error)}; {advice}") from error
    same = len(with_hooks) == len(without) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in zip(with_hooks, without, strict=True)
    )
    if not same:
        raise ModelError(f"{where} change what the network computes; {advice}")


def check_finite(network: nn.Module) -> None:
    """Refuse weights or statistics that are NaN or infinite.

    Raises:
        ModelError: Naming the first such tensor.
    """
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"'{name}' holds values that are not finite; load the trained weights again")
