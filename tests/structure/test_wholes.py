"""Networks that one detail used to refuse as a whole: modes, single layers, hooks, norms, buffers, counting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.feature_extraction import create_feature_extractor

import deap_prune as dp
from deap_prune.structure.inputs import as_call
from deap_prune.structure.tracing.dispatch_count import dispatch_count
from deap_prune.structure.tracing.fvcore_count import count_flops, without_fast_paths
from tests.helpers.networks import IMAGE, NETWORKS, conv, conv_bn
from tests.helpers.pruning import assert_unchanged, snapshot
from tests.structure.laws import check_laws


class Middle(nn.Module):
    """A layer of interest between a stem and two plain convolutions."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer, self.b, self.c, self.fc = conv(3, 8), layer, conv(8, 9), conv(9, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.layer(F.relu(self.stem(x))))
        return self.fc(F.relu(self.c(F.relu(self.b(x)))).mean((2, 3)))


# ------------------------------------------------------------------ modes
@pytest.mark.parametrize("training", [False, True])
def test_feature_extractors(training: bool) -> None:
    """Deep copies of torch.fx modules are in train mode."""
    extractor = create_feature_extractor(torchvision.models.resnet18().eval(), {"layer2": "maps", "fc": "logits"})
    extractor.train(training)
    before, graph = snapshot(extractor), extractor.graph
    space = check_laws(extractor, torch.randn(1, 3, 32, 32), seeds=1)
    assert_unchanged(extractor, before)
    assert extractor.graph is graph
    assert dp.slim(extractor, space, dp.Masks.random(space)).training is training
    assert len(space.groups) > 10


# ------------------------------------------------------------------ one layer stays dense alone
class CausalConv(nn.Conv2d):
    """Its constructor takes other arguments than Conv2d's, and it masks its weight."""

    def __init__(self, kind: str, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("visible", torch.ones_like(self.weight))
        self.visible[:, :, 2:] = 0
        self.visible[:, :, 1, 1 + (kind == "B") :] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.visible, self.bias)


class HalvedConv(nn.Conv2d):
    """Returns half of its channels, gated by the others."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = super().forward(x).chunk(2, 1)
        return left * right.sigmoid()


class StubbornConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 8:
            raise ValueError("eight channels, please")
        return super().forward(x)


class TalkativeLinear(nn.Conv2d):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class LowRankConv(nn.Conv2d):
    """A frozen weight plus a learned product of two small matrices."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.down, self.up = nn.Parameter(torch.randn(2, 72)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight + (self.up @ self.down).view(self.weight.shape), self.bias)


class Unpacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = TalkativeLinear(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


ALONE: dict[str, Callable[[], nn.Module]] = {
    "half of the channels": lambda: HalvedConv(8, 16, 3, padding=1),
    "an error": lambda: StubbornConv(8, 8, 3, padding=1),
    "a tuple": Unpacked,
    "low rank": lambda: LowRankConv(8, 8, 3, padding=1),
}


@pytest.mark.parametrize("case", ALONE)
def test_one_layer_stays_dense_alone(case: str) -> None:
    space = check_laws(Middle(ALONE[case]()), torch.randn(IMAGE))
    assert {"b", "c"} <= {group.name for group in space.groups}


def test_the_reason_names_the_layer() -> None:
    space = dp.trace(Middle(HalvedConv(8, 16, 3, padding=1)), torch.randn(IMAGE))
    reasons = {r.layer: r.reason for r in space.refused}
    assert reasons["stem"].startswith("'layer' can't be narrowed: ValueError: it has 16 channels, but the tensor has 8")


def test_a_mask_of_the_weight_is_narrowed_with_it() -> None:
    space = check_laws(Middle(CausalConv("B", 8, 8, 3, padding=1)), torch.randn(IMAGE))
    assert [group.name for group in space.groups] == ["stem", "layer", "b", "c"]


# ------------------------------------------------------------------ hooks that a library installed
SEEN: list[Tensor] = []


class Collecting(nn.Module):
    """Installs a hook at the first forward and remembers that."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.installed = conv(3, 6), conv(6, 8), nn.Linear(8, 4), False

    def forward(self, x: Tensor) -> Any:
        if not self.installed:
            self.b.register_forward_hook(lambda layer, args, out: SEEN.append(out))
            self.installed = True
        SEEN.clear()
        y = self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))
        return y, SEEN[0].mean(1)


def test_hooks_that_observe_are_kept_where_forward_needs_them() -> None:
    fresh, used = Collecting().eval(), Collecting().eval()
    with torch.no_grad():
        used(torch.randn(IMAGE))
    before = snapshot(used)
    spaces = [dp.trace(model, torch.randn(IMAGE)) for model in (fresh, used)]
    assert_unchanged(used, before)
    assert [group.name for group in spaces[0].groups] == [group.name for group in spaces[1].groups] == ["a", "b"]
    check_laws(used, torch.randn(IMAGE))


# ------------------------------------------------------------------ norms of several ranks
class AnyNorm(nn.LayerNorm):
    """Takes images (channels first) and tokens (channels last)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1) if x.dim() == 4 else super().forward(x)


class Tokens(nn.Module):
    def __init__(self, *, both: bool) -> None:
        super().__init__()
        self.stem, self.norm, self.up, self.down = conv(3, 8), AnyNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.tail, self.fc, self.both = conv(8, 6), nn.Linear(6, 3), both

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.norm(x) if self.both else x
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.down(F.relu(self.up(self.norm(tokens))))
        return self.fc(F.relu(self.tail(tokens.transpose(1, 2).reshape(x.shape))).mean((2, 3)))


