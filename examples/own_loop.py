"""The DEAP way: a toolbox, a stock algorithm, and a mutation of your own."""

from __future__ import annotations

import argparse
import random

import numpy as np
import torch
from deap import algorithms, tools

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet


def mutOneLayer(individual: list[float], layout: dp.operators.Layout) -> tuple[list[float]]:
    """A mutation of your own: replace all genes of one layer by random ones."""
    start, stop = random.choice(layout.spans)
    fresh = dp.operators.initBlend(list, layout)
    individual[start:stop] = fresh[start:stop]
    return (individual,)


def main() -> None:
    """Train briefly, then evolve with stock DEAP."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    data, model = load_data(format="digits"), digits_resnet()
    dp.finetune(model, data.train, epochs=args.epochs, recipe=dp.Recipe(lr=0.1, batch_size=64))

    space = dp.trace(model, data.calibration[0])
    scores = dp.score(model, space, data.calibration, criteria=("l1", "fpgm", "bn_scale", "taylor_gate"))
    genome = dp.Genome(space, scores, dp.cluster(scores, n_clusters=3))
    evaluate = dp.Evaluator(model, space, calibration=data.calibration, validation=data.validation)

    toolbox = dp.make_toolbox(genome, evaluate, seed=0)
    toolbox.register("mutate", mutOneLayer, layout=genome.layout)

    statistics = tools.Statistics(lambda individual: individual.fitness.values)
    statistics.register("highest", np.max, axis=0)
    statistics.register("lowest", np.min, axis=0)
    population, logbook = algorithms.eaMuPlusLambda(
        toolbox.population(n=16), toolbox, 16, 16, 0.5, 0.5, args.generations, statistics, verbose=False
    )
    print(logbook)
    print(toolbox.front(population))


if __name__ == "__main__":
    main()
