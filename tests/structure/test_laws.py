"""Laws 1 to 3: masked = slim, cost = count, and what can't be handled is refused with a reason."""

from __future__ import annotations

import re
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import networks as nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from helpers import draw_masks, gap, outputs_masked, outputs_slim, prepare, prepared
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import IMAGE, LARGE, NETWORKS, Example, Head, plain_example
from torch import Tensor, nn
from torch.nn.utils import prune

import deap_prune as dp
from deap_prune import zoo
from deap_prune.errors import MaskError, ModelError
from deap_prune.structure import layers
from deap_prune.structure.count import count_flops
from deap_prune.structure.inputs import as_call, forward
from deap_prune.structure.prove import difference

SEEDS = st.integers(0, 2**32 - 1)


# ------------------------------------------------------------------ law 1
def check_law_1(name: str, seed: int) -> None:
    _, _, space, random, call = prepared(name)
    masks = draw_masks(space, seed)
    small = outputs_slim(random, space, masks, call)
    assert gap(small, outputs_masked(random, space, masks, call)) < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=SEEDS)
@settings(max_examples=8)
def test_masked_is_slim(name: str, seed: int) -> None:
    check_law_1(name, seed)


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("seed", [0, 1])
def test_masked_is_slim_on_large_networks(name: str, seed: int) -> None:
    check_law_1(name, seed)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrong_mask_is_noticed(name: str) -> None:
    """The law's own test: a mask that is shifted in one group shows in the outputs, whichever the group."""
    _, _, space, random, call = prepared(name)
    right = dp.Masks.random(space, keep=0.5, seed=4)
    small = outputs_slim(random, space, right, call)
    for group in space.groups:
        if "head" in group.name:  # runs in training only, see below
            continue
        differences = []
        for shift in (1, 2, 3):
            keep = np.roll(right[group.name].reshape(group.blocks, -1), shift, axis=1).reshape(-1)
            wrong = dp.Masks({**right, group.name: keep})
            if wrong != right:
                differences.append(gap(small, outputs_masked(random, space, wrong, call)))
        assert max(differences) > 1e-6, group.name


@pytest.mark.parametrize("name", NETWORKS)
def test_keeping_everything_is_the_identity(name: str) -> None:
    _, _, space, random, call = prepared(name)
    everything = dp.Masks({g.name: np.ones(g.size, dtype=bool) for g in space.groups})
    with torch.no_grad():
        dense = forward(random, call)
    assert gap(outputs_slim(random, space, everything, call), dense) == 0
    assert gap(outputs_masked(random, space, everything, call), dense) == 0
    assert dp.flops(space, everything) == dp.flops(space, dp.Masks({})) == space.flops
    assert dp.params(space, everything) == space.params


def test_slim_network_is_plain_and_independent() -> None:
    """The same classes, its own weights, trainable: nothing of ours stays in it."""
    model, inputs, space, _, _ = prepared("residual")
    small = dp.slim(model, space, dp.Masks.random(space, keep=0.5))
    assert [type(m) for m in small.modules()] == [type(m) for m in model.modules()]
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in model.parameters()}
    small(inputs).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


# ------------------------------------------------------------------ law 2
@pytest.mark.parametrize("name", NETWORKS)
@given(seed=SEEDS)
@settings(max_examples=4)
def test_cost_is_count(name: str, seed: int) -> None:
    model, inputs, space, _, _ = prepared(name)
    masks = draw_masks(space, seed)
    small = dp.slim(model, space, masks)
    assert dp.flops(space, masks) == count_flops(small, as_call(inputs))[0]
    assert dp.params(space, masks) == sum(p.numel() for p in small.parameters())
    assert type(dp.flops(space, masks)) is int


@pytest.mark.parametrize("name", [*NETWORKS, *LARGE])
def test_dense_cost_is_count(name: str) -> None:
    model, inputs, space, _, _ = prepared(name)
    assert space.flops == count_flops(model, as_call(inputs))[0]
    assert space.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["residual", "resnet20_a", "resnet56_a", "concat", "channels_last"])
