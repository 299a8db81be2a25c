"""A copy of the user's network without hooks, and checks that the copy computes the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deap_prune.errors import ModelError
from deap_prune.structure.inputs import Call, copied, evaluating, first_line, forward, same_draws

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def pristine(network: nn.Module, *, keep_hooks: bool = False) -> nn.Module:
    """Copy the network without hooks, in eval mode, with contiguous parameters.

    Args:
        network: The network.
        keep_hooks: Copy the forward hooks too.

    Raises:
        ModelError: If the network is not an ``nn.Module``, is a ScriptModule, holds a compiled module, can't be copied,
            has uninitialised lazy layers, or has layers whose weight is computed in a hook.
    """
    if not isinstance(network, nn.Module):
        raise ModelError(f"the network is a {type(network).__name__}; give the nn.Module, its weights loaded")
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                "the network is a ScriptModule, which can't be narrowed; give the nn.Module that it was scripted from"
            )
        if name and hasattr(module, "_orig_mod"):
            raise ModelError(f"'{name}' is compiled; give the network before torch.compile ('{name}._orig_mod')")
        for hook in module._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils"):  # spectral_norm, weight_norm, prune
                raise ModelError(
                    f"'{name}' computes its weight in a hook ({type(hook).__name__}); bake it first: torch.nn.utils."
                    "remove_spectral_norm, remove_weight_norm, or prune.remove"
                )
    if lazy := [name for name, p in network.named_parameters() if nn.parameter.is_lazy(p)]:
        raise ModelError(
            f"'{lazy[0]}' belongs to a lazy layer without shapes; run the network once: model(example_inputs)"
        )
    try:
        network = copied(network).eval()
    except Exception as error:  # a copy runs the network's own code
        reason = first_line(error)
        if name := _attribute_with_graph(network):
            reason = f"{name} is part of an autograd graph; detach it, or set it to None"
        elif name := _attribute_without_copy(network):
            reason = f"{name} ({reason}); make it inside forward, or set it to None"
        raise ModelError(f"the network can't be copied: {reason}") from error
    for module in network.modules():
        for hooks in HOOKS:
            if not (keep_hooks and hooks.startswith("_forward")):
                getattr(module, hooks).clear()
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    return network


def _attribute_with_graph(network: nn.Module) -> str:
    """Name of an attribute that holds a tensor with an autograd graph (a stored activation); empty if there is none."""
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if any(isinstance(leaf, Tensor) and leaf.grad_fn is not None for leaf in tree_leaves(value)):
                return f"'{name}.{key}'" if name else f"'{key}'"
    return ""


def _attribute_without_copy(network: nn.Module) -> str:
    """Name and type of an attribute that can't be copied (a lock, a file, ...); empty if there is none."""
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, (nn.Module, Tensor)) or key in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                return f"'{name}.{key}' is a {type(value).__name__}" if name else f"'{key}' is a {type(value).__name__}"
    return ""


def settle_hooks(network: nn.Module, clean: nn.Module, call: Call) -> nn.Module:
    """Check that the outputs do not depend on forward hooks, or keep the hooks that only observe.

    Libraries install hooks that collect features, and remember that in a flag: the forward fails without them. Hooks
    that return nothing are kept in that case.

    Args:
        network: The network with its hooks. It runs once if it has hooks, else not at all.
        clean: The copy without hooks.
        call: Arguments of one forward pass.

    Returns:
        ``clean``, or a copy with hooks.

    Raises:
        ModelError: If hooks change the outputs, or the copy fails where the network does not.
    """
    hooked = [name or "the network" for name, m in network.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    if not hooked:
        return clean
    where = f"forward hooks (on {', '.join(hooked[:3])}{', ...' if len(hooked) > 3 else ''})"
    advice = "pruned copies have no hooks: move their computation into forward"
    with torch.no_grad(), evaluating(network):
        try:
            with same_draws():
                with_hooks = forward(network, call)
        except Exception as error:
            raise ModelError(f"the network fails on the example inputs: {first_line(error)}") from error
        try:
            with same_draws():
                without = forward(clean, call)
        except Exception as error:
            if (observed := _observed(network, call, with_hooks)) is not None:
                return observed
            raise ModelError(f"without its {where} the network fails: {first_line(error)}; {advice}") from error
        if _same(with_hooks, without):
            return clean
        if (observed := _observed(network, call, with_hooks)) is not None:
            return observed
    raise ModelError(f"{where} change the network's outputs; {advice}")


def _observed(network: nn.Module, call: Call, expected: list[Tensor]) -> nn.Module | None:
    """A copy with forward hooks if none of them returns a value and the outputs are as expected, else None."""
    returned: list[Any] = []

    def recorded(hook: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            value = hook(*args, **kwargs)
            returned.extend([] if value is None else [value])
            return value

        return record

    try:
        trial = pristine(network, keep_hooks=True)
        for module in trial.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key, hook in hooks.items():
                    hooks[key] = recorded(hook)
        with same_draws():
            outputs = forward(trial, call)
    except Exception:  # hooks of a copy may refer to the original network
        return None
    return None if returned or not _same(expected, outputs) else pristine(network, keep_hooks=True)


def _same(expected: list[Tensor], outputs: list[Tensor]) -> bool:
    return len(expected) == len(outputs) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in zip(expected, outputs, strict=True)
    )


def check_finite(network: nn.Module) -> None:
    """Refuse weights or statistics that are NaN or infinite, have no values, or are variances below 0.

    Raises:
        ModelError: If there is such a tensor; the message names the first one.
    """
    for name, parameter in network.named_parameters():
        if not parameter.numel():
            raise ModelError(f"'{name}' is empty, of shape {tuple(parameter.shape)}; give its layer channels")
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise ModelError(f"'{name}' is on the meta device, without values; load the trained weights")
        if name.endswith("running_var") and tensor.is_floating_point() and bool((tensor < 0).any()):
            raise ModelError(f"'{name}' holds variances below 0; load the trained weights again")
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not _is_finite(tensor):
            raise ModelError(f"'{name}' holds values that are not finite; load the trained weights again")


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; so they are if their sum is, which is quicker to see."""
    return bool(torch.isfinite(tensor.sum()).all()) or bool(torch.isfinite(tensor).all())
