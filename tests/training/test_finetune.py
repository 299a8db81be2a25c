"""Training in place: what it learns, what it leaves alone, and its errors."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deap_prune.errors import ConfigError, DataError, ModelError, RunError
from deap_prune.training import EpochRecord, Recipe, accuracy, best_epoch, finetune

Pair = tuple[Tensor, Tensor]


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(64, 2),
    )


@pytest.fixture
def data() -> Pair:
    """Images that are brighter on the left (0) or on the right (1)."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(2, (101,), generator=generator)
    inputs = torch.randn(101, 1, 4, 4, generator=generator)
    inputs[..., :2] += (1 - targets).float()[:, None, None, None]
    inputs[..., 2:] += targets.float()[:, None, None, None]
    return inputs, targets


def quick(model: nn.Module, train: Any, validation: Any = None, **options: Any) -> list[EpochRecord]:
    return finetune(model, train, validation, **{"epochs": 2, "progress": False, "device": "cpu", **options})


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_frozen_norm_keeps_its_statistics(data: Pair) -> None:
    model = make_net()
    for frozen in (True, False):
        model[1].requires_grad_(not frozen)
        before = model[1].running_mean.clone()
        quick(model, data)
        assert torch.equal(model[1].running_mean, before) == frozen


def test_it_learns_and_records(data: Pair) -> None:
    model = make_net()
    records = quick(model, data, data, epochs=6, recipe=Recipe(lr=0.05, batch_size=16))
    assert [r.epoch for r in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1].train_loss < 0.6 * records[0].train_loss
    assert records[-1].validation_accuracy == accuracy(model, data) > 0.9
    assert records[0].lr > records[-1].lr > 0
    assert all(r.seconds > 0 for r in records)
    assert not any(module.training for module in model.modules())


def test_the_same_seed_gives_the_same_weights(data: Pair) -> None:
    nets = [make_net() for _ in range(3)]
    for net, seed in zip(nets, (5, 5, 6), strict=True):
        torch.rand(1)  # the global state must not matter
        before = torch.random.get_rng_state()
        quick(net, data, seed=seed, augment=True)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])


def test_validation_changes_nothing(data: Pair) -> None:
    with_it, without = make_net(), make_net()
    quick(with_it, data, (data[0], 1 - data[1]))
    assert quick(without, data)[0].validation_accuracy is None
    assert same(with_it, without)


def test_batches_instead_of_tensors(data: Pair) -> None:
    batches = list(zip(data[0].split(20), data[1].split(20), strict=True))
    model = make_net()
    assert len(quick(model, batches, batches)) == 2
    assert accuracy(model, batches) == accuracy(model, data) == accuracy(model, data, batch_size=7)
    two = batches[:2]  # a list of two batches is not a pair of tensors
    assert len(quick(model, two, two)) == 2


def test_a_last_batch_of_one_does_not_upset_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Flatten())
    quick(model, (torch.randn(17, 1, 2, 2), torch.zeros(17, dtype=torch.int64)), recipe=Recipe(batch_size=16))


def test_distillation_follows_the_formula(data: Pair) -> None:
    student, teacher = make_net()[4:], make_net()[4:]
    flat = data[0].repeat(1, 4, 1, 1), data[1]
    nn.init.normal_(teacher[1].weight)
    teacher.train()
    kept = copy.deepcopy(teacher)
    z, t = student(flat[0]), teacher(flat[0])
    p, q = F.softmax(t / 3, 1), F.softmax(z / 3, 1)
    wanted = 0.3 * F.cross_entropy(z, flat[1]) + 0.7 * 9 * (p * (p / q).log()).sum(1).mean()
    recipe = Recipe(temperature=3, distill=0.7, batch_size=101)
    record = quick(student, flat, epochs=1, teacher=teacher, recipe=recipe)[0]
    assert record.train_loss == pytest.approx(wanted.item(), rel=1e-5)
    assert same(kept, teacher)
    assert all(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_from_scratch_forgets_everything(data: Pair) -> None:
    a, b = make_net(), make_net()
    quick(b, data, recipe=Recipe(lr=0.1))
    for net in (a, b):
        quick(net, data, from_scratch=True, seed=2)
    assert same(a, b)


def test_from_scratch_refuses_what_it_cannot_reset(data: Pair) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), Scale())
    kept = copy.deepcopy(model)
    with pytest.raises(ModelError, match=r"'2' \(Scale\)"):
        quick(model, data, from_scratch=True)
    assert same(kept, model)


