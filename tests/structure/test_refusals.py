"""Law 3: what can't be handled is refused with a reason, and the rest is pruned."""

from __future__ import annotations

import re
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import deap_prune as dp
import tests.helpers.networks as nets
from deap_prune.errors import ModelError
from deap_prune.structure import layers
from tests.helpers.networks import IMAGE, NETWORKS, Head, plain_example
from tests.helpers.pruning import draw_masks, gap, outputs_masked, outputs_slim, prepare, prepared

# ------------------------------------------------------------------ law 3: refusals
REORDER = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "pool over channels": (nn.LocalResponseNorm(3), "is mixed with other channels by 'avg_pool3d'"),
    "fixed order": (lambda x: x[:, REORDER], "is indexed by fixed positions"),
    "fixed slice": (
        lambda x: torch.cat([2 * x[:, :4], x[:, 4:]], 1),
        r"is split at fixed positions \(test_refusals.py:\d+\)",
    ),
    "all but one": (lambda x: F.pad(x[:, 1:] - x[:, :-1], (0, 0, 0, 0, 0, 1)), "can only be pruned all together"),
    "sorted channels": (lambda x: x.sort(1)[0], "is sorted across channels by 'sort'"),
    "argmax": (lambda x: x * (x.argmax(1, keepdim=True) > 1), "is ranked across channels by 'argmax'"),
    "argmin, one hot": (
        lambda x: x * F.one_hot(x.mean((2, 3)).argmin(1), 8)[:, :, None, None],
        "is ranked across channels by 'argmin'",
    ),
    "indices of max": (lambda x: x + x.max(1, keepdim=True)[1], "is ranked across channels by 'max'"),
    "indices of cummax": (lambda x: x * x.cummax(1)[1], "is ranked across channels by 'cummax'"),
    "indices of topk": (lambda x: x * x.topk(1, 1)[1], "is sorted across channels by 'topk'"),
    "argmax over channels and space": (
        lambda x: x * x.flatten(1).argmax(1).view(-1, 1, 1, 1),
        "is ranked across channels by 'argmax'",
    ),
    "matrix product": (lambda x: torch.einsum("nchw,cd->ndhw", x, torch.eye(8).to(x)), "which can't be narrowed"),
    "hard-coded view": (
        lambda x: x.view(1, 512).view(1, 8, 8, 8),
        r"fails when slimmed: RuntimeError: shape '\[1, 512",
    ),
    "width in a formula": (lambda x: x * x.shape[1], "masked and slimmed outputs differ"),
    "functional convolution": (nets.OwnParameter(), "is read by 'convolution', which can't be narrowed"),
    "tensor attribute": (nets.FixedGain(), "meets values of fixed width in 'mul'"),
    "parametrization": (nets.weight_normed(), "is parametrized: call torch.nn.utils"),
    "functional norm": (lambda x: F.group_norm(x, 2), "is mixed with other channels by 'native_group_norm'"),
    "split by size": (
        lambda x: torch.cat(x.split(4, 1)[::-1], 1),
        r"is split at fixed positions \(test_refusals.py:\d+\)",
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


HARMLESS: dict[str, Callable[[Tensor], Tensor]] = {
    "values of max": lambda x: x - x.max(1, keepdim=True)[0],
    "argmax over space": lambda x: x * (x.flatten(2).argmax(2)[:, :, None, None] > 9),
    "argmax over branches": lambda x: x * (torch.stack([x, -x]).argmax(0) > 0),
    "number of positive values": lambda x: x * (x > 0).sum(1, keepdim=True),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_positions_outside_of_the_channels_refuse_nothing(case: str) -> None:
    space = prepare(plain_example(HARMLESS[case]), batch=1)[2]
    assert [g.name for g in space.groups] == ["stem.0", "body.before", "body.after", "body.last"]


def test_argmax_over_the_classes_of_the_output_keeps_only_the_head_dense() -> None:
    class Labels(Head):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    space = dp.trace(Labels(nets.conv(6, 8), 6, 8), torch.randn(IMAGE))
    assert [g.name for g in space.groups] == ["stem.0", "body"]
    assert [r.layer for r in space.refused] == ["fc"]


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
    assert space.refused[0].reason == "meets values of fixed width in 'add' (in 'body', OptionA)"
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


@pytest.mark.parametrize("kind", ["weight_norm", "prune", "spectral_norm"])
def test_reparametrised_by_hooks(kind: str) -> None:
    """torch's older tools compute the weight in a hook, which a copy would go without."""
    layer = nets.conv(8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tool = {"prune": lambda n: prune.l1_unstructured(n, "weight", 0.3)}.get(kind) or getattr(nn.utils, kind)
        tool(layer)
    with pytest.raises(ModelError, match=r"computes its weight in a hook .* bake it first: .*remove"):
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
    assert {r.layer for r in space.refused if r.reason == "is ignored (ignore=)"} == {"body.conv3.0", "stem.0"}
    with pytest.raises(ModelError, match=r"ignore names 'body.conv33', which is no module.*did you mean 'body.conv3'"):
        dp.trace(model, inputs, ignore=("body.conv33",))
    assert str(dp.trace(model, inputs, ignore=[model.body.conv3, model.stem])) == str(space)
    assert str(dp.trace(model, inputs, ignore=["body.conv3*", "s?em"])) == str(space)
    with pytest.raises(ModelError, match=r"ignore is one Sequential; give several modules or names"):
        dp.trace(model, inputs, ignore=model.stem)
    with pytest.raises(ModelError, match="ignore holds a Conv2d that is not in the network"):
        dp.trace(model, inputs, ignore=[nn.Conv2d(1, 1, 1)])


@pytest.mark.filterwarnings("ignore")
def test_quantised_networks_are_pruned_before() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    with pytest.raises(ModelError, match="'3' is quantised, and nothing else can be pruned: prune first"):
        dp.trace(quantised, torch.randn(IMAGE))
