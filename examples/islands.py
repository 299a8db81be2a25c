"""Islands: a DEAP loop written by hand, three populations, and stock migration between them."""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch
from deap import algorithms, base, tools

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet


def evaluate_new(individuals: list[Any], toolbox: base.Toolbox) -> None:
    """Evaluate the individuals that have no fitness yet."""
    fresh = [ind for ind in individuals if not ind.fitness.valid]
    for individual, values in zip(fresh, toolbox.map(toolbox.evaluate, fresh), strict=True):
        individual.fitness.values = values


def main() -> None:
    """Train briefly, then evolve three islands at half of the FLOPs; every other generation the best migrate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    data, model = load_data(format="digits"), digits_resnet()
    dp.finetune(model, data.train, epochs=args.epochs, recipe=dp.Recipe(lr=0.1, batch_size=64))

    space = dp.trace(model, data.calibration[0])
    scores = dp.score(model, space, data.calibration, criteria=("l1", "fpgm", "bn_scale", "taylor_gate"))
    genome = dp.Genome(space, scores, dp.cluster(scores, n_clusters=3), max_flops=0.5)
    evaluate = dp.Evaluator(
        model, space, calibration=data.calibration, validation=data.validation, objectives=("agreement",)
    )
    toolbox = dp.make_toolbox(genome, evaluate, seed=0)
    toolbox.register("migrate", tools.migRing, k=1, selection=tools.selBest, replacement=random.sample)

    first, random_islands = toolbox.population(n=6), [[toolbox.individual() for _ in range(6)] for _ in range(2)]
    islands = [first, *random_islands]  # single criteria begin on one island alone
    for island in islands:
        evaluate_new(island, toolbox)
    for generation in range(1, args.generations + 1):
        for number, island in enumerate(islands):
            parents = [toolbox.clone(ind) for ind in tools.selTournament(island, len(island), tournsize=2)]
            children = algorithms.varAnd(parents, toolbox, cxpb=0.5, mutpb=0.8)
            evaluate_new(children, toolbox)
            islands[number] = toolbox.select(island + children, len(island))
        if generation % 2 == 0:
            toolbox.migrate(islands)
        best = [min(ind.fitness.values[0] for ind in island) for island in islands]
        print(f"generation {generation}: divergence from the dense network", *(f"{b:.4f}" for b in best))
    print(toolbox.front([ind for island in islands for ind in island]))


if __name__ == "__main__":
    main()
