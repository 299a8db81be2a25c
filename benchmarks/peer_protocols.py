"""How other methods evaluate a candidate, from their descriptions: LeGR, EagleEye, Torch-Pruning, torch's masks.

Every protocol has ``plan()`` (a candidate of its own, at the budget) and ``score(masks)``, and books its seconds by
phase. Surgery is ours (``dp.slim``), and so is the count of FLOPs while planning, both quicker than theirs.

LeGR (Chin et al., CVPR 2020, arXiv 1904.12368; as in the code of cmu-enyac/LeGR), as published: an affine-transformed
global ranking, filters leave one by one, the list sorted and the cost walked anew after each; the whole network loaded
from disk; surgery; multiply-adds counted by a forward pass; ``tau`` SGD steps of 128 images (0 for CIFAR-10, 200 for
CIFAR-100); no BN re-estimation; mean loss on 5,000 training images through a DataLoader, with gradients recorded.
Hoisted: sorted once, copied in memory, no fine-tuning, BN re-estimated on our images, loss on ours without gradients.

EagleEye (Li et al., ECCV 2020, arXiv 2007.02491; as in the code of anonymous47823493/EagleEye), as published: random
rates, L1, surgery and two counts for every proposal until one is within 0.5 % of the budget; adaptive BN: 102 augmented
batches of 128 in training mode, loss computed too; top-1 on 10,000 augmented training images, to three decimals.
Hoisted: proposals are counted in closed form; BN re-estimated on our images, top-1 on ours.

The others have no published protocol; they get our images and BN budget. Torch-Pruning: Fang et al., CVPR 2023, arXiv
2301.12900 (DepGraph).
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import deap_prune as dp
from deap_prune.data import augment

Pair = tuple[Tensor, Tensor]


@dataclass
class Bench:
    """What every protocol works on.

    Attributes:
        model: The dense network, in eval mode.
        space: Its space.
        train: Training images, as many as the published protocols want (fewer are reused).
        calibration: Ours, for BN statistics.
        validation: Ours, for the score.
        budget: Kept share of the FLOPs.
        scale: Published image counts are multiplied by this (1 in a full run).
    """

    model: nn.Module
    space: dp.PruningSpace
    train: Pair
    calibration: Pair
    validation: Pair
    budget: float = 0.5
    scale: float = 1.0
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @cached_property
    def channels_last(self) -> nn.Module:
        """A copy of the network with its weights in channels_last."""
        return copy.deepcopy(self.model).to(memory_format=torch.channels_last)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book the time of a block."""
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name].append(time.perf_counter() - start)

    def images(self, count: int) -> Pair:
        """``count`` training images, scaled; repeated where there are not so many."""
        index = torch.arange(max(2, int(count * self.scale))) % len(self.train[0])
        return self.train[0][index], self.train[1][index]


def macs_by_forward(network: nn.Module, example: Tensor) -> int:
    """Multiply-adds of convolutions and linear layers, counted by hooks in a forward pass over an image of zeros."""
    total = 0

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [m.register_forward_hook(hook) for m in layers]
    with torch.no_grad():
        network(torch.zeros_like(example))
    for handle in handles:
        handle.remove()
    return total


class Protocol:
    """A way to evaluate candidates."""

    name = ""

    def __init__(self, bench: Bench, *, published: bool, seed: int = 0) -> None:
        self.bench, self.published = bench, published
        self.rng = np.random.default_rng(seed)
        self.example = bench.validation[0][:1]
        self.file = Path(tempfile.mkdtemp()) / "model.pt"
        torch.save(bench.model, self.file)
        self.norms = {g.name: self._norm(g, 2) for g in bench.space.groups}

    def _norm(self, group: dp.FilterGroup, p: int) -> np.ndarray:
        weight = self.bench.model.get_submodule(group.layers("filter")[0].layer).weight.detach().flatten(1)
        return (weight.abs() ** p).sum(1).cpu().numpy()

    def restore(self) -> nn.Module:
        """The dense network again; as published from disk."""
        with self.bench.phase("restore"):
            if self.published:
                return torch.load(self.file, weights_only=False)
            return copy.deepcopy(self.bench.model)

    def plan(self) -> dp.Masks:
        """A candidate as the protocol makes them."""
        raise NotImplementedError

    def score(self, masks: dp.Masks) -> float:
        """The protocol's figure; larger is better."""
        raise NotImplementedError

    def __call__(self) -> float:
        """Plan and score: one whole candidate."""
        return self.score(self.plan())


