"""A candidate has one result, whatever the executor and whatever was evaluated before."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from conftest import Digits
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.data.batches import default_forward
from deap_prune.errors import ConfigError
from deap_prune.fitness.fold import find_pairs, fold
from deap_prune.fitness.slim_buffer import SlimBuffer
from deap_prune.precision import computes_bf16
from deap_prune.structure.inputs import forward
from tests.helpers.networks import NETWORKS
from tests.helpers.pruning import draw_masks, gap, prepared


def tuple_forward(model: nn.Module, batch: Any) -> tuple[list[Tensor], Tensor]:
    return forward(model, batch), torch.zeros(1)


def executor_of(name: str, kind: str) -> tuple[dp.Evaluator, Any]:
    _, _, space, random, call = prepared(name)
    options: dict[str, Any] = {"objectives": ("flops",), "recalibrate": None, "device": "cpu", "executor": kind}
    evaluate = dp.Evaluator(random, space, calibration=[call], validation=[call], forward=tuple_forward, **options)
    return evaluate, call


@pytest.mark.parametrize("name", NETWORKS)
def test_the_slim_buffer_holds_the_slim_network(name: str) -> None:
    """Same state dict, widths and outputs; nothing of an earlier candidate or of folding is left."""
    _, _, space, random, call = prepared(name)
    before = {key: value.clone() for key, value in random.state_dict().items()}
    buffer, pairs = SlimBuffer(random, space), find_pairs(random, tuple_forward, call)
    for seed in (1, 2, 1):
        masks = draw_masks(space, seed)
        expected, loaded = dp.slim(random, space, masks), buffer.load(masks)
        assert OrderedDict(expected.state_dict()).keys() == loaded.state_dict().keys()
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in expected.state_dict().items())
        assert repr(expected) == repr(loaded)
        with torch.no_grad():
            assert gap(forward(loaded, call), forward(expected, call)) == 0
            fold(loaded, pairs)
            assert gap(forward(loaded, call), forward(expected, call)) < 1e-9
    assert all(torch.equal(value, random.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_executors_agree(name: str) -> None:
    """float64, on every test network: slim and folded, or at full size under the mask."""
    evaluators = [executor_of(name, kind) for kind in ("slim", "masked")]
    for seed in (3, 4):
        outputs = []
        for evaluate, call in evaluators:
            masks = draw_masks(evaluate.space, seed)
            evaluate._executor.load(evaluate.slim(masks), masks)
            outputs.append(evaluate._executor(call)[0])
        assert gap(*outputs) < 1e-9


def test_the_same_accuracy_through_either(digits: Digits) -> None:
    slim, masked = (digits.evaluator(objectives=("accuracy", "loss"), executor=kind) for kind in ("slim", "masked"))
    for seed in range(3):
        masks = dp.Masks.random(digits.space, keep=0.6, seed=seed)
        (a, a_loss), (b, b_loss) = slim(masks), masked(masks)
        assert abs(a - b) <= 1 / len(digits.validation[0])
        assert a_loss == pytest.approx(b_loss, rel=1e-4)
        assert slim.measure(slim.slim(masks), masks)[1] == pytest.approx(a_loss, rel=1e-4)


@pytest.mark.parametrize("kind", ["slim", "masked"])
def test_order_does_not_matter(digits: Digits, kind: str) -> None:
    """Bit for bit: the values of a candidate depend on its masks alone."""
    masks = [dp.Masks.random(digits.space, keep=k, seed=s) for s, k in enumerate((0.3, 0.9, 0.6))]
    names = ("loss", "agreement", "flops")
    forwards = digits.evaluator(objectives=names, executor=kind).many(masks)
    backwards = digits.evaluator(objectives=names, executor=kind).many(masks[::-1])
    assert forwards == backwards[::-1]
    evaluate = digits.evaluator(objectives=names, executor=kind)
    evaluate.measure(evaluate.slim(masks[0]), masks[0])
    assert evaluate(masks[2]) == forwards[2]


# ------------------------------------------------------------------ folding
class Twice(nn.Module):
    """The first layer's output is read by its batch norm, and by the sum if ``also``."""

    def __init__(self, also: bool) -> None:
        super().__init__()
        self.conv, self.bn, self.also = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), also
        self.last = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.last(self.bn(y) + y if self.also else self.bn(y))


def test_only_layers_read_by_their_batch_norm_alone_are_folded() -> None:
    batch = (torch.randn(2, 3, 6, 6), torch.zeros(2))
    call = default_forward
    assert find_pairs(Twice(also=False).eval(), call, batch) == (("conv", "bn"), ("last.0", "last.1"))
    assert find_pairs(Twice(also=True).eval(), call, batch) == (("last.0", "last.1"),)


def test_every_batch_norm_of_a_residual_network_is_folded(digits: Digits) -> None:
    model = copy.deepcopy(digits.model).eval()
    batch = (digits.example, torch.zeros(1))
    names = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {second for _, second in find_pairs(model, default_forward, batch)} == names


# ------------------------------------------------------------------ precision, devices, messages
@pytest.mark.skipif(not computes_bf16(torch.device("cpu")), reason="this processor has no bf16 instructions")
def test_bf16_is_close(digits: Digits) -> None:
    masks = dp.Masks.random(digits.space, keep=0.8)
    exact, fast = (digits.evaluator(objectives=("loss",), precision=p)(masks)[0] for p in ("fp32", "bf16"))
    assert fast == pytest.approx(exact, rel=0.05) and fast != exact


@pytest.mark.skipif(computes_bf16(torch.device("cpu")), reason="this processor has bf16 instructions")
def test_bf16_only_where_the_processor_has_it(digits: Digits) -> None:
    masks = dp.Masks.random(digits.space)
    with pytest.raises(ConfigError, match="precision is 'bf16', which cpu does not compute in; use 'fp32' or 'auto'"):
        digits.evaluator(precision="bf16")(masks)
    assert digits.evaluator(precision="auto")(masks) == digits.evaluator()(masks)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("kind", ["slim", "masked"])
def test_cuda_executors(digits: Digits, kind: str) -> None:
    """The replayed graph gives the CPU's values, for every candidate and for a last batch of another size."""
    on_cpu = digits.evaluator(objectives=("loss", "flops"), batch_size=150)
    on_cuda = digits.evaluator(objectives=("loss", "flops"), batch_size=150, device="cuda", executor=kind)
    for seed in range(3):
        masks = dp.Masks.random(digits.space, keep=0.7, seed=seed)
        assert on_cuda(masks) == pytest.approx(on_cpu(masks), rel=1e-3)


def test_option_messages(digits: Digits) -> None:
    with pytest.raises(ConfigError, match="executor is 'quick'; it is 'auto', 'slim' or 'masked'"):
        digits.evaluator(executor="quick")
    with pytest.raises(ConfigError, match="precision is 'fp8'; it is 'fp32', 'bf16' or 'auto'"):
        digits.evaluator(precision="fp8")
    with pytest.raises(ConfigError, match=r"unknown option 'recalibration' of the Evaluator; did you mean 'recali"):
        digits.evaluator(recalibration="data")
