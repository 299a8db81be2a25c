"""Structure of a network for pruning: filter groups, masks, exact cost, and surgery."""

from deap_prune.structure import layer_types as _torch_layers  # noqa: F401 - registers them
from deap_prune.structure import norm_types as _norms  # noqa: F401 - registers them
from deap_prune.structure.layers import LayerSpec, register_layer
from deap_prune.structure.masking import masked
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import slim
from deap_prune.structure.space import FilterGroup, PruningSpace, Refusal, flops, params
from deap_prune.structure.tracing.trace import trace

__all__ = [
    "FilterGroup",
    "LayerSpec",
    "Masks",
    "PruningSpace",
    "Refusal",
    "flops",
    "masked",
    "params",
    "register_layer",
    "slim",
    "trace",
]