class LeGR(Protocol):
    """An affine-transformed global ranking, surgery, ``tau`` SGD steps, loss on a tenth of the training set."""

    name = "LeGR"

    def __init__(self, bench: Bench, *, published: bool, tau: int = 0, seed: int = 0) -> None:
        super().__init__(bench, published=published, seed=seed)
        self.tau = tau

    def plan(self) -> dp.Masks:
        """Filters leave one by one; after each the list is sorted and the cost is walked anew (as published)."""
        with self.bench.phase("plan"):
            space, rng = self.bench.space, self.rng
            ranked = []
            for g in space.groups:
                score = self.norms[g.name]
                affine = np.exp(rng.normal()) * score + rng.normal() * score.std()
                ranked += [(float(s), g.name, i) for i, s in enumerate(affine)]
            keep = {g.name: np.ones(g.size, dtype=bool) for g in space.groups}
            ranked.sort()
            while dp.flops(space, dp.Masks(keep)) >= self.bench.budget * space.flops:
                if self.published:
                    ranked.sort()
                _, name, i = ranked.pop(0)
                keep[name][i] = keep[name].sum() <= max(1, 0.1 * keep[name].size)
            return dp.Masks(keep)

    def score(self, masks: dp.Masks) -> float:
        """Minus the mean loss."""
        bench = self.bench
        network = self.restore()
        with bench.phase("apply"):
            network = dp.slim(network, bench.space, masks)
            macs_by_forward(network, self.example)
        if self.published and self.tau:
            with bench.phase("fine-tune"):
                self._train(network)
        if not self.published:
            with bench.phase("recalibrate"):
                recalibrate(network, bench.calibration)
        with bench.phase("forward"):
            if self.published:  # with gradients recorded, losses fetched batch by batch
                loader = DataLoader(TensorDataset(*bench.images(5_000)), batch_size=128)
                losses = [F.cross_entropy(network(x), y, reduction="none").cpu().detach() for x, y in loader]
                return -float(torch.cat(losses).mean())
            return -mean_loss(network, bench.validation)

    def _train(self, network: nn.Module) -> None:
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        x, y = self.bench.images(128 * self.tau)
        for inputs, targets in zip(x.split(128), y.split(128), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), targets).backward()
            optimizer.step()
        network.eval()


class EagleEye(Protocol):
    """Random rates, L1, rejection unless within 0.5 % of the budget, adaptive BN, top-1 on training images."""

    name = "EagleEye"
    proposals = 0

    def plan(self) -> dp.Masks:
        """Proposals until one fits; as published each is built and counted. The rates' mean meets the budget."""
        bench = self.bench
        l1 = {g.name: self._norm(g, 1) for g in bench.space.groups}
        for _ in range(2_000):
            self.proposals += 1
            with bench.phase("plan"):
                keep = {}
                for g in bench.space.groups:
                    number = max(1, round(g.size * (1 - self.rng.uniform(0, min(0.95, 2 * (1 - bench.budget))))))
                    keep[g.name] = np.argsort(np.argsort(-l1[g.name])) < number
                masks = dp.Masks(keep)
                if self.published:
                    network = dp.slim(torch.load(self.file, weights_only=False), bench.space, masks)
                    macs_by_forward(self.bench.model, self.example), macs_by_forward(network, self.example)
            if abs(dp.flops(bench.space, masks) / bench.space.flops - bench.budget) < 0.005:
                return masks
        raise RuntimeError("no proposal fits the budget")

    def score(self, masks: dp.Masks) -> float:
        """Top-1 after adaptive BN, rounded as in their log."""
        bench, generator = self.bench, torch.Generator().manual_seed(0)
        network = self.restore()
        with bench.phase("apply"):
            network = dp.slim(network, bench.space, masks)
        with bench.phase("recalibrate"), torch.no_grad():
            if self.published:
                network.train()
                for x, y in DataLoader(TensorDataset(*bench.images(102 * 128)), batch_size=128, shuffle=True):
                    F.cross_entropy(network(augment(x, generator)), y)
                network.eval()
            else:
                recalibrate(network, bench.calibration)
        with bench.phase("forward"), torch.no_grad():
            if self.published:
                loader = DataLoader(TensorDataset(*bench.images(10_000)), batch_size=128)
                right = [(network(augment(x, generator)).argmax(1) == y).float() for x, y in loader]
                return round(float(torch.cat(right).mean()), 3)
            return top1(network, bench.validation)


