"""``python -m deap_prune.cli``."""

from deap_prune.cli import app

if __name__ == "__main__":
    app()