@pytest.mark.parametrize("both", [False, True])
def test_a_norm_of_images_and_tokens(both: bool) -> None:
    space = check_laws(Tokens(both=both), torch.randn(IMAGE))
    assert [group.name for group in space.groups] == ["stem", "up", "tail"]
    assert [m.layer for m in space.group("stem").layers("norm")] == ["norm"]


def test_a_wrong_channel_dimension_keeps_the_layer_dense() -> None:
    class Turned(nn.BatchNorm1d):
        """Takes (N, length, channels)."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b, self.c = nn.Linear(3, 8), Turned(8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.b(self.norm(self.a(x)))))

    space = check_laws(Net(), torch.randn(1, 5, 3))
    assert [group.name for group in space.groups] == ["b"]


# ------------------------------------------------------------------ buffers that can't be drawn freely
class Normalised(nn.Module):
    """Divides by the root of stored variances, and by the logarithm of a stored scale."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 8))
        self.register_buffer("variance", torch.ones(3, 8))
        self.register_buffer("scale", torch.full((8,), 3.0))
        self.temperature = nn.Parameter(torch.full((2, 4), 2.0))
        self.body = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 8), nn.ReLU(), conv(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean[:, None]) / self.variance.sqrt()[:, None] / self.scale.sub(1.9).log().add(3)
        return self.body(x) * self.temperature.sqrt().mean()


def test_roots_of_buffers() -> None:
    space = dp.trace(Normalised(), torch.randn(IMAGE))
    assert [group.name for group in space.groups] == ["body.0", "body.2"]


def test_outputs_that_are_never_finite() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 6), conv(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) * float("nan")

    with pytest.raises(dp.PruneError, match="outputs are not finite on random weights and inputs"):
        dp.trace(Broken(), torch.randn(IMAGE))


# ------------------------------------------------------------------ counting
class Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 6), conv_bn(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(checkpoint(self.b, F.relu(self.a(x)), use_reentrant=True)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_what_torch_jit_cannot_trace_is_counted() -> None:
    model = Reentrant().eval()
    space = check_laws(model, torch.randn(IMAGE), count=False)
    assert [group.name for group in space.groups] == ["a", "b.0"]
    pixels = 64
    assert space.flops == pixels * (3 * 6 * 9 + 6 * 8 * 9 + 2 * 8) + 8 * 4
    masks = dp.Masks.random(space, keep=0.5)
    assert dp.flops(space, masks) == pixels * (3 * 3 * 9 + 3 * 4 * 9 + 2 * 4) + 4 * 4


@pytest.mark.parametrize("name", NETWORKS)
def test_both_counts_agree(name: str) -> None:
    model, inputs = NETWORKS[name]()
    with without_fast_paths():
        assert dispatch_count(model.eval(), as_call(inputs))[0] == count_flops(model, as_call(inputs))[0]


class Detections(nn.Module):
    """As many rows as there are positive scores."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 8), nn.ReLU())
        self.score, self.describe, self.fc = conv(8, 1, 1), conv(8, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        chosen = self.score(x)[0, 0].flatten() > 0
        return self.fc(self.describe(x)[0].flatten(1).t()[chosen])


def test_costs_that_depend_on_values() -> None:
    space = check_laws(Detections(), torch.randn(IMAGE), count=False)
    assert [group.name for group in space.groups] == ["body.0", "body.2", "describe"]
    assert space.cost_varies
    assert "the cost depends on values; it was counted on the example inputs" in str(space)
    assert not dp.trace(NETWORKS["plain"]().model, torch.randn(IMAGE)).cost_varies


# ------------------------------------------------------------------ layers whose result is not used
class Supervised(nn.Module):
    """A head that always runs; its result is returned in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 6), conv(6, 8)
        self.aux = nn.Sequential(conv_bn(8, 7), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4))
        self.c, self.fc = conv(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        maps = F.relu(self.b(F.relu(self.a(x))))
        aux = self.aux(maps)
        y = self.fc(F.relu(self.c(maps)).mean((2, 3)))
        return (y, aux) if self.training else y


class Waves(nn.Module):
    """Residual blocks of which the last residual is computed in vain."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.stem, self.head, self.in_place = nn.Conv1d(1, 6, 3, padding=1), nn.Conv1d(5, 2, 1), in_place
        self.filters = nn.ModuleList(nn.Conv1d(6, 8, 3, padding=1) for _ in range(3))
        self.residuals = nn.ModuleList(nn.Conv1d(8, 6, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(8, 5, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), torch.zeros(())
        for layer, residual, skip in zip(self.filters, self.residuals, self.skips, strict=True):
            z = torch.tanh(layer(x))
            total = total + skip(z)
            if self.in_place:
                x = x.clone()
                x[:, :, 1:] += residual(z)[:, :, 1:]
            else:
                x = x + residual(z)
        return self.head(F.relu(total))


def test_a_head_without_use_costs_nothing() -> None:
    space = check_laws(Supervised(), torch.randn(IMAGE))
    assert [group.name for group in space.groups] == ["a", "b", "aux.0.0", "c"]
    small = dp.slim(Supervised(), space, dp.Masks.random(space)).train()
    assert len(small(torch.randn(2, 3, 8, 8))) == 2


@pytest.mark.parametrize("in_place", [False, True])
def test_the_last_residual_costs_nothing(in_place: bool) -> None:
    space = check_laws(Waves(in_place=in_place), torch.randn(1, 1, 12))
    assert len(space.groups) == 5
    assert not [r for r in space.refused if r.layer != "head"]
