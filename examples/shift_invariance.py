"""A network whose labels no circular shift changes, trained or not, and after half of its FLOPs are pruned.

Its layer, adaptive polyphase sampling, is in deap_prune/zoo/polyphase.py; the lines that describe it to deap_prune are
at the end of that file. The same network with strides and zero padding is shown for comparison.
"""

from __future__ import annotations

import argparse

import torch

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet


def show(stage: str, evaluator: dp.Evaluator, network: torch.nn.Module, masks: dp.Masks | None = None) -> None:
    """One line: a network's figures on the test images."""
    accuracy, consistency, share = evaluator.measure(network.to(evaluator.device), masks or dp.Masks({}))
    print(f"{stage:24} {accuracy:8.1%} {consistency:18.1%} {share:6.1%}")


def main() -> None:
    """Train, search at half the FLOPs, fine-tune; after each, measure how often shifts keep the test images' labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    data = load_data(format="digits")
    print(f"{'':24} accuracy  shift consistency  FLOPs")
    for shift_invariant in (False, True):
        torch.manual_seed(0)
        model = digits_resnet(width=8, shift_invariant=shift_invariant)
        space = dp.trace(model, data.calibration[0])
        figures = ("accuracy", "shift_consistency", "flops")
        evaluator = dp.Evaluator(model, space, validation=data.test, objectives=figures, recalibrate=None)
        name = "polyphase" if shift_invariant else "strides"
        show(f"{name}, untrained", evaluator, model)
        dp.finetune(model, data.train, epochs=args.epochs, recipe=dp.Recipe(lr=0.1, batch_size=64), progress=False)
        show(f"{name}, trained", evaluator, model)
    result = dp.search(
        model,
        data.calibration[0],
        calibration=data.calibration,
        validation=data.validation,
        objectives=("accuracy",),
        max_flops=0.5,
        population=8,
        generations=args.generations,
        progress=False,
    )
    small = result.slim(result.best)
    show("polyphase, pruned", evaluator, small, result.best.masks)
    recipe = dp.Recipe(lr=0.02, batch_size=64)
    dp.finetune(small, data.train, epochs=-(-args.epochs // 2), recipe=recipe, teacher=model, progress=False)
    show("polyphase, fine-tuned", evaluator, small, result.best.masks)


if __name__ == "__main__":
    main()
