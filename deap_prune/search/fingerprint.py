"""What a run depends on, part by part: a resumed run must share it, and an error names the part that differs."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import Any

import torch
from torch.utils._pytree import tree_map

from deap_prune.blending.allocation import ALLOCATIONS
from deap_prune.criteria.registry import CRITERIA
from deap_prune.evolution.operators import CROSSOVERS, MUTATIONS
from deap_prune.fitness.objectives import OBJECTIVES
from deap_prune.options import SearchOptions
from deap_prune.search.describe import code_of, hash_of, hash_of_state, modules_of
from deap_prune.structure.space import PruningSpace
from deap_prune.task import Task

PACKAGES = ("deap-prune", "torch", "torchvision", "deap", "numpy", "scikit-learn")


def fingerprint(task: Task, options: SearchOptions, space: PruningSpace | None = None) -> dict[str, str]:
    """Texts of all that a run's result depends on; how long the run lasts is not part of it.

    Args:
        task: Network, data and functions.
        options: Options of the search.
        space: The traced space; its part is left out by default.

    Returns:
        Name of a part to its text: JSON where the keys that differ are to be named, else a hash.
    """
    parts = {
        "settings": _json(options.fingerprint()),
        "model": hash_of_state(task.model),
        "code": _json(modules_of(task.model)),
        "functions": _json(_functions(task, options)),
        "calibration": hash_of(task.calibration),
        "validation": hash_of(task.validation),
        "example_inputs": repr(tree_map(_outline, task.example_inputs))[:2000],
        "numerics": _json(_numerics(options.device)),
        "environment": _json(environment(options.device)),
    }
    return parts if space is None else parts | {"space": hash_of([str(space), space.flops, space.params])}


def _functions(task: Task, options: SearchOptions) -> dict[str, str]:
    """The user's functions, and what else of a registry the options name."""
    parts = {"loss": code_of(task.loss), "forward": code_of(task.forward)}
    for name in options.criteria:
        parts[f"criterion {name}"] = code_of(CRITERIA[name].score, CRITERIA[name].needs)
    for name in options.objectives:
        kind = OBJECTIVES[name]
        settings = (kind.maximise, kind.worst, kind.finish, kind.needs_dense, kind.needs_network)
        parts[f"objective {name}"] = code_of(kind.batch or kind.of_masks or kind.of_network, settings)
    parts["allocation"] = hash_of(vars(ALLOCATIONS[options.allocation]))[:16]
    parts["mate"], parts["mutate"] = code_of(CROSSOVERS[options.mate]), code_of(MUTATIONS[options.mutate])
    return parts


def _numerics(device: str) -> dict[str, str]:
    """Settings of torch that change results."""
    kind = "cpu" if device == "auto" else torch.device(device).type
    autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "off"
    return {"autocast": autocast, "default dtype": str(torch.get_default_dtype())}


def environment(device: str = "cpu") -> dict[str, str]:
    """Versions of Python, the machine and the packages that results depend on, bit for bit."""
    on_cuda = device.startswith("cuda") and torch.cuda.is_available()
    processor = torch.cuda.get_device_name(device) if on_cuda else torch.backends.cpu.get_cpu_capability()
    return {**versions(), "processor": processor}


def versions() -> dict[str, str]:
    """Versions of Python, the machine and the packages that results depend on."""
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in PACKAGES},
    }


def _outline(leaf: Any) -> Any:
    return f"{leaf.dtype} {tuple(leaf.shape)}" if isinstance(leaf, torch.Tensor) else leaf


def _json(values: Any) -> str:
    return json.dumps(values, sort_keys=True)
