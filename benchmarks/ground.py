"""What the arms of quality.py share: the network, the images, the scores, and one fitness for each protocol.

Three protocols. ``plain``: BN statistics re-estimated on calibration images, no weight changed. ``compensated``: layers
that read pruned channels are re-fitted in closed form while candidates are judged, and what an arm chose is refined at
the end. ``drafts``: candidates are judged refined on few images. The fitness is the loss on validation images in all.
What an arm chose meets the test images once, at its end: as it was judged, and refined; a draft refined in full alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from deap_prune.fitness.racing import least_dominated
from deap_prune.search.workspace import Workspace
from torch import nn

import deap_prune as dp
from deap_prune.blending.baselines import AnyGenome
from deap_prune.config import Config
from deap_prune.data.batches import default_forward, name_of
from deap_prune.fitness.fold import Pair, find_pairs, fold

PROTOCOLS: dict[str, dict[str, Any]] = {
    "plain": {"recalibrate": "data", "compensate": None},
    "compensated": {"recalibrate": "closed_form", "compensate": "auto"},
    "drafts": {"recalibrate": "closed_form", "compensate": "auto", "refine_from": 0, "draft_images": 250},
}
JUDGED = ("loss", "accuracy", "agreement", "flops")
Row = dict[str, Any]


class View:
    """Some objectives of an evaluator that judges, and caches, more: arms share what was judged."""

    def __init__(self, evaluator: dp.Evaluator, names: Sequence[str]) -> None:
        self.evaluator, self.names = evaluator, tuple(names)
        self._places = [evaluator.names.index(name) for name in names]
        self.weights = tuple(evaluator.weights[p] for p in self._places)
        self.settings, self.surrogate = evaluator.settings, evaluator.surrogate
        self.cache: dict[dp.Masks, tuple[float, ...]] = {}

    def learned(self) -> Callable[[dp.Masks], float] | None:
        """The surrogate as it learns from the losses of this view's candidates, not from other arms'."""
        return self.evaluator.learned(self.cache)

    def prescreen(
        self, candidates: Sequence[dp.Masks], slots: int, error: Callable[[dp.Masks], float] | None = None
    ) -> list[int]:
        """As an evaluator's, by the costs among the view's objectives."""
        error, space = error or self.surrogate, self.evaluator.space
        costs = [[error(m), *([dp.flops(space, m)] if "flops" in self.names else [])] for m in candidates]
        return least_dominated(np.array(costs), slots)

    @property
    def dense(self) -> Row:
        """The dense network."""
        return self.evaluator.dense

    def __call__(self, masks: dp.Masks) -> tuple[float, ...]:
        """The values of these objectives."""
        values = self.cache[masks] = self.evaluator(masks)
        return tuple(values[p] for p in self._places)


@dataclass(frozen=True, eq=False)
class Ground:
    """What all arms of one network, one data set and one seed stand on; each part is made when first asked for.

    Attributes:
        config: Network, data (its seed draws the images), criteria and what stays dense.
        seed: Of clusters and searches.
        evaluations: Of every arm that searches.
        images: Of the calibration images, so many are for the criteria and for plain BN statistics; moments and
            refinement use all.
        clusters: Of the criteria, in each layer.
    """

    config: Config
    seed: int
    evaluations: int = 120
    images: int = 250
    clusters: int = 3
    _evaluators: dict[str, dp.Evaluator] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def work(self) -> Workspace:
        """Network and data."""
        return Workspace.open(self.config)

    @cached_property
    def space(self) -> dp.PruningSpace:
        """What can be pruned."""
        return dp.trace(self.work.model, self.work.example, ignore=self.config.search.ignore)

    @cached_property
    def scores(self) -> dp.ScoreTable:
        """All filters by all criteria."""
        criteria = self.config.search.criteria
        return dp.score(self.work.model, self.space, self._few, criteria=criteria, seed=self.seed)

    @property
    def _few(self) -> tuple[Any, Any]:
        images, labels = self.work.calibration
        return images[: self.images], labels[: self.images]

    def evaluator(self, protocol: str) -> dp.Evaluator:
        """The fitness of a protocol, one for all arms."""
        if protocol not in self._evaluators:
            self._evaluators[protocol] = self.judge(protocol, objectives=JUDGED)
        return self._evaluators[protocol]

    def judge(self, protocol: str, **options: Any) -> dp.Evaluator:
        """A fitness that judges as the protocol does, save for these options."""
        data = self._few if protocol == "plain" else self.work.calibration
        options = {"objectives": ("loss",), **PROTOCOLS[protocol], **options}
        images = {"calibration": data, "validation": self.work.validation}
        return dp.Evaluator(self.work.model, self.space, **images, **options)

    def genome(
        self,
        budget: float | None,
        *,
        kind: Callable[..., AnyGenome] = dp.Genome,
        clusters: int | None = None,
        **options: Any,
    ) -> AnyGenome:
        """A genome over this ground's scores."""
        found = dp.cluster(self.scores, n_clusters=clusters or self.clusters, seed=self.seed)
        return kind(self.space, self.scores, found, max_flops=budget, **options)

    def row(self, protocol: str, masks: dp.Masks, **facts: Any) -> Row:
        """What an arm chose: on validation, and (at the end, choosing nothing) on the test images.

        A network that is refined is measured before that too: refinement may level what the search had found.
        """
        judge = self.evaluator(protocol)
        facts = {"masks": json.loads(masks.to_json()), "device": name_of(judge.device), **facts}
        if protocol == "plain":
            return self._measured(judge, masks) | facts
        refined = self._measured(judge.in_full(refine=True), masks)
        if protocol == "drafts":
            return refined | {"judged": named(judge, judge(masks)), **facts}
        return self._measured(judge, masks) | facts | {"refined": refined}

    def _measured(self, judge: dp.Evaluator, masks: dp.Masks) -> Row:
        network = judge.slim(masks)
        return {"validation": named(judge, judge.measure(network, masks)), "test accuracy": self.tested(network)}

    def tested(self, network: nn.Module, images: int | None = None) -> float:
        """Accuracy of a slimmed network on the (first) test images, batch norms folded for speed."""
        inputs, labels = self.work.splits.test
        fold(network, self.pairs)
        return dp.accuracy(network.to(memory_format=torch.channels_last), (inputs[:images], labels[:images]))

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Convolutions and the batch norms that can be folded into them."""
        return find_pairs(self.work.model, default_forward, self.work.calibration)


def named(evaluator: dp.Evaluator, values: Sequence[float]) -> dict[str, float]:
    """Values by the names of their objectives."""
    return dict(zip(evaluator.names, values, strict=True))
