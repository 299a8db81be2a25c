"""One call from a trained network to a front and a run folder, and back into a run after a stop."""

from deap_prune.search.run import Result, prepare, resume, search

__all__ = ["Result", "prepare", "resume", "search"]
