"""With and without adaptive polyphase sampling, dense and pruned; a case of neighbours.py.

After Chaman and Dokmanic, "Truly shift-invariant convolutional neural networks", CVPR 2021 (arXiv 2011.14214).
"""

from __future__ import annotations

from functools import partial

import torch
from images import Images
from torch import nn

import deap_prune as dp
from deap_prune.data import augment
from deap_prune.zoo import CifarResNet


def polyphase(images: Images, *, seed: int, epochs: int, generations: int) -> list[dict[str, object]]:
    """Accuracy, FLOPs and shift consistency: strides and zero padding, then polyphase sampling and circular padding."""
    calibration, validation, rest = images.split(seed)
    rows: list[dict[str, object]] = []
    for layer, invariant in (("strides", False), ("polyphase", True)):
        torch.manual_seed(seed)
        model = CifarResNet(1, images.classes, in_channels=rest[0].shape[1], shift_invariant=invariant)
        space = dp.trace(model, rest[0][:1])
        figures = ("accuracy", "shift_consistency")
        evaluator = dp.Evaluator(model, space, validation=images.test, objectives=figures, recalibrate=None)

        def row(stage: str, network: nn.Module, masks: dp.Masks) -> None:
            accuracy, consistency = evaluator.measure(network.to(evaluator.device), masks)  # noqa: B023
            share = dp.flops(space, masks) / space.flops  # noqa: B023
            rows.append({"arm": f"{layer}, {stage}", "flops": share, "test": accuracy, "shift": consistency})  # noqa: B023

        train = partial(dp.finetune, train=rest, augment=partial(augment, padding=2), seed=seed, progress=False)
        train(model, epochs=epochs, recipe=dp.Recipe(lr=0.1))
        row("dense", model, dp.Masks({}))
        result = dp.search(
            model,
            rest[0][:1],
            calibration=calibration,
            validation=validation,
            objectives=("loss",),
            max_flops=0.5,
            population=8,
            generations=generations,
            seed=seed,
            progress=False,
        )
        small, masks = result.slim(result.best), result.best.masks
        row("pruned", small, masks)
        train(small, epochs=-(-epochs // 2), recipe=dp.Recipe(lr=0.02), teacher=model)
        row("fine-tuned", small, masks)
    return rows
