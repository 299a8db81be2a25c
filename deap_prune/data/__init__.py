"""Data: images in splits, however they are stored, and the batches that everything else reads."""

from deap_prune.data.splits import Splits, augment, load_data

__all__ = ["Splits", "augment", "load_data"]
