"""Pairs of a network and a data set, and what every compared method shares on one of them.

Three protocols say how candidates are evaluated, by the loss on validation images. ``plain``: BN statistics are
re-estimated on calibration images, no weight changes. ``compensated``: layers that read pruned channels are re-fitted
in closed form. ``drafts``: candidates are refined on few images. A chosen network is evaluated on the test images once,
at the end: as it was compared, and refined; a draft only refined.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

import deap_prune as dp
from deap_prune.config import Config, load_config
from deap_prune.data import Splits, load_data
from deap_prune.weights import build_model, save_weights
from deap_prune.zoo import digits_resnet

PAIRS = {
    "digits": "digits_resnet.safetensors",
    "cifar10-resnet20": "cifar10_resnet20.pth",
    "cifar100-resnet20": "cifar100_resnet20_optB.pth",
    "cifar10-resnet56": "cifar10_resnet56.pth",
    "cifar100-resnet56": "cifar100_resnet56_optB.pth",
    "imagenet-resnet50": None,
    "imagenet-mobilenetv2": "imagenet_mobilenet_v2.pth",
}
"""Name (of the config, too) to the file of the trained weights."""
_COMPENSATED = {"recalibrate": "closed_form", "compensate": "auto"}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "plain": {"recalibrate": "data", "compensate": None},
    "compensated": _COMPENSATED,
    "drafts": {**_COMPENSATED, "refine": True, "refine_images": 250, "refine_rows": 16},
}
OBJECTIVES = ("loss", "accuracy", "agreement", "flops")
Row = dict[str, Any]


def open_config(pair: str, seed: int, args: argparse.Namespace) -> Config:
    """The config of a pair, with the paths of this machine, the seed of the images and their numbers."""
    path = Path(__file__).parent.parent / "configs" / f"{pair}.yaml"
    config, weights = load_config(path), PAIRS[pair]
    changes = [f"data.seed={seed}", *args.set]
    if weights:
        changes.append(f"model.weights={(args.out if pair == 'digits' else args.weights) / weights}")
    if config.data.format == "digits":
        changes.append("model.factory=deap_prune.zoo:digits_resnet")
    else:
        changes += [f"data.{s}={args.data / Path(getattr(config.data, s)).name}" for s in ("train", "test")]
        changes += [f"data.calibration={args.calibration}", f"data.validation={args.validation}"]
    return load_config(path, changes)


def train_digits(path: Path) -> None:
    """Train the digits network as the demo does, and save its weights."""
    torch.manual_seed(0)
    model, data = digits_resnet(), load_data(format="digits")
    dp.finetune(model, data.train, epochs=15, recipe=dp.Recipe(lr=0.1, batch_size=64))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(model, path)


def device_name() -> str:
    """The device that ``device="auto"`` means, for a row of results."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} cpu, {torch.get_num_threads()} threads"


@dataclass(frozen=True, eq=False)
class Setup:
    """What all methods share on one pair with one seed; each part is made when it is first needed.

    Attributes:
        config: Network, data (its seed draws the images), criteria, and the layers that stay dense.
        seed: Seed of clusters and searches.
        evaluations: Evaluations of every method that searches.
        images: Number of calibration images for criteria and plain BN statistics; moments and refinement use all.
        clusters: Criteria clusters of each layer.
    """

    config: Config
    seed: int
    evaluations: int = 120
    images: int = 250
    clusters: int = 3
    _evaluators: dict[tuple[bool, tuple[str, ...]], dp.Evaluator] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def model(self) -> nn.Module:
        """The dense network."""
        return build_model(self.config.model)

    @cached_property
    def data(self) -> Splits:
        """Training, calibration, validation and test images."""
        return load_data(**self.config.data.model_dump())

    @cached_property
    def space(self) -> dp.PruningSpace:
        """The prunable groups."""
        return dp.trace(self.model, self.data.calibration[0][:1], ignore=self.config.search.ignore)

    @cached_property
    def scores(self) -> dp.ScoreTable:
        """Scores of all filters by all criteria of the config."""
        criteria = self.config.search.criteria
        return dp.score(self.model, self.space, self._few_images, criteria=criteria, seed=self.seed)

    @property
    def _few_images(self) -> tuple[Any, Any]:
        images, labels = self.data.calibration
        return images[: self.images], labels[: self.images]

    def evaluator(self, protocol: str, *, objectives: tuple[str, ...] = OBJECTIVES, **changes: Any) -> dp.Evaluator:
        """A new evaluator of a protocol, with an empty cache; network, data and moments are shared.

        Args:
            protocol: A name of ``PROTOCOLS``.
            objectives: Names of the objectives.
            **changes: Other settings than the protocol's.
        """
        plain = protocol == "plain"
        key = plain, objectives
        if key not in self._evaluators:
            images = {"calibration": self._few_images if plain else self.data.calibration}
            settings = PROTOCOLS["plain" if plain else "compensated"]
            images["validation"] = self.data.validation
            self._evaluators[key] = dp.Evaluator(self.model, self.space, **images, objectives=objectives, **settings)
        return self._evaluators[key].with_settings(**{**PROTOCOLS[protocol], **changes})

    def genome(
        self, budget: float | None, *, kind: Callable[..., Any] = dp.Genome, clusters: int | None = None, **options: Any
    ) -> Any:
        """A genome over the scores of this setup."""
        criteria = dp.cluster(self.scores, n_clusters=clusters or self.clusters, seed=self.seed)
        return kind(self.space, self.scores, criteria, max_flops=budget, **options)

    def row(self, protocol: str, masks: dp.Masks, **facts: Any) -> Row:
        """Evaluate a chosen network on validation images and (at the end, choosing nothing) on the test images.

        A compensated network is evaluated before and after refinement: refinement may level differences.
        """
        evaluator = self.evaluator(protocol)
        facts = {"masks": json.loads(masks.to_json()), "device": device_name(), **facts}
        if protocol == "plain":
            return self._measured(evaluator, masks) | facts
        refined = self._measured(self.evaluator("compensated", refine=True), masks)
        if protocol == "drafts":
            return refined | {"judged": by_name(evaluator, evaluator(masks)), **facts}
        return self._measured(evaluator, masks) | facts | {"refined": refined}

    def _measured(self, evaluator: dp.Evaluator, masks: dp.Masks) -> Row:
        network = evaluator.slim(masks)
        values = by_name(evaluator, evaluator.measure(network, masks))
        return {"validation": values, "test accuracy": self.test_accuracy(network)}

    def test_accuracy(self, network: nn.Module, images: int | None = None) -> float:
        """Accuracy on the (first) test images."""
        inputs, labels = self.data.test
        return dp.accuracy(network.to(memory_format=torch.channels_last), (inputs[:images], labels[:images]))


def by_name(evaluator: dp.Evaluator, values: Sequence[float]) -> dict[str, float]:
    """Values by the names of their objectives."""
    return dict(zip(evaluator.names, values, strict=True))
