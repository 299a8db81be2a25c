"""A blend as the importance of Torch-Pruning's pruners: they remove the filters with the lowest scores."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Digits
from torch import nn

import deap_prune as dp
import deap_prune.blending
from deap_prune.errors import ConfigError, MaskError
from tests.helpers.networks import conv_bn

tp = pytest.importorskip("torch_pruning")


def blend(model: nn.Module, inputs: torch.Tensor, seed: int = 0) -> tuple[dp.Genome, list[float]]:
    """A genome of three criteria on weights, and a random individual."""
    space = dp.trace(model, inputs)
    scores = dp.score(model, space, criteria=("l2", "bn_scale", "out_l1"))
    genome = dp.Genome(space, scores, dp.cluster(scores))
    rng = np.random.default_rng(seed)
    low, high = np.array(genome.layout.low), np.array(genome.layout.high)
    return genome, (low + rng.random(len(low)) * (high - low)).tolist()


@pytest.mark.parametrize("kind", ["BasePruner", "MagnitudePruner"])
def test_resnet18_keeps_the_upper_half_of_every_layer(kind: str) -> None:
    """The same weights as ``dp.slim`` gives; BN statistics differ for every channel."""
    torchvision = pytest.importorskip("torchvision")
    model, inputs = torchvision.models.resnet18(weights=None).eval(), torch.randn(1, 3, 32, 32)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(torch.arange(layer.num_features))
            layer.weight.data.uniform_(0.5, 1.5)
    genome, individual = blend(model, inputs, seed=3)
    masks = {}
    for group in genome.space.groups:
        scores = genome.importance(individual)[group.name]
        masks[group.name] = scores.argsort().argsort() >= group.size // 2
    expected = dp.slim(model, genome.space, dp.Masks(masks))
    importance = dp.BlendedImportance(model, genome, individual)
    getattr(tp.pruner, kind)(model, inputs, importance, pruning_ratio=0.5, ignored_layers=[model.fc]).step()
    theirs, ours = model.state_dict(), expected.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    torch.testing.assert_close(model(inputs), expected(inputs))


def test_global_pruning_and_digits(digits: Digits) -> None:
    model = copy.deepcopy(digits.model).eval()
    genome = digits.genome()
    individual = genome.single("l2")
    importance = dp.BlendedImportance(model, genome, individual)
    pruner = tp.pruner.BasePruner(
        model, digits.example, importance, global_pruning=True, pruning_ratio=0.3, ignored_layers=[model.fc]
    )
    pruner.step()
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in digits.model.parameters())
    assert model(digits.example).shape == (1, 10)


def test_refused_filters_are_not_pruned() -> None:
    """Filters that ``trace`` refuses have no score, so the pruner skips them."""
    model = nn.Sequential(conv_bn(3, 8), nn.ReLU(), conv_bn(8, 6), nn.ReLU(), conv_bn(6, 4)).eval()
    inputs = torch.randn(1, 3, 8, 8)
    space = dp.trace(model, inputs, ignore=("2",))
    scores = dp.score(model, space, criteria=("l2",))
    genome = dp.Genome(space, scores, dp.cluster(scores))
    importance = dp.BlendedImportance(model, genome, genome.single("l2"))
    tp.pruner.BasePruner(model, inputs, importance, pruning_ratio=0.5, ignored_layers=[model[4][0]]).step()
    assert [model[i][0].out_channels for i in (0, 2, 4)] == [4, 6, 4]


def test_filters_that_torch_pruning_couples_get_their_mean() -> None:
    """The order of the layers in its group does not matter."""
    model = nn.Sequential(conv_bn(3, 8), nn.ReLU(), conv_bn(8, 8), nn.ReLU(), conv_bn(8, 4)).eval()
    genome, individual = blend(model, torch.randn(1, 3, 8, 8))
    scores, importance = genome.importance(individual), dp.BlendedImportance(model, genome, individual)
    handler, channels = tp.pruner.function.prune_conv_out_channels, list(range(8))
    coupled = [
        SimpleNamespace(
            dep=SimpleNamespace(target=SimpleNamespace(module=model[i][0], name=str(i)), handler=handler),
            idxs=channels,
            root_idxs=channels,
        )
        for i in (0, 2)
    ]
    first, second = (scores[g.name] for g in genome.space.groups if g.size == 8)
    for group in (coupled, coupled[::-1]):
        np.testing.assert_allclose(importance(group), ((first + second) / 2).ravel(), rtol=1e-6)


def test_messages(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    model, genome = copy.deepcopy(digits.model).eval(), digits.genome()
    importance = dp.BlendedImportance(model, genome, genome.single("l1"))
    pruner = tp.pruner.BasePruner(
        model, digits.example, importance, pruning_ratio=0.5, ignored_layers=[model.fc], iterative_steps=2
    )
    pruner.step()
    with pytest.raises(MaskError, match=r"has \d+ filters, \d+ when it was scored: prune in one step"):
        pruner.step()
    with pytest.raises(MaskError, match="the space was traced on another network"):
        dp.BlendedImportance(nn.Sequential(nn.Conv2d(3, 4, 3)), genome, genome.single("l1"))
    with pytest.raises(ConfigError, match="the individual has 1 genes"):
        dp.BlendedImportance(digits.model, genome, [0.5])
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ConfigError, match="needs the package torch-pruning: pip install torch-pruning"):
        dp.BlendedImportance(digits.model, genome, genome.single("l1"))


def test_decode_prunes_by_importance(digits: Digits) -> None:
    genome = digits.genome(allocation="uniform", max_flops=0.5)
    individual = genome.single("taylor_gate")
    masks, blended = genome.decode(individual), genome.importance(individual)
    for name, keep in masks.items():
        assert keep.all() or blended[name][keep].min() >= blended[name][~keep].max()


def test_a_pruner_with_the_affine_genome(digits: Digits) -> None:
    """Scales and shifts of LeGR's genome rank the filters."""
    model = copy.deepcopy(digits.model).eval()
    space = dp.trace(model, digits.example)
    scores = dp.score(model, space, criteria=("l2",))
    genome = deap_prune.blending.AffineGenome(space, scores, dp.cluster(scores), max_flops=0.5)
    individual = genome.single("l2")
    individual[0] = 0.3
    name = space.groups[0].name
    l2 = scores[name]["l2"]
    assert np.allclose(genome.importance(individual)[name], 0.3 * l2 / l2.max())
    pruner = tp.pruner.BasePruner(
        model,
        digits.example,
        dp.BlendedImportance(model, genome, individual),
        global_pruning=True,
        pruning_ratio=0.3,
        ignored_layers=[model.fc],
    )
    pruner.step()
    narrower = 0
    for group in space.groups:
        kept, before = (m.get_submodule(group.name).weight for m in (model, digits.model))
        order = np.sort(np.argsort(-genome.importance(individual)[group.name])[: len(kept)])
        if kept.shape[1:] == before.shape[1:]:  # its inputs are not pruned
            narrower += len(kept) < len(before)
            assert torch.equal(kept, before[torch.as_tensor(order)])
    assert narrower
