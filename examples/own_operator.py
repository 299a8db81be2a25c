"""Operators of your own: plain functions on lists that use the layout, in a run with callbacks and stops."""

from __future__ import annotations

import argparse
import random

import torch

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet


def cxWidths(ind1: list[float], ind2: list[float], layout: dp.operators.Layout) -> tuple[list[float], list[float]]:
    """A crossover of your own: the children exchange their widths and keep their filters."""
    for i in layout.of_kind("keep"):
        ind1[i], ind2[i] = ind2[i], ind1[i]
    return ind1, ind2


def mutStage(individual: list[float], layout: dp.operators.Layout, sigma: float = 0.1) -> tuple[list[float]]:
    """A mutation of your own: all layers of one stage become wider or narrower together."""
    spans, step = random.choice(layout.stage_spans), random.gauss(0, sigma)
    for start, stop in spans:
        for i in range(start, stop):
            if layout.kinds[i] == "keep":
                individual[i] = min(layout.high[i], max(layout.low[i], individual[i] + step))
    return (individual,)


def report(state: dp.algorithms.Generation) -> None:
    """A callback: called after every generation."""
    print(f"generation {state.number}: hypervolume {state.logbook[-1]['hypervolume']:.4f}")


def main() -> None:
    """Train briefly, then run NSGA-II with both operators, until five generations bring no progress."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=6)
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
    toolbox.register("mate", cxWidths, layout=genome.layout)
    toolbox.register("mutate", mutStage, layout=genome.layout)
    variation, stops = dp.algorithms.Variation(children=12), [dp.algorithms.Patience(5)]
    loop = dp.algorithms.Loop("nsga2", toolbox, variation, callbacks=[report], stops=stops)
    state = loop.run(loop.start(12), args.generations)
    front = toolbox.front(state.archive)
    print(front)
    print("knee:", front.knee())
    print("mostly accuracy:", front.closest({"accuracy": 0.8, "flops": 0.2}))


if __name__ == "__main__":
    main()
