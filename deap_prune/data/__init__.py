"""Data: splits of images in any storage format, and batches of them."""

from deap_prune.data.splits import Splits, augment, load_data

__all__ = ["Splits", "augment", "load_data"]
