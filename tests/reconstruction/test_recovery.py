"""Label-free recovery: it lowers the held-out loss, never raises it, and does not change the dense network."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from conftest import Digits
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ConfigError, DataError, ModelError
from deap_prune.reconstruction import recovery
from deap_prune.reconstruction.dense_targets import DistanceToDense, layers_to_compare
from deap_prune.reconstruction.recovery import Recovery, recover
from tests.helpers.pruning import assert_unchanged, prepared, snapshot
from tests.helpers.training import equal_states

QUICK: dict[str, Any] = {"steps": 20, "device": "cpu", "progress": False}


def inner_pruned(digits: Digits, keep: float = 0.5) -> nn.Module:
    random = dp.Masks.random(digits.space, keep=keep, seed=0)
    names = [g.name for g in digits.space.groups if g.name.startswith("layer") and g.name.endswith("conv1")]
    return dp.slim(digits.model, digits.space, dp.Masks({name: random[name] for name in names}))


def small_pair() -> tuple[nn.Module, nn.Module, Tensor]:
    """A dense and a pruned network with batch norm, and images."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(64, 3)).eval()
    images = torch.randn(40, 1, 8, 8)
    space = dp.trace(model, images[:1])
    first = space.groups[0].name
    small = dp.slim(model, space, dp.Masks({first: dp.Masks.random(space, keep=0.5, seed=0)[first]}))
    return small, model, images


# ------------------------------------------------------------------ what it does
def test_a_damaged_network_recovers(digits: Digits) -> None:
    small = inner_pruned(digits)
    damaged = dp.accuracy(small, digits.validation, device="cpu")
    record = recover(small, digits.model, digits.splits.calibration, steps=100, lr=5e-4, device="cpu", progress=False)
    assert dp.accuracy(small, digits.validation, device="cpu") > damaged + 0.3
    assert record.after < 0.5 * record.before and record.steps > 50
    assert record.layers == ("layer1", "layer2", "layer3")
    assert [step for step, _ in record.checks] == list(range(0, 101, 10)) and record.steps_run == 100
    assert not any(module.training for module in small.modules())
    assert not any(module._forward_hooks for module in small.modules())
    assert all(parameter.grad is None for parameter in small.parameters())


def test_labels_have_no_effect(digits: Digits) -> None:
    images, labels = digits.calibration
    one, two = inner_pruned(digits), inner_pruned(digits)
    recover(one, digits.model, (images, labels), **QUICK)
    recover(two, digits.model, (images, torch.zeros_like(labels)), **QUICK)
    assert equal_states(one, two)


def test_the_dense_network_does_not_change(digits: Digits) -> None:
    model = copy.deepcopy(digits.model)
    model.train()
    model.get_submodule("layer1").eval()
    model.get_submodule("conv1").requires_grad_(False)
    calls: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: calls.append(1))
    before, modes = snapshot(model), [module.training for module in model.modules()]
    recover(inner_pruned(digits), nn.DataParallel(model), digits.calibration, **QUICK)
    assert_unchanged(model, before)
    assert modes == [module.training for module in model.modules()] and calls
    assert [len(module._forward_hooks) for module in model.modules()] == [1] + [0] * (len(modes) - 1)
    assert [p.requires_grad for p in model.get_submodule("conv1").parameters()] == [False]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_equal_seeds_give_equal_weights(digits: Digits) -> None:
    networks = [inner_pruned(digits) for _ in range(3)]
    for network, seed in zip(networks, (5, 5, 6), strict=True):
        torch.rand(1)  # the global random state has no effect
        state = torch.random.get_rng_state()
        recover(network, digits.model, digits.calibration, seed=seed, **QUICK)
        assert torch.equal(torch.random.get_rng_state(), state)
    assert equal_states(networks[0], networks[1]) and not equal_states(networks[0], networks[2])


@pytest.mark.parametrize(
    ("losses", "exhausted"),
    [
        ([1.0, 3.0, 2.0, 1.5, 1.2], False),
        ([1.0, 0.8, 0.7, 0.8, 0.9], False),
        ([1.0, 0.8, 0.8, 0.9, 0.9], True),
        ([1.0, math.nan], True),
    ],
)
def test_when_training_stops(losses: list[float], exhausted: bool) -> None:
    """The loss of step 0 does not count."""
    assert recovery.patience_exhausted(list(enumerate(losses))) == exhausted


@pytest.mark.parametrize("lr", [10.0, 1e30])
def test_never_worse_on_held_out_images(lr: float, digits: Digits) -> None:
    """A learning rate that ruins the network leaves its weights as they were."""
    small = inner_pruned(digits)
    before = copy.deepcopy(small)
    record = recover(small, digits.model, digits.calibration, lr=lr, **{**QUICK, "steps": 40})
    assert record.before == record.after and record.steps == 0
    assert all(math.isfinite(loss) for _, loss in record.checks)
    assert equal_states(small, before)