def test_cost_is_fvcore_s_own_count(name: str) -> None:
    """Without our wrapper around fvcore (none of these has padding="same")."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis
    model, inputs, space, _, _ = prepared(name)
    masks = draw_masks(space, 11)
    analysis = FlopCountAnalysis(dp.slim(model, space, masks).eval(), inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert analysis.total() == dp.flops(space, masks) < space.flops


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=SEEDS)
@settings(max_examples=10)
def test_more_filters_never_cost_less(name: str, seed: int) -> None:
    space = prepared(name).space
    few = space.kept_counts(draw_masks(space, seed))
    more = np.maximum(few, space.kept_counts(draw_masks(space, seed + 1)))
    assert space.flops_of(few) <= space.flops_of(more) <= space.flops
    assert space.params_of(few) <= space.params_of(more) <= space.params
    assert space.min_flops <= space.flops_of(few)


def test_what_fvcore_leaves_out_is_shown() -> None:
    space = prepared("flatten").space
    assert space.uncounted["aten::max_pool2d"] == 1
    assert "not counted by fvcore: aten::max_pool2d x1" in str(space)


# ------------------------------------------------------------------ law 3: refusals
REORDER = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "cumsum": (lambda x: x.cumsum(1), "is mixed with other channels by 'cumsum'"),
    "softmax": (lambda x: x.softmax(1), "is mixed with other channels by '_softmax'"),
    "mean": (lambda x: x - x.mean(1, keepdim=True), "is mixed with other channels by 'mean'"),
    "pool over channels": (nn.LocalResponseNorm(3), "is mixed with other channels by 'avg_pool3d'"),
    "sort": (lambda x: x.sort(1)[0], "is read by 'sort', which can't be narrowed"),
    "fixed order": (lambda x: x[:, REORDER], "is read by 'index', which can't be narrowed"),
    "fixed slice": (lambda x: torch.cat([2 * x[:, :4], x[:, 4:]], 1), "is indexed by fixed positions"),
    "matrix product": (lambda x: torch.einsum("nchw,cd->ndhw", x, torch.eye(8).to(x)), "which can't be narrowed"),
    "hard-coded view": (
        lambda x: x.view(1, 512).view(1, 8, 8, 8),
        r"fails when slimmed: RuntimeError: shape '\[1, 512",
    ),
    "width in a formula": (lambda x: x * x.shape[1], "masked and slimmed outputs differ"),
    "functional convolution": (nets.OwnParameter(), "is read by 'convolution', which can't be narrowed"),
    "buffer": (nets.FixedGain(), "meets values of fixed width in 'mul'"),
    "parametrization": (nets.weight_normed(), "is parametrized: bake it"),
    "unknown norm": (nn.InstanceNorm2d(8, affine=True), "is read by 'native_batch_norm'"),
    "split by size": (
        lambda x: torch.cat(x.split(4, 1)[::-1], 1),
        r"is split at fixed positions \(test_laws.py:\d+\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_reason_and_the_rest_is_pruned(case: str) -> None:
    between, reason = REFUSED[case]
    _, _, space, random, call = prepare(plain_example(between), batch=1)
    found = {r.layer: r for r in space.refused}
    assert found["body.before"].channels == 8
    assert re.search(reason, found["body.before"].reason)
    assert "body.before (8)" in str(space) and found["body.before"].reason in str(space)
    assert [g.name for g in space.groups] == ["stem.0", "body.after", "body.last"]
    for seed in range(3):
        masks = draw_masks(space, seed)
        assert gap(outputs_slim(random, space, masks, call), outputs_masked(random, space, masks, call)) < 1e-9


def test_a_line_that_splits_by_size_is_judged_once() -> None:
    """Two blocks that split alike: one refusal covers both, and names the line of code."""
    body = nn.Sequential(nets.SplitBySize(fixed=True), nets.SplitBySize(fixed=True))
    space = dp.trace(Head(body, 6, 6), torch.randn(IMAGE))
    assert [g.name for g in space.groups] == ["stem.0", "body.0.after", "body.1.after"]
    reasons = {r.reason for r in space.refused if r.layer.endswith("before")}
    assert len(reasons) == 1
    assert re.fullmatch(r"is split at fixed positions \(networks.py:\d+\)", reasons.pop())


def test_fixed_padding_keeps_only_what_meets_it_dense() -> None:
    """Option A as F.pad: the zero channels have no filter to go with, the middle ones are coupled."""
    space = prepared("option_a").space
    assert [(r.layer, r.channels) for r in space.refused] == [("body.conv2.0", 6), ("fc", 5)]
    assert space.refused[0].reason == "meets values of fixed width in 'add'"
    stem = space.group("stem.0")
    assert [m.layer for m in stem.layers("filter")] == ["stem.0", "body.conv2.0"]
    assert stem.layers("filter")[1].positions.ravel().tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("shift", range(1, 8))
def test_an_index_map_that_depends_on_the_width_is_never_believed(shift: int) -> None:
    """torch.roll over channels is right for some masks and wrong for others: one lucky proof is not enough."""
    try:
        found = prepare(plain_example(lambda x: torch.roll(x, shift, 1)))
    except ModelError:
        return
    for seed in range(12):
        masks = draw_masks(found.space, seed)
        small = outputs_slim(found.random, found.space, masks, found.call)
        assert gap(small, outputs_masked(found.random, found.space, masks, found.call)) < 1e-9


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """A loop without end becomes a failure."""

    class Endless(BaseException):
        pass

    def stop(*_: Any) -> None:
        raise Endless

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    except Endless:
        pytest.fail("goes on for ever")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Pointwise(nn.Module):
    """A 1x1 convolution of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