def test_frozen_parameters_stay(data: Pair) -> None:
    model = make_net()
    model[0].requires_grad_(False)
    kept = copy.deepcopy(model[0])
    quick(model, data)
    assert same(kept, model[0])
    with pytest.raises(ModelError, match="requires_grad"):
        quick(model.requires_grad_(False), data)


def test_forward_and_augment_callables(data: Pair) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"logits": self.net(batch["x"])}

    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        return model({"x": batch[0]})["logits"], batch[1]

    def darken(inputs: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(len(inputs))
        return inputs * torch.rand((), generator=generator)

    calls: list[int] = []
    model = Wrapped()
    quick(model, data, data, forward=forward, augment=darken)
    assert sum(calls) == 2 * 101
    assert 0 <= accuracy(model, data, forward=forward) <= 1


def test_accuracy_counts_and_leaves_the_modes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2), nn.Identity())
    model[1].eval()
    assert accuracy(model, (torch.tensor([[1.0, 0], [0, 1], [1, 0]]), torch.tensor([0, 1, 1]))) == pytest.approx(2 / 3)
    assert [m.training for m in model] == [True, False, True]


def test_schedules() -> None:
    cosine = Recipe(lr=1, warmup_epochs=2)
    assert [cosine.rate(e, 10) for e in (1, 2, 6, 10)] == pytest.approx([0.5, 1, 0.5, 0])
    step = Recipe(lr=1, schedule="step")
    assert [step.rate(e, 4) for e in (1, 2, 3)] == pytest.approx([1, 0.1, 0.01])
    assert Recipe(lr=0.2, schedule="constant").rate(3, 4) == 0.2


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_optimizers(data: Pair, optimizer: Any) -> None:
    model = make_net()
    records = quick(model, data, recipe=Recipe(optimizer=optimizer, lr=0.01, momentum=0), epochs=3)
    assert records[-1].train_loss < records[0].train_loss


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgdd"},
        {"schedule": "cos"},
        {"lr": 0},
        {"batch_size": 0},
        {"momentum": 1},
        {"distill": 1.5},
        {"temperature": 0},
        {"weight_decay": -1},
        {"warmup_epochs": -1},
        {"precision": "fp16"},
        {"ema": 1},
        {"patience": 0},
    ],
)
def test_recipes_that_cannot_be_used(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(options.values())))):
        Recipe(**options)


def test_errors(data: Pair) -> None:
    inputs, targets = data
    for broken in (
        (inputs, targets[:-1]),
        (inputs[:0], targets[:0]),
        (inputs, targets + 1),
        (inputs, targets.float()),
        [],
        (batch for batch in [data]),
    ):
        with pytest.raises(DataError):
            quick(make_net(), broken)
    with pytest.raises(DataError, match="empty"):
        accuracy(make_net(), [])
    model = make_net()
    with pytest.raises(ModelError, match="teacher is the network itself"):
        quick(model, data, teacher=model)
    with pytest.raises(ModelError, match=r"teacher gives \(.*10\)"):
        quick(model, data, teacher=nn.Sequential(nn.Flatten(), nn.Linear(16, 10)))
    with pytest.raises(ModelError, match="forward="):
        accuracy(nn.Identity(), data)
    with pytest.raises(ConfigError, match="epochs=0"):
        quick(model, data, epochs=0)
    with pytest.raises(ConfigError, match="epochs=2 with warmup_epochs=2"):
        quick(model, data, epochs=2, recipe=Recipe(warmup_epochs=2))


