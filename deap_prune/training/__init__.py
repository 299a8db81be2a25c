"""Train a network in place, with or without a teacher, and measure its accuracy."""

from deap_prune.training.evaluation import accuracy
from deap_prune.training.finetune import finetune
from deap_prune.training.recipe import Recipe
from deap_prune.training.state import EpochRecord, best_epoch
from deap_prune.training.trainer import Augment

__all__ = ["Augment", "EpochRecord", "Recipe", "accuracy", "best_epoch", "finetune"]
