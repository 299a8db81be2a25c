"""What the rest of a network can make up for: moments, compensation, elimination, reconstruction error, refinement."""

from deap_prune.reconstruction.batchnorm import propagate_bn
from deap_prune.reconstruction.compensate import compensate
from deap_prune.reconstruction.elimination import Elimination, eliminate, eliminate_all
from deap_prune.reconstruction.error import ReconstructionError, reconstruction_error
from deap_prune.reconstruction.grams import Grams, LayerGram
from deap_prune.reconstruction.moments import collect_grams
from deap_prune.reconstruction.refine import refine, select_masks
from deap_prune.reconstruction.removal import removal_errors

__all__ = [
    "Elimination",
    "Grams",
    "LayerGram",
    "ReconstructionError",
    "collect_grams",
    "compensate",
    "eliminate",
    "eliminate_all",
    "propagate_bn",
    "reconstruction_error",
    "refine",
    "removal_errors",
    "select_masks",
]
