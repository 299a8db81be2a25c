"""One call from a trained network to a front and a run folder, and back into a run after a stop."""

from deap_prune.search.prepare import Prepared, prepare
from deap_prune.search.result import Result
from deap_prune.search.run import resume, search

__all__ = ["Prepared", "Result", "prepare", "resume", "search"]