@pytest.fixture
def own_layer() -> Iterator[None]:
    yield
    layers._TYPES.pop(Pointwise, None)


@pytest.mark.usefixtures("own_layer")
@pytest.mark.parametrize("role", ["filter", "other"])
def test_own_layer_type(role: Any) -> None:
    """Described rightly it is pruned; a wrong description is refused, not believed (and ends)."""
    right = dp.LayerSpec(
        in_channels=8,
        out_channels=8,
        tensors={"weight": ("out", "in", None, None)},
        flops=lambda x, y: {"in*out": y[2] * y[3]},
        role=role,
    )
    dp.register_layer(Pointwise)(lambda layer: right)
    example = plain_example(Pointwise())
    space = dp.trace(*example)
    assert {"body.before", "body.between"} <= {g.name for g in space.groups}
    layers._TYPES.pop(Pointwise)
    wrong = dp.LayerSpec(in_channels=8, out_channels=8, tensors={"weight": ("in", "out", None, None)}, role=role)
    dp.register_layer(Pointwise)(lambda layer: wrong)
    with at_most(10):
        space = dp.trace(*example)
    assert {"body.between"}.isdisjoint({g.name for g in space.groups})
    assert "fails when slimmed" in str(space) or "differ" in str(space) or "expected" in str(space)


def test_a_layer_that_is_called_by_keyword_is_no_failure() -> None:
    """conv(input=x) runs, so it may be refused or pruned, but is not "the network fails"."""

    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nets.conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(input=x)

    assert "body.after" in [g.name for g in dp.trace(*plain_example(ByKeyword())).groups]


def test_constants_in_single_precision_are_no_failure() -> None:
    """The proof runs in float64; a float32 tensor that forward makes must not refuse the whole network."""
    space = dp.trace(*plain_example(lambda x: torch.einsum("nchw,cd->ndhw", x, torch.eye(8))))
    assert [g.name for g in space.groups] == ["stem.0", "body.after", "body.last"]


@pytest.mark.parametrize("name", ["residual", "resnet20_b"])
def test_memory_format_does_not_matter(name: str) -> None:
    model, inputs = NETWORKS[name]()
    usual = dp.trace(model, inputs)
    last = dp.trace(model.to(memory_format=torch.channels_last), inputs.contiguous(memory_format=torch.channels_last))
    assert str(last) == str(usual)


@pytest.mark.parametrize("kind", ["weight_norm", "prune"])
def test_reparametrised_by_hooks(kind: str) -> None:
    """torch's older tools keep a computed weight, which can't be copied: our error, or a space."""
    layer = nets.conv(8, 8)
    if kind == "prune":
        prune.l1_unstructured(layer, "weight", 0.3)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nn.utils.weight_norm(layer)
    with pytest.raises(ModelError, match=r"cop|bake|remove"):
        dp.trace(*plain_example(layer))


def test_refused_in_whole() -> None:
    with pytest.raises(ModelError, match=r"no filters that can be pruned.*is an output of the network"):
        dp.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(IMAGE))
    with pytest.raises(ModelError, match="no filters that can be pruned"):
        dp.trace(nn.ReLU(), torch.randn(IMAGE))


def test_ignored_modules_stay_dense() -> None:
    model, inputs, *_ = prepared("residual")
    space = dp.trace(model, inputs, ignore=("body.conv3", "stem"))
    assert [g.name for g in space.groups] == ["body.conv1.0", "body.conv2.0"]
    assert {r.layer for r in space.refused if r.reason == "was told to be ignored"} == {"body.conv3.0", "stem.0"}
    with pytest.raises(ModelError, match=r"ignore names 'body.conv33', which is no module.*did you mean 'body.conv3'"):
        dp.trace(model, inputs, ignore=("body.conv33",))


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
    assert "did not run, left as they are: spare" in str(space)


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