def test_an_interrupted_recovery_keeps_the_best_weights(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    small = inner_pruned(digits)
    before = copy.deepcopy(small)
    steps = iter(range(100))
    take_step = recovery._take_step

    def interrupted(*args: Any) -> None:
        if next(steps) == 3:
            raise KeyboardInterrupt
        take_step(*args)

    monkeypatch.setattr(recovery, "_take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recover(small, digits.model, digits.calibration, **{**QUICK, "steps": 100})
    assert equal_states(small, before) and not small.training


def test_frozen_parameters_do_not_change() -> None:
    small, model, images = small_pair()
    small[0].requires_grad_(False)
    before = copy.deepcopy(small)
    recover(small, model, (images, torch.zeros(40, dtype=torch.int64)), **QUICK)
    assert equal_states(small[0], before[0]) and not equal_states(small[3], before[3])
    with pytest.raises(ModelError, match="no parameter has requires_grad=True"):
        recover(small.requires_grad_(False), model, (images, torch.zeros(40)), **QUICK)


# ------------------------------------------------------------------ data of all kinds
def test_dictionaries_as_batches(digits: Digits) -> None:
    """Batches of a user's shape: images in a dict, no targets; augmented all the same."""
    images = digits.calibration[0]
    shapes: set[tuple[int, ...]] = set()

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Any, None]:
        shapes.add(tuple(batch["image"].shape))
        return {"logits": model(batch["image"])}, None

    small = inner_pruned(digits)
    batches = [{"image": part, "weight": torch.ones(len(part))} for part in images.split(30)]
    record = recover(small, digits.model, iter(batches), forward=forward, batch_size=16, lr=1e-3, **QUICK)
    assert record.after < record.before and (16, 1, 8, 8) in shapes


def test_images_of_a_sample_are_moved_alike() -> None:
    images = torch.randn(6, 1, 8, 8)
    batch = {"left": images, "pair": (2 * images, torch.arange(6))}
    moved = recovery._augmented(batch, torch.Generator().manual_seed(0))
    assert torch.equal(2 * moved["left"], moved["pair"][0]) and not torch.equal(moved["left"], images)
    assert moved["pair"][1].tolist() == list(range(6))


def test_every_sample_is_used_equally_often() -> None:
    batches = recovery._draws(torch.arange(10.0), 4, False, torch.Generator().manual_seed(0))
    drawn = torch.cat([next(batches) for _ in range(5)])
    assert all(sorted(part.tolist()) == list(range(10)) for part in drawn.split(10))


def test_held_out_samples_are_not_trained_on() -> None:
    batch, cpu = (torch.arange(40.0).unsqueeze(1), torch.arange(40)), torch.device("cpu")
    used, held_out = recovery._images(batch, None, 0.25, 64, cpu, torch.Generator().manual_seed(0))
    assert len(used[1]) == 30 and sorted([*used[1].tolist(), *held_out[0][1].tolist()]) == list(range(40))
    used, held_out = recovery._images(batch, (batch[0][:5], batch[1][:5]), 0.25, 64, cpu, torch.Generator())
    assert used[1].tolist() == list(range(40)) and held_out[0][1].tolist() == list(range(5))


def test_validation_images_decide(digits: Digits) -> None:
    small = inner_pruned(digits)
    distance = DistanceToDense(copy.deepcopy(small).eval(), digits.model, recovery.default_forward, (), 1.0)
    images, labels = digits.validation[0][:100], digits.validation[1][:100]
    with torch.no_grad():
        before = float(distance((images, labels), distance.targets((images, labels))))
    record = recover(small, digits.model, digits.calibration, validation=(images, labels), layers=(), **QUICK)
    assert record.before == pytest.approx(before, rel=1e-5)


def test_images_are_blended() -> None:
    """Each image of a batch is a share of itself and the rest of another one, each shifted or mirrored before."""
    colours = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 16, 16) + 1
    moved = recovery._augmented(colours, torch.Generator().manual_seed(0))[:, 0, 4:12, 4:12]  # no padding there
    assert torch.allclose(moved, moved[:, :1, :1]) and float(moved.min()) >= 1 and float(moved.max()) <= 8
    assert len(moved[:, 0, 0].unique()) == 8 and not (moved[:, 0, 0] == moved[:, 0, 0].round()).all()


def test_statistics_do_not_change(digits: Digits) -> None:
    """So a network that is refined is the same function when its training begins."""
    small = inner_pruned(digits)
    norms = [copy.deepcopy(m) for m in small.modules() if isinstance(m, nn.BatchNorm2d)]
    record = recover(small, digits.model, digits.calibration, **QUICK)
    after = [m for m in small.modules() if isinstance(m, nn.BatchNorm2d)]
    assert record.steps and norms
    for one, two in zip(norms, after, strict=True):
        assert torch.equal(one.running_mean, two.running_mean) and torch.equal(one.running_var, two.running_var)
        assert not torch.equal(one.weight, two.weight)


