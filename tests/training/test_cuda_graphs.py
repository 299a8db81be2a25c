"""CUDA graphs: a captured function gives the results of the function itself."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.cuda_graphs import Graphs
from deap_prune.errors import DataError

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")


@pytest.fixture(autouse=True)
def exact() -> Any:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def make_net(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    return nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), *layers, *head)


def images(count: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, 8, 8, generator=generator), torch.randint(3, (count,), generator=generator)


def largest_difference(network: nn.Module, reference: nn.Module) -> float:
    pairs = zip(network.state_dict().values(), reference.state_dict().values(), strict=True)
    return max(float((a.cpu() - b.cpu()).abs().max()) for a, b in pairs)


@on_cuda
def test_batches_of_several_shapes() -> None:
    net = make_net().cuda().eval()
    graphs = Graphs(torch.no_grad()(lambda batch: net(batch[0])), name="the network")
    for count in (5, 7, 5, 7):
        batch = [part.cuda() for part in images(count)]
        assert torch.allclose(graphs(batch), net(batch[0]), atol=1e-6)
    first = graphs([part.cuda() for part in images(5)])
    graphs([part.cuda() + 1 for part in images(5)])
    assert torch.allclose(first, net(images(5)[0].cuda()), atol=1e-6)  # a later replay does not change it


@on_cuda
@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "lr": 1e-3}, {"optimizer": "adam", "ema": 0.9}])
@pytest.mark.parametrize("with_teacher", [False, True])
def test_captured_training_equals_training(options: dict[str, Any], with_teacher: bool) -> None:
    recipe, teacher = dp.Recipe(**{"lr": 0.01, "batch_size": 8, **options}), make_net() if with_teacher else None
    nets = [make_net() for _ in range(3)]
    options = {"epochs": 3, "recipe": recipe, "teacher": teacher, "augment": True, "progress": False}
    on_cpu = dp.finetune(nets[0], images(), device="cpu", **options)
    captured = dp.finetune(nets[1], images(), device="cuda", **options)

    def forward(model: nn.Module, batch: Any) -> Any:  # a user's forward function is not captured
        return model(batch[0]), batch[1]

    plain = dp.finetune(nets[2], images(), device="cuda", forward=forward, **options)
    assert largest_difference(nets[1], nets[2]) < 1e-4
    assert largest_difference(nets[0], nets[1]) < 1e-3
    for one, two, three in zip(on_cpu, captured, plain, strict=True):
        assert two.train_loss == pytest.approx(three.train_loss, rel=1e-4)
        assert two.train_loss == pytest.approx(one.train_loss, rel=1e-3)
        assert two.lr == pytest.approx(one.lr)


@on_cuda
def test_captured_training_resumes(tmp_path: Any) -> None:
    recipe = dp.Recipe(batch_size=8)
    options = {"epochs": 4, "recipe": recipe, "device": "cuda", "progress": False}
    uninterrupted, interrupted = make_net(), make_net()
    dp.finetune(uninterrupted, images(), **options)
    with pytest.raises(KeyboardInterrupt):
        dp.finetune(interrupted, images(), Interrupts(2), state=tmp_path / "state", **options)
    resumed = make_net()
    assert len(dp.finetune(resumed, images(), state=tmp_path / "state", **options)) == 4
    assert largest_difference(uninterrupted, resumed) < 1e-4


class Interrupts:
    """Validation batches that raise KeyboardInterrupt after some passes."""

    def __init__(self, passes: int) -> None:
        self.remaining = passes

    def __iter__(self) -> Any:
        self.remaining -= 1
        if self.remaining < 0:
            raise KeyboardInterrupt
        return iter([images()])


class DependsOnValues(nn.Module):
    """A layer whose computation depends on values: it can't be captured."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.detach().mean()) > 1e9 else x


@on_cuda
def test_a_network_that_depends_on_values_is_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    net = make_net(DependsOnValues())
    before = copy.deepcopy(net)
    with caplog.at_level(logging.WARNING):
        records = dp.finetune(net, images(), epochs=3, recipe=dp.Recipe(batch_size=8), device="cuda", progress=False)
    assert "the training step can't be captured as a CUDA graph" in caplog.text
    assert len(records) == 3
    assert largest_difference(before, net) > 0


@on_cuda
def test_labels_are_checked_before_training() -> None:
    inputs, targets = images()
    targets[49] = 3
    with pytest.raises(DataError, match="labels from 0 to 3; the network has classes 0 to 2"):
        dp.finetune(make_net(), (inputs, targets), epochs=1, device="cuda", progress=False)


class FakeGraph:
    """A graph without a device."""

    def replay(self) -> None:
        pass


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_a_failed_capture_is_repeated(
    failures: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs, remaining = [], failures
    graphs = Graphs(lambda batch: runs.append(1) or batch.sum(), name="the sum", alters=True)

    def capture(batch: Tensor) -> Any:
        nonlocal remaining
        remaining -= 1
        if remaining >= 0:
            raise RuntimeError("interrupted")
        return FakeGraph(), batch.clone(), torch.tensor(7.0)

    monkeypatch.setattr(graphs, "_capture", capture)
    with caplog.at_level(logging.WARNING):
        values = [float(graphs(torch.ones(4))) for _ in range(8)]
    ran = 8 if failures == 3 else 3 + failures  # the first three steps, and those whose capture failed
    assert len(runs) == ran
    assert values == [4.0] * ran + [7.0] * (8 - ran)
    assert ("the sum can't be captured as a CUDA graph (interrupted)" in caplog.text) == (failures == 3)
