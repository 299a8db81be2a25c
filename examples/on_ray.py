"""A search whose candidates are evaluated by Ray workers, here on this machine alone.

Needs the extra: pip install 'deap-prune[ray]'. A cluster's address instead of "local" gives the same result.
"""

from __future__ import annotations

import argparse

import torch
from deap import algorithms

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet


def main() -> None:
    """Train briefly, then evaluate on workers: in a stock DEAP loop, a steady-state one, and in ``dp.search``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="local")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data, model = load_data(format="digits"), digits_resnet(width=8)
    dp.finetune(model, data.train, epochs=args.epochs, recipe=dp.Recipe(lr=0.1, batch_size=64))

    space = dp.trace(model, data.calibration[0])
    scores = dp.score(model, space, data.calibration, criteria=("l1", "fpgm", "bn_scale", "taylor_gate"))
    genome = dp.Genome(space, scores, dp.cluster(scores, n_clusters=3))
    evaluate = dp.Evaluator(model, space, calibration=data.calibration, validation=data.validation)
    toolbox = dp.make_toolbox(genome, evaluate, seed=0)
    how = {"address": args.address, "workers": args.workers, "threads": 1, "num_cpus": 0.5}
    with dp.distributed.ray_map(evaluate, **how) as workers:
        toolbox.register("map", workers)
        population = toolbox.population(n=16)
        algorithms.eaMuPlusLambda(population, toolbox, 16, 16, 0.5, 0.5, args.generations, verbose=False)
        dp.algorithms.steady_state(population, toolbox, 0.5, 0.5, args.generations, verbose=False)  # workers never wait
        print(f"{evaluate.counters.candidates} candidates on {args.workers} workers, {workers.deaths} of them lost")
    print(toolbox.front(population))

    images = {"calibration": data.calibration, "validation": data.validation}
    result = dp.search(
        model, data.calibration[0], **images, generations=args.generations, population=16, ray=args.address
    )
    print(f"dp.search: {len(result.front)} solutions, hypervolume {result.front.hypervolume():.4f}")


if __name__ == "__main__":
    main()