@pytest.mark.parametrize("name", ["residual", "norms", "attention", "auxiliary", "sequence", "dict_inputs", "points"])
def test_any_network(name: str) -> None:
    """Any inputs and outputs, several outputs too, and no layer to compare if all are pruned."""
    _, _, space, random, call = prepared(name)
    small = dp.slim(random, space, dp.Masks.random(space, keep=0.5, seed=0))

    def forward(model: nn.Module, batch: Any) -> tuple[Any, None]:
        args, kwargs = batch
        return model(*args, **kwargs), None

    before = snapshot(random)
    record = recover(small, random, [call] * 8, forward=forward, held_out=0.2, **{**QUICK, "steps": 2})
    assert record.after <= record.before
    assert_unchanged(random, before)


# ------------------------------------------------------------------ the loss
def test_the_loss_follows_the_formula() -> None:
    small, model, images = small_pair()
    labels = torch.zeros(40, dtype=torch.int64)

    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        return model(batch[0]), batch[1]

    with torch.no_grad():
        features, dense = small[:5](images), model[:5](images)
        p, q = model(images).softmax(1), small(images).softmax(1)
        error = (features - dense).square().sum() / dense.square().sum()
        divergence = (p * (p / q).log()).sum(1).mean()
        outputs = (small(images) - model(images)).square().sum() / model(images).square().sum()
        for targets, distance in ((labels, divergence), (labels.float(), outputs)):
            match = DistanceToDense(small, model, forward, ("4",), 0.5)
            batch = images, targets
            torch.testing.assert_close(match(batch, match.targets(batch)), error + 0.5 * distance)


def test_the_last_layer_of_each_resolution_is_compared(digits: Digits) -> None:
    def choose(small: nn.Module, model: nn.Module, images: Tensor, chosen: Any = None) -> tuple[str, ...]:
        def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
            return model(batch), None

        return layers_to_compare(small.eval(), model.eval(), forward, images, chosen)

    assert choose(inner_pruned(digits), digits.model, digits.example) == ("layer1", "layer2", "layer3")
    small, model, images = small_pair()
    assert choose(small, model, images) == ("4",)
    assert choose(small, model, images, ["3"]) == ("3",)
    with pytest.raises(ModelError, match=r"output of '0' can't be compared: \(40, 4, 6, 6\) in the pruned"):
        choose(small, model, images, ["0"])
    with pytest.raises(ModelError, match="no layer '44' in both networks"):
        choose(small, model, images, ["44"])


# ------------------------------------------------------------------ errors and progress
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0 for the recovery; give a number at least 1"),
        ({"lr": 0.0}, r"lr=0\.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"held_out": 0.0}, r"held_out=0\.0"),
        ({"held_out": 1}, "held_out=1"),
        ({"output_weight": -1.0}, r"output_weight=-1\.0"),
        ({"output_weight": 0.0, "layers": ()}, "output_weight=0 and no layer to compare"),
    ],
)
def test_illegal_options(options: dict[str, Any], message: str) -> None:
    small, model, images = small_pair()
    with pytest.raises(ConfigError, match=message):
        recover(small, model, (images, torch.zeros(40)), **{**QUICK, **options})


def test_errors() -> None:
    small, model, images = small_pair()
    targets = torch.zeros(40, dtype=torch.int64)
    with pytest.raises(ModelError, match="small shares parameters with the dense network"):
        recover(model, model, (images, targets), **QUICK)
    with pytest.raises(DataError, match="calibration is empty"):
        recover(small, model, [], **QUICK)
    with pytest.raises(DataError, match=r"2 calibration samples with held_out=0\.1 leave 1 to train on"):
        recover(small, model, (images[:2], targets[:2]), **QUICK)
    with pytest.raises(DataError, match="the network fails on the calibration data"):
        recover(small, model, (images[..., :3], targets), **QUICK)
    with pytest.raises(DataError, match="the calibration batches can't be joined"):
        recover(small, model, [(images, targets), (images[..., :7], targets)], **QUICK)
    with pytest.raises(ModelError, match="can't be compared with the dense network's"):
        recover(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), model, (images, targets), **QUICK)
    with torch.no_grad():
        small[3].weight.fill_(math.nan)
    with pytest.raises(ModelError, match="the loss is nan before the first step"):
        recover(small, model, (images, targets), **QUICK)


def test_progress_shows_the_held_out_loss(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "deap_prune.progress")
    small, model, images = small_pair()
    data = images, torch.zeros(40, dtype=torch.int64)
    record = recover(small, model, data, steps=2, device="cpu")
    assert isinstance(record, Recovery) and "held-out loss" in caplog.text
    assert str(record).startswith(f"held-out loss {record.before:.4f} -> {record.after:.4f} in {record.steps} steps")
    caplog.clear()
    recover(small, model, data, **QUICK)
    assert not caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
def test_on_cuda(digits: Digits) -> None:
    on_cpu, on_cuda = inner_pruned(digits), inner_pruned(digits)
    records = [
        recover(network, digits.model, digits.calibration, **{**QUICK, "device": device})
        for network, device in ((on_cpu, "cpu"), (on_cuda, "cuda"))
    ]
    assert records[1].after == pytest.approx(records[0].after, rel=1e-2)
    assert {p.device.type for p in (*on_cuda.parameters(), *digits.model.parameters())} == {"cpu"}
