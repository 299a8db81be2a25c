r"""Do our operators reach good networks with fewer evaluations than DEAP's generic ones and Optuna's NSGA-II?

Question: on the same genome, with the same fitness and the same number of evaluations, how large is the hypervolume of
(accuracy, flops) of each?
Method: four arms. ``ours``: the toolbox of ``dp.make_toolbox``, with its first population, in the loop of
``dp.search``. ``ours, random start``: the same from a random first population. ``generic``: DEAP's cxTwoPoint and
mutGaussian (clipped to the bounds, candidates rounded when decoded), same loop, same random start. ``optuna``:
NSGAIISampler with the genes as parameters (candidates as categorical ones). Every arm has the same number of
evaluations, counted as masks that are new in its run. Population 24, the same seeds for all. The measure is the
hypervolume of all evaluated networks, reference (0, 1), at marks along the way: mean and standard deviation over
seeds, and the number of seeds on which an arm is behind ``ours``. The operators' defaults were chosen on digits with
seeds from 100 on.
Output: results/operators-*.json, written after every run (a second call goes on where the first one stopped), and a
table.

    python benchmarks/operators.py --config digits --seeds 10
    python benchmarks/operators.py --config configs/cifar10-resnet20-front.yaml --images 100 --seeds 10 \
        --set data.train=cifar10_train.npz --set data.test=cifar10_test.npz --set model.weights=cifar10_resnet20.pth
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deap import tools
from methods import volume

import deap_prune as dp
from deap_prune.config import load_config
from deap_prune.data import load_data
from deap_prune.weights import build_model
from deap_prune.zoo import digits_resnet

POPULATION = 24


def evolve(genome: dp.Genome, evaluate: dp.Evaluator, limit: int, seed: int, *, start: str, operators: str) -> None:
    """One run of the (mu + lambda) loop, up to the generation in which the evaluations are spent."""
    toolbox = dp.make_toolbox(genome, evaluate, seed=seed)
    if operators == "generic":
        toolbox.register("mate", tools.cxTwoPoint)
        toolbox.register("mutate", tools.mutGaussian, mu=0.0, sigma=0.2, indpb=0.1)
        toolbox.decorate("mutate", dp.operators.bounded(genome.layout))
    random_start = [toolbox.individual() for _ in range(POPULATION)] if start == "random" else None
    population = random_start or toolbox.population(n=POPULATION)
    stops = [lambda state: len(evaluate.cache) >= limit]
    dp.algorithms.eaBlend(population, toolbox, POPULATION, 0.5, 0.5, 10**6, stops=stops)


def optuna_nsga2(genome: dp.Genome, evaluate: dp.Evaluator, limit: int, seed: int) -> None:
    """Optuna's sampler on the genes, until the evaluations are spent."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    layout = genome.layout

    def gene(trial: Any, i: int) -> float:
        low, high = layout.low[i], layout.high[i]
        if layout.kinds[i] == "candidate":
            return float(trial.suggest_categorical(f"g{i}", list(range(int(low), int(high) + 1))))
        return float(trial.suggest_float(f"g{i}", low, high))

    def objective(trial: Any) -> tuple[float, ...]:
        values = evaluate(genome.decode([gene(trial, i) for i in range(len(layout))]))
        if len(evaluate.cache) >= limit:
            trial.study.stop()
        return values

    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    directions = ["maximize" if weight > 0 else "minimize" for weight in evaluate.weights]
    study = optuna.create_study(sampler=sampler, directions=directions)
    study.optimize(objective, n_trials=10**6)


ARMS: dict[str, Callable[[dp.Genome, dp.Evaluator, int, int], None]] = {
    "ours": partial(evolve, start="criteria", operators="ours"),
    "ours, random start": partial(evolve, start="random", operators="ours"),
    "generic": partial(evolve, start="random", operators="generic"),
    "optuna": optuna_nsga2,
}