def test_a_loss_that_is_not_finite_is_an_error(data: Pair) -> None:
    model = make_net()
    with pytest.raises(ModelError, match="lr="):
        quick(model, (data[0] * math.nan, data[1]))
    assert not model.training


def test_progress_shows_loss_and_accuracy(data: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(make_net(), data, data, epochs=1)
    out = capsys.readouterr().err
    assert "loss" in out
    assert "accuracy" in out
    quick(make_net(), data)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_training_goes_on_as_if_it_had_not(data: Pair, optimizer: Any, tmp_path: Any) -> None:
    recipe = Recipe(optimizer=optimizer, ema=0.9, batch_size=16, warmup_epochs=1)
    options = {"epochs": 4, "augment": True, "recipe": recipe, "teacher": make_net()}
    whole, parts = make_net(), make_net()
    records = quick(whole, data, data, **options)
    calls = iter(range(100))

    def stop(inputs: Tensor, generator: torch.Generator) -> Tensor:
        if next(calls) == 17:  # in the third epoch, of 7 batches each
            raise KeyboardInterrupt
        from deap_prune.data import augment

        return augment(inputs, generator)

    with pytest.raises(KeyboardInterrupt):
        quick(parts, data, data, **{**options, "augment": stop}, state=tmp_path / "state")
    fresh = make_net()
    with torch.no_grad():
        fresh[0].weight.zero_()
    again = quick(fresh, data, data, **options, state=tmp_path / "state")
    assert same(whole, fresh)
    assert [(r.epoch, r.train_loss, r.lr) for r in again] == [(r.epoch, r.train_loss, r.lr) for r in records]
    assert quick(fresh, data, data, **options, state=tmp_path / "state") == again  # nothing left to do
    assert same(whole, fresh)


def test_a_state_of_another_training_is_an_error(data: Pair, tmp_path: Any) -> None:
    quick(make_net(), data, state=tmp_path / "state")
    with pytest.raises(RunError, match="of a training with another lr, seed; give the same"):
        quick(make_net(), data, state=tmp_path / "state", recipe=Recipe(lr=0.5), seed=1)
    with pytest.raises(RunError, match="of a training with another teacher, augment; give the same"):
        quick(make_net(), data, state=tmp_path / "state", teacher=make_net(), augment=True)
    with pytest.raises(RunError, match="is of another network"):
        quick(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), data, state=tmp_path / "state")
    (tmp_path / "state").write_text("nothing")
    with pytest.raises(RunError, match="can't be read as the state of a training"):
        quick(make_net(), data, state=tmp_path / "state")


def test_averaged_weights_follow_the_formula(data: Pair) -> None:
    """One step: the average of the weights before and after, by the decay as it warms up."""
    model, plain, start = make_net(), make_net(), make_net()
    flat = {"epochs": 1, "recipe": Recipe(batch_size=101, schedule="constant")}
    record = quick(model, data, data, **{**flat, "recipe": Recipe(batch_size=101, schedule="constant", ema=0.5)})[0]
    quick(plain, data, **flat)
    decay = min(0.5, 2 / 11)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            wanted = decay * start.state_dict()[name] + (1 - decay) * plain.state_dict()[name]
            torch.testing.assert_close(value, wanted)
    assert record.validation_accuracy == accuracy(model, data)


def test_early_stop_keeps_the_last_epoch(data: Pair) -> None:
    """Targets turned round: validation gets worse as training goes well."""
    model, known = make_net(), make_net()
    recipe = Recipe(lr=0.05, batch_size=16, patience=2, schedule="constant")
    records = quick(model, data, (data[0], 1 - data[1]), epochs=20, recipe=recipe)
    best = best_epoch(records)
    assert best is not None and len(records) == best.epoch + 2 < 20
    quick(known, data, epochs=len(records), recipe=Recipe(lr=0.05, batch_size=16, schedule="constant"))
    assert same(model, known)
    assert best_epoch(quick(make_net(), data)) is None
    with pytest.raises(ConfigError, match="patience=2 follows the validation accuracy"):
        quick(make_net(), data, recipe=recipe)


