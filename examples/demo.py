"""The main job on real images, from a trained network to a Pareto front and a smaller network, in two to three minutes.

Trains a small residual network on scikit-learn's digits (kept in .cache), evolves blends of pruning criteria with
NSGA-II, compares the front with every single criterion at the same FLOPs, slims the best network at half the FLOPs, and
fine-tunes it. Everything goes into a run folder. Run it with ``make demo``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import deap_prune as dp
from deap_prune.data import Splits, load_data
from deap_prune.plot import plot_front
from deap_prune.weights import load_weights, save_weights
from deap_prune.zoo import digits_resnet

console = Console(width=120)


def trained_network(data: Splits, path: Path) -> torch.nn.Module:
    """The digits network, trained once and then read from the cache."""
    torch.manual_seed(0)
    model = digits_resnet()
    if path.is_file():
        load_weights(model, path)
    else:
        dp.finetune(model, data.train, data.validation, epochs=15, recipe=dp.Recipe(lr=0.1, batch_size=64))
        save_weights(model, path)
    model.eval()
    accuracy = dp.accuracy(model, data.validation)
    console.print(f"dense network: {accuracy:.2%} of the validation images, weights in {path}")
    if accuracy < 0.97:
        raise SystemExit(f"the network reached {accuracy:.2%} on validation, below 97 %: remove {path} and try again")
    return model


def compare(result: dp.Result, rows: int = 9) -> list[tuple[float, float]]:
    """Print solutions of the front and every single criterion, at uniform widths and the same FLOPs.

    Returns:
        (accuracy, kept FLOPs) of all single criteria.
    """
    names = result.scores.criteria
    table = Table("FLOPs kept", "blend", *names, box=None, title="validation accuracy at the same FLOPs, no training")
    step = max(1, len(result.front) // rows)
    points: list[tuple[float, float]] = []
    for solution in result.front[::step]:
        share = solution.flops / result.space.flops
        try:
            genome = dp.Genome(result.space, result.scores, result.clusters, allocation="uniform", max_flops=share)
        except dp.errors.BudgetError:
            continue
        singles = [result.evaluator(genome.decode(genome.single(name))) for name in names]
        table.add_row(f"{share:.3f}", f"{solution.values['accuracy']:.3f}", *(f"{v[0]:.3f}" for v in singles))
        points += [(accuracy, flops) for accuracy, flops in singles]
    console.print(table)
    return points


def free_folder(parent: Path) -> Path:
    """runs/demo, or the next free number."""
    names = ("demo", *(f"demo-{n}" for n in range(2, 1000)))
    return next(parent / name for name in names if not (parent / name).exists())


def main() -> None:
    """Train, search, compare, slim, fine-tune."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=10, help="of 32 children each, after 32 initial individuals")
    parser.add_argument("--epochs", type=int, default=10, help="of fine-tuning")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    args = parser.parse_args()
    data = load_data(format="digits")
    model = trained_network(data, args.cache / "digits_resnet.safetensors")
    folder = free_folder(args.runs)
    result = dp.search(
        model,
        data.calibration[0],
        calibration=data.calibration,
        validation=data.validation,
        population=32,
        generations=args.generations,
        recalibrate="data",  # on images of 8 x 8 a pass over them costs little
        seed=0,
        out=folder,
    )
    volume = result.front.hypervolume()
    console.print(f"{len(result.front)} solutions after {result.evaluations} evaluations, hypervolume {volume:.4f}")
    singles = compare(result)
    points = {"single criteria, same FLOPs, uniform widths": singles}
    plot_front(result.front, folder / "front.png", points=points, title="digits: blends against single criteria")
    chosen = result.front.best(max_flops=0.5)
    small = result.slim(chosen)
    save_weights(small, folder / "slim.safetensors")
    before = dp.accuracy(small, data.test)
    recipe = dp.Recipe(lr=0.02, batch_size=64)
    dp.finetune(small, data.train, data.validation, epochs=args.epochs, recipe=recipe, teacher=model)
    save_weights(small, folder / "finetuned.safetensors")
    after = dp.accuracy(small, data.test)
    share, size = chosen.flops / result.space.flops, chosen.params / result.space.params
    console.print(f"best at half the FLOPs keeps {share:.1%} of the multiply-adds, {size:.1%} of the parameters")
    console.print(
        f"test accuracy: dense {dp.accuracy(model, data.test):.2%}, pruned {before:.2%}, fine-tuned {after:.2%} "
        f"({args.epochs} epochs, the last one)"
    )
    console.print(f"everything is in {folder}: front.json, front.png, front.csv, history.csv, masks, weights")


if __name__ == "__main__":
    main()