def problem(config: str, overrides: list[str], images: int) -> tuple[dp.Genome, dp.Evaluator]:
    """Genome and evaluator: a digits network trained here, or a config's; BN statistics in closed form."""
    if config == "digits":
        torch.manual_seed(0)
        data, model = load_data(format="digits"), digits_resnet()
        dp.finetune(model, data.train, epochs=8, recipe=dp.Recipe(lr=0.1, batch_size=64), progress=False)
        criteria: tuple[str, ...] = ("l1", "fpgm", "bn_scale", "taylor_gate", "mean_activation", "apoz")
        ignore: tuple[str, ...] = ()
    else:
        settings = load_config(config, overrides)
        data, model = load_data(**settings.data.model_dump()), build_model(settings.model)
        criteria, ignore = settings.search.criteria, settings.search.ignore
    space = dp.trace(model, data.calibration[0][:1], ignore=ignore)
    scores = dp.score(model, space, data.calibration, criteria=criteria)
    genome = dp.Genome(space, scores, dp.cluster(scores, n_clusters=3), allocation="evolved", max_flops=None)
    validation = tuple(part[:images] for part in data.validation)
    options = {"objectives": ("accuracy", "flops"), "recalibrate": "closed_form", "batch_size": images}
    evaluate = dp.Evaluator(model, space, calibration=data.calibration, validation=validation, **options)
    return genome, evaluate


def volumes(arm: str, genome: dp.Genome, evaluate: dp.Evaluator, seed: int, marks: list[int]) -> list[float]:
    """Hypervolumes of one run of an arm, of the networks that were evaluated up to every mark."""
    random.seed(seed)
    np.random.seed(seed)
    fresh = evaluate.with_settings()
    ARMS[arm](genome, fresh, marks[-1], seed)
    points = np.array(list(fresh.cache.values()))
    return [volume(points[:mark]) for mark in marks]


def table(arms: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, object]]:
    """Mean and deviation of each arm at every mark, and the number of seeds behind ``ours`` at the last one."""
    rows = {}
    for arm, runs in arms.items():
        columns = list(zip(*runs.values(), strict=True))
        behind = [runs[s][-1] < arms["ours"][s][-1] for s in runs if s in arms.get("ours", {})]
        rows[arm] = {
            "mean": [statistics.mean(c) for c in columns],
            "deviation": [statistics.stdev(c) if len(c) > 1 else 0.0 for c in columns],
            "seeds": len(runs),
            "behind ours": sum(behind),
        }
    return rows


def main() -> None:
    """Run all arms on all seeds and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="digits", help="'digits', or a YAML config")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--evaluations", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--images", type=int, default=500, help="validation images, at most")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.out or Path(__file__).parent / "results" / f"operators-{Path(args.config).stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    genome, evaluate = problem(args.config, args.set, args.images)
    marks = sorted({args.evaluations * k // 5 for k in range(1, 6)})
    report = {
        "config": args.config,
        "genes": len(genome.layout),
        "evaluations": marks,
        "images": args.images,
        "judged": {**evaluate.settings, "dense": evaluate.dense["values"]},
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, CPU",
    }
    runs: dict[str, dict[str, list[float]]] = json.loads(path.read_text())["runs"] if path.exists() else {}
    for seed in range(args.first, args.first + args.seeds):
        for arm in args.arms:
            done = runs.setdefault(arm, {})
            if str(seed) in done:
                continue
            done[str(seed)] = volumes(arm, genome, evaluate, seed, marks)
            path.write_text(json.dumps({**report, "arms": table(runs), "runs": runs}, indent=1) + "\n")
            print(f"seed {seed}, {arm}: {done[str(seed)][-1]:.4f}", flush=True)
    for arm, row in table(runs).items():
        figures = ", ".join(f"{m:.4f} +- {d:.4f}" for m, d in zip(row["mean"], row["deviation"], strict=True))
        print(f"{arm}: {figures} after {marks}; {row['behind ours']} of {row['seeds']} seeds behind ours")
    print(path)


if __name__ == "__main__":
    main()
