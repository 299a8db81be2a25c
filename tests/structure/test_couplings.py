"""Which channels go together: heads that run in training only, blocks, depthwise layers, several inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn

import deap_prune as dp
import tests.helpers.networks as nets
from deap_prune import zoo
from deap_prune.errors import MaskError, ModelError
from deap_prune.structure.tracing.proof import difference
from tests.helpers.networks import IMAGE, NETWORKS, Example, Head
from tests.helpers.pruning import draw_masks, prepared


# ------------------------------------------------------------------ training
def test_a_head_that_runs_in_training_only_is_pruned_with_the_rest() -> None:
    model, inputs, space, random, call = prepared("auxiliary")
    assert {m.layer for m in space.group("body.before.0").layers("reader")} == {"body.after.0", "body.head.0.0"}
    masks = draw_masks(space, 3)
    assert difference(random, space, masks, call, in_training=True) < 1e-9
    head = space.group("body.head.0.0")
    some, others = (dp.Masks({head.name: np.arange(head.size) % 2 == odd}) for odd in (0, 1))
    assert difference(random, space, some, call, small=dp.slim(random, space, others), in_training=True) > 1e-6
    small = dp.slim(model, space, masks).train()
    outputs, aux = small(torch.randn(4, *inputs.shape[1:]))
    F.cross_entropy(outputs, torch.arange(4)).add(F.cross_entropy(aux, torch.arange(4))).backward()
    assert all(p.grad is not None for p in small.parameters())


def test_what_does_not_run_is_named() -> None:
    model = Head(nets.Residual(), 6, 12)
    model.spare = nets.conv(3, 4)
    space = dp.trace(model, torch.randn(IMAGE))
    assert space.idle == ("spare",)
    assert "did not run, left unchanged: spare" in str(space)


# ------------------------------------------------------------------ blocks, and couplings
def test_blocks_keep_the_same_number() -> None:
    space = prepared("grouped_in_a_row").space
    assert {g.name: g.blocks for g in space.groups} == {
        "stem.0": 2,
        "body.first.0": 4,
        "body.grouped.0": 8,
        "body.second.0": 8,
    }
    uneven = np.ones(16, dtype=bool)
    uneven[0] = False
    with pytest.raises(MaskError, match=r"'body.first.0' keeps \[3, 4, 4, 4\] filters.*all blocks the same number"):
        dp.flops(space, dp.Masks({"body.first.0": uneven}))


def layer_groups_of_torch_pruning(model: nn.Module, inputs: Tensor) -> set[tuple[frozenset[str], frozenset[str]]]:
    """(layers whose filters go, layers that read them) of every group but those that reach the output."""
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=(inputs,))
    names = {module: name for name, module in model.named_modules()}
    found = set()
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        filters, readers = set(), set()
        for dep, _ in group:
            module = dep.target.module
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                (filters if graph.is_out_channel_pruning_fn(dep.handler) else readers).add(names[module])
        if readers:
            found.add((frozenset(filters), frozenset(readers)))
    return found


@pytest.mark.parametrize("name", ["plain", "residual", "flatten", "digits_resnet", "resnet20_b"])
def test_couplings_agree_with_torch_pruning(name: str) -> None:
    model, inputs, space, _, _ = prepared(name)
    ours = {
        (frozenset(m.layer for m in g.layers("filter")), frozenset(m.layer for m in g.layers("reader")))
        for g in space.groups
    }
    assert ours == layer_groups_of_torch_pruning(model, inputs)


def test_option_a_stages_stay_independent() -> None:
    """The index map of our own shortcut: three stages, three groups (Torch-Pruning merges them into one)."""
    space = dp.trace(zoo.resnet20(10, "A"), torch.randn(1, 3, 16, 16))
    stages = [g.name for g in space.groups if len(g.layers("filter")) > 1]
    assert stages == ["conv1", "layer2.0.conv2", "layer3.0.conv2"]


def test_depthwise_filters_follow_their_channels() -> None:
    space = prepared("separable").space
    group = space.group("body.expand.0")
    assert [m.layer for m in group.layers("filter")] == ["body.expand.0", "body.depth.0", "body.excite"]
    widened = next(m for m in space.group("stem.0").members if m.layer == "body.widen.0")
    assert widened.positions.tolist() == [[2 * i, 2 * i + 1] for i in range(6)]


def test_inputs_by_position_and_by_name_give_the_same_space() -> None:
    torch.manual_seed(0)
    model = nets.TwoInputs()
    image, depth = torch.randn(2, 3, 8, 8), torch.randn(2, 1, 8, 8)
    assert str(dp.trace(model, (image, depth))) == str(dp.trace(model, {"depth": depth, "image": image}))


def test_trace_of_a_network_that_fails() -> None:
    with pytest.raises(ModelError, match="fails on the example inputs: RuntimeError"):
        dp.trace(Head(nn.Identity(), 6, 7), torch.randn(IMAGE))
    model: Example = NETWORKS["plain"]()
    model.model.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"'fc.weight' holds values that are not finite"):
        dp.trace(*model)
