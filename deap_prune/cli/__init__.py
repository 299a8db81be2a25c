"""The command line; a file for each family of commands."""

from deap_prune.cli import begin, look, networks, runs, timing  # noqa: F401  they register their commands
from deap_prune.cli.base import app

__all__ = ["app"]
