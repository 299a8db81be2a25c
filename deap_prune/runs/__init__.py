"""Between ``dp.search`` and the evolution: what a config opens, what options mean, and what a run folder keeps."""

from deap_prune.runs.recall import recall
from deap_prune.runs.workspace import Workspace

__all__ = ["Workspace", "recall"]