def test_mixed_precision_trains_weights_that_stay_single(data: Pair) -> None:
    model, single = make_net(), make_net()
    recipe = Recipe(lr=0.05, batch_size=16, precision="bf16")
    records = quick(model, data, data, epochs=6, recipe=recipe, teacher=make_net())
    quick(single, data, data, epochs=6, recipe=Recipe(lr=0.05, batch_size=16), teacher=make_net())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert records[-1].train_loss < records[0].train_loss and not same(model, single)


# ------------------------------------------------------------------ other tasks
@pytest.fixture
def brightness(data: Pair) -> Pair:
    """Images, and how bright their left half is, shape (N, 1)."""
    return data[0], data[0][..., :2].mean((1, 2, 3)).unsqueeze(1)


def regressor(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))


def test_a_loss_of_ones_own(brightness: Pair) -> None:
    """It is what is made small, and measured; a mean and a value a sample are the same."""
    model, each = regressor(), regressor()
    options: dict[str, Any] = {"epochs": 6, "recipe": Recipe(lr=0.05, batch_size=16)}
    records = quick(model, brightness, brightness, loss=F.mse_loss, **options)
    assert records[-1].train_loss < 0.5 * records[0].train_loss
    assert records[-1].validation_accuracy is None
    with torch.no_grad():
        assert records[-1].validation_loss == pytest.approx(float(F.mse_loss(model(brightness[0]), brightness[1])))
    quick(each, brightness, loss=lambda out, y: (out - y).square().squeeze(1), **options)
    for a, b in zip(model.parameters(), each.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    best = best_epoch(records)
    assert best is not None and best.validation_loss == min(r.validation_loss or math.inf for r in records)


def test_a_teacher_of_another_task(brightness: Pair) -> None:
    """Squared differences of the outputs, where targets are no class labels."""
    student, teacher = regressor(), regressor(1)
    z, t = student(brightness[0]), teacher(brightness[0])
    wanted = 0.3 * (z - brightness[1]).abs().mean() + 0.7 * (z - t).square().mean()
    recipe = Recipe(distill=0.7, batch_size=101)
    record = quick(student, brightness, epochs=1, teacher=teacher, recipe=recipe, loss=F.l1_loss)[0]
    assert record.train_loss == pytest.approx(wanted.item(), rel=1e-5)


def test_whole_numbers_are_not_always_classes(data: Pair) -> None:
    """Counts, by one output: its softmax is 1 whatever the teacher says."""
    student, teacher = regressor(), regressor(1)
    counts = data[0], data[1].unsqueeze(1)
    z, t = student(counts[0]), teacher(counts[0])
    wanted = 0.5 * F.mse_loss(z, counts[1].float()) + 0.5 * (z - t).square().mean()
    options: dict[str, Any] = {"epochs": 1, "recipe": Recipe(batch_size=101)}
    record = quick(student, counts, teacher=teacher, loss=lambda out, y: F.mse_loss(out, y.float()), **options)[0]
    assert record.train_loss == pytest.approx(wanted.item(), rel=1e-5)


def test_a_loss_of_ones_own_on_labels_keeps_the_teachers_classes(data: Pair) -> None:
    student, teacher = make_net()[4:], make_net()[4:]
    flat = data[0].repeat(1, 4, 1, 1), data[1]
    nn.init.normal_(teacher[1].weight)
    z, t = student(flat[0]), teacher(flat[0])
    smooth = F.cross_entropy(z, flat[1], label_smoothing=0.1)
    wanted = 0.5 * smooth + 0.5 * 16 * F.kl_div((z / 4).log_softmax(1), (t / 4).softmax(1), reduction="batchmean")
    own = nn.CrossEntropyLoss(label_smoothing=0.1)
    records = quick(student, flat, flat, epochs=1, teacher=teacher, recipe=Recipe(batch_size=101), loss=own)
    assert records[0].train_loss == pytest.approx(wanted.item(), rel=1e-5)
    assert records[0].validation_accuracy == accuracy(student, flat)


@pytest.mark.parametrize("with_teacher", [False, True])
def test_maps_of_labels(with_teacher: bool) -> None:
    """Segmentation: outputs in a dict, 255 left out; the teacher counts everywhere."""

    class Maps(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.layer = nn.Conv2d(1, 3, 3, padding=1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.layer(x)}

    model, teacher = Maps(0), Maps(1) if with_teacher else None
    x = torch.randn(24, 1, 4, 4)
    y = (x[:, 0] > 0).long()
    y[:, 0] = 255
    z = model(x)["out"]
    wanted = F.cross_entropy(z, y, ignore_index=255)
    if teacher is not None:
        p, q = (teacher(x)["out"] / 4).softmax(1), (z / 4).softmax(1)
        wanted = 0.5 * wanted + 0.5 * 16 * (p * (p / q).log()).sum(1).mean()
    records = quick(model, (x, y), (x, y), teacher=teacher, epochs=5, recipe=Recipe(lr=0.5, batch_size=24))
    assert records[0].train_loss == pytest.approx(wanted.item(), rel=1e-5)
    assert records[-1].train_loss < records[0].train_loss and records[-1].validation_accuracy is None
    with torch.no_grad():
        found = F.cross_entropy(model(x)["out"], y, ignore_index=255)
    assert records[-1].validation_loss == pytest.approx(float(found), rel=1e-5)


def test_patience_follows_the_loss_where_there_is_no_accuracy(brightness: Pair) -> None:
    recipe = Recipe(lr=0.05, batch_size=16, patience=2, schedule="constant")
    turned = brightness[0], -brightness[1]
    records = quick(regressor(), brightness, turned, epochs=30, recipe=recipe, loss=F.mse_loss)
    best = best_epoch(records)
    assert best is not None and len(records) == best.epoch + 2 < 30


def test_errors_of_other_tasks(brightness: Pair, tmp_path: Any) -> None:
    with pytest.raises(DataError, match=r"no shares of classes"):
        quick(regressor(), brightness)
    with pytest.raises(DataError, match="the loss gives a float; it gives a tensor"):
        quick(regressor(), brightness, loss=lambda out, y: 1.0)
    with pytest.raises(ModelError, match=r"the network gives a dict.*or a loss of your own \(loss=\)"):
        quick(regressor(), brightness, forward=lambda model, batch: ({"y": model(batch[0])}, batch[1]))
    with pytest.raises(ModelError, match=r"the teacher gives \(.*, 2\) and the network \(.*, 1\)"):
        quick(regressor(), brightness, loss=F.mse_loss, teacher=make_net())
    quick(regressor(), brightness, loss=F.mse_loss, state=tmp_path / "state")
    with pytest.raises(RunError, match="of a training with another loss"):
        quick(regressor(), brightness, loss=F.l1_loss, state=tmp_path / "state")


def test_inputs_are_not_moved_under_maps() -> None:
    x = torch.randn(12, 1, 8, 8)
    model = nn.Conv2d(1, 3, 3, padding=1)
    with pytest.raises(DataError, match="shifts and mirrors inputs alone, and the targets are maps"):
        quick(model, (x, (x[:, 0] > 0).long()), augment=True)
    quick(model, (x, (x[:, 0] > 0).long()), augment=lambda inputs, generator: inputs + 0.1)


def test_with_a_loss_of_ones_own_patience_follows_it(data: Pair) -> None:
    """Embeddings: the largest of their numbers is no class."""

    def spread(out: Tensor, labels: Tensor) -> Tensor:
        centres = torch.stack([out[labels == k].mean(0) for k in (0, 1)])
        return (out - centres[labels]).square().mean() - (centres[0] - centres[1]).square().mean().clamp_max(1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 6))
    with torch.no_grad():
        model[1].bias[5] += 100  # the largest for all images: the "accuracy" stays 0
    recipe = Recipe(lr=0.003, batch_size=101, patience=2, schedule="constant")
    records = quick(model, data, data, epochs=8, recipe=recipe, loss=spread)
    losses = [r.validation_loss for r in records]
    assert losses == sorted(losses, reverse=True) and len(records) == 8
    best = best_epoch(records, by_loss=True)
    assert best is not None and best.epoch == 8 and {r.validation_accuracy for r in records} == {0}


def test_samples_are_counted_by_the_batch(brightness: Pair) -> None:
    """Not by targets that are a list, or that are not there."""
    x, y = brightness
    parts = [slice(0, 3), slice(3, 8), slice(8, 9)]  # of several sizes, with as many boxes as it happens
    boxes = [(x[k], [{"boxes": each.expand(i % 3, 1)} for i, each in enumerate(y[k])]) for k in parts]

    def own(out: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        return torch.stack([(o - t["boxes"]).square().sum() for o, t in zip(out, targets, strict=True)]).mean()

    model = regressor()
    with torch.no_grad():
        wanted = sum(float(own(model(part), targets)) * len(part) for part, targets in boxes) / 9
    records = quick(model, boxes, boxes, loss=own, epochs=1, recipe=Recipe(lr=1e-9))
    assert records[0].train_loss == pytest.approx(wanted, rel=1e-4)
    assert records[0].validation_loss == pytest.approx(wanted, rel=1e-4)

    def scalar(model: nn.Module, batch: Tensor) -> tuple[Any, Any]:
        return model(batch).square().mean(), None

    assert quick(regressor(), x[:16].split(4), loss=lambda out, _: out, forward=scalar)[-1].train_loss > 0


def test_more_errors_of_other_tasks(brightness: Pair) -> None:
    class Boxed:
        def __init__(self, inside: Tensor) -> None:
            self.inside = inside

    def boxed(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        return Boxed(model(batch[0])), batch[1]

    with pytest.raises(ModelError, match="no tensors to compare with the teacher's"):
        own = lambda out, y: F.mse_loss(out.inside, y)  # noqa: E731
        quick(regressor(), brightness, loss=own, forward=boxed, teacher=regressor(1))
    x = torch.randn(8, 1, 4, 4)
    with pytest.raises(DataError, match="labels reach 5; the network has classes 0 to 2"):
        quick(nn.Conv2d(1, 3, 1), (x, torch.full((8, 4, 4), 5)))
    with pytest.raises(DataError, match=r"no shares of classes.*from Python, give a loss of your own \(loss=\)"):
        quick(regressor(), brightness)


class Weighed(nn.Module):
    """A loss of one's own, without ``extra_repr``."""

    def __init__(self, weight: float, classes: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("classes", classes)

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return self.weight * (out - y).square().mean()


@pytest.mark.parametrize(
    ("loss", "other"),
    [
        (partial(F.huber_loss, delta=0.1), partial(F.huber_loss, delta=9.0)),
        (nn.HuberLoss(delta=0.1), nn.HuberLoss(delta=9.0)),
        (Weighed(1.0, torch.ones(2)), Weighed(1.0, torch.zeros(2))),
        (partial(partial(F.huber_loss), delta=0.1), F.huber_loss),
    ],
)
def test_a_state_knows_the_loss(loss: Any, other: Any, brightness: Pair, tmp_path: Any) -> None:
    """By names and options, which another process tells alike; no addresses."""
    quick(regressor(), brightness, loss=loss, state=tmp_path / "state")
    quick(regressor(), brightness, loss=copy.deepcopy(loss), state=tmp_path / "state")
    assert b" at 0x" not in (tmp_path / "state").read_bytes()
    with pytest.raises(RunError, match="of a training with another loss"):
        quick(regressor(), brightness, loss=other, state=tmp_path / "state")


def test_the_best_epoch_is_finite() -> None:
    records = [EpochRecord(k + 1, 1.0, None, 0.1, 1.0, loss) for k, loss in enumerate((math.nan, 0.5, 0.7))]
    best = best_epoch(records)
    assert best is not None and best.epoch == 2