class TorchPruning(Protocol):
    """deepcopy, a dependency graph and surgery by Torch-Pruning, fvcore's count, a DataLoader; our BN batches."""

    name = "deepcopy + Torch-Pruning + fvcore + DataLoader"

    def plan(self) -> dp.Masks:
        """Half of every group by L2, at the budget where groups are inner ones."""
        keep = {
            n: np.argsort(np.argsort(-s)) < max(1, round(s.size * self.bench.budget)) for n, s in self.norms.items()
        }
        return dp.Masks(keep)

    def score(self, masks: dp.Masks) -> float:
        """Top-1."""
        import torch_pruning as tp
        from fvcore.nn import FlopCountAnalysis

        bench = self.bench
        network = self.restore()
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        with bench.phase("apply"):
            graph = tp.DependencyGraph().build_dependency(network, example_inputs=(self.example,))
            for group in bench.space.groups:
                layer = network.get_submodule(group.name)
                gone = np.flatnonzero(~masks[group.name]).tolist()
                if gone:
                    graph.get_pruning_group(layer, tp.prune_conv_out_channels, gone).prune()
            FlopCountAnalysis(network, self.example).unsupported_ops_warnings(False).total()
        with bench.phase("recalibrate"):
            recalibrate(network, bench.calibration)
        with bench.phase("forward"), torch.no_grad():
            loader = DataLoader(TensorDataset(*bench.validation), batch_size=250)
            return float(torch.cat([(network(x).argmax(1) == y).float() for x, y in loader]).mean())


class TorchMasks(TorchPruning):
    """Masks by torch.nn.utils.prune on what reads the pruned channels; full size, our images and BN batches."""

    name = "torch.nn.utils.prune masks"

    def score(self, masks: dp.Masks) -> float:
        """Top-1."""
        bench = self.bench
        network = self.restore()
        with bench.phase("apply"):
            kept = bench.space.kept(masks)
            for entry in bench.space.layers:
                layer = network.get_submodule(entry.name)
                if isinstance(layer, (nn.Conv2d, nn.Linear)) and not kept[entry.inputs].all():
                    mask = torch.zeros_like(layer.weight)
                    mask[:, torch.as_tensor(kept[entry.inputs], device=mask.device)] = 1
                    prune.custom_from_mask(layer, "weight", mask)
        with bench.phase("recalibrate"):
            recalibrate(network, bench.calibration)
        with bench.phase("forward"):
            return top1(network, bench.validation)


@torch.no_grad()
def recalibrate(network: nn.Module, data: Pair) -> None:
    """Re-estimate the statistics of all batch norms on one batch, in place."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over batches
        layer.train()
    network(data[0])
    network.eval()


@torch.no_grad()
def mean_loss(network: nn.Module, data: Pair) -> float:
    """Mean cross-entropy."""
    parts = [
        F.cross_entropy(network(x), y, reduction="sum") for x, y in zip(*(d.split(250) for d in data), strict=True)
    ]
    return float(sum(parts)) / len(data[1])


@torch.no_grad()
def top1(network: nn.Module, data: Pair) -> float:
    """Share of right labels."""
    return float(
        sum((network(x).argmax(1) == y).sum() for x, y in zip(*(d.split(250) for d in data), strict=True))
    ) / len(data[1])
