"""Adaptive polyphase sampling: the choice of component moves with every shift, exactly, and so labels don't change."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import deap_prune as dp
import tests.helpers.networks as nets
from deap_prune import zoo
from deap_prune.data import Splits, load_data
from deap_prune.errors import ModelError
from deap_prune.structure import layers
from deap_prune.structure.tracing.proof import randomised
from tests.helpers.pruning import gap, outputs_masked, outputs_slim, prepare


def is_a_shift_of(shifted: Tensor, y: Tensor) -> bool:
    """Each sample of one is some circular shift of the other's, bit for bit."""
    places = itertools.product(range(y.shape[2]), range(y.shape[3]))
    rolled = torch.stack([y.roll(place, (2, 3)) for place in places])
    return bool((rolled == shifted).flatten(2).all(dim=2).any(dim=0).all())


def every_shift(x: Tensor) -> list[Tensor]:
    return [x.roll(by, (2, 3)) for by in itertools.product(range(x.shape[2]), range(x.shape[3]))]


@given(
    channels=st.integers(1, 3),
    sides=st.sampled_from([(4, 4), (6, 4), (2, 8), (2, 2)]),
    largest=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=30)
def test_ties_are_broken_alike_by_every_shift(channels: int, sides: tuple[int, int], largest: int, seed: int) -> None:
    """Small whole numbers: many components tie in norm without being alike."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-largest, largest + 1, (8, channels, *sides), generator=generator).float()
    layer = zoo.AdaptivePolyphase(channels)
    y = layer(x)
    assert all(is_a_shift_of(layer(moved), y) for moved in every_shift(x))


def test_two_equal_dots() -> None:
    """Filtered alike, they put the same energy into several components, which differ in their distance alone."""
    torch.manual_seed(0)
    x = torch.zeros(63, 1, 8, 8)
    x[:, 0, 0, 0] = 1
    x.flatten(1)[torch.arange(63), torch.arange(1, 64)] = 1
    conv, layer = nn.Conv2d(1, 5, 3, padding=1, padding_mode="circular", bias=False), zoo.AdaptivePolyphase(5)
    with torch.no_grad():
        y = layer(conv(x))
        assert all(is_a_shift_of(layer(conv(moved)), y) for moved in every_shift(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_sums_do_not_depend_on_their_order(memory_format: torch.memory_format, scale: float) -> None:
    """Components that differ in the order of their values alone: in floating point their norms come out unequal."""
    torch.manual_seed(0)
    part = torch.randn(1, 8, 6, 6) * scale
    x = torch.zeros(1, 8, 12, 12)
    for row, column in itertools.product(range(2), range(2)):
        x[:, :, row::2, column::2] = part.roll((row, 2 * column), (2, 3))
    x = x.contiguous(memory_format=memory_format)
    layer = zoo.AdaptivePolyphase(8)
    assert all(is_a_shift_of(layer(moved), part) for moved in every_shift(x))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_component_of_largest_norm(stride: int, dtype: torch.dtype) -> None:
    x = torch.randn(20, 4, 6, 12).to(dtype)
    y = zoo.AdaptivePolyphase(4, stride)(x)
    offsets = list(itertools.product(range(stride), range(stride)))
    parts = torch.stack([x[:, :, i::stride, j::stride] for i, j in offsets], dim=1)
    largest = parts.double().square().sum((2, 3, 4)).argmax(1)
    assert stride == 1 or len(set(largest.tolist())) > 1
    assert torch.equal(y, parts[torch.arange(20), largest])


def test_gradients_reach_the_chosen_component_alone() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 2] = 3
    x.requires_grad_()
    zoo.AdaptivePolyphase(1)(x).sum().backward()
    wanted = torch.zeros(1, 1, 4, 4)
    wanted[:, :, 1::2, 0::2] = 1
    assert x.grad is not None and torch.equal(x.grad, wanted)


@pytest.mark.parametrize("x", [torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), float("nan"))])
def test_blank_and_broken_maps_pass(x: Tensor) -> None:
    assert zoo.AdaptivePolyphase(1)(x).shape == (2, 1, 2, 2)


def test_what_it_refuses() -> None:
    with pytest.raises(ModelError, match=r"AdaptivePolyphase\(0, stride=2\): give positive numbers"):
        zoo.AdaptivePolyphase(0)
    with pytest.raises(ModelError, match=r"a map of 7x8 with stride 2.*pad or crop the images"):
        zoo.AdaptivePolyphase(1)(torch.zeros(1, 1, 7, 8))


# ------------------------------------------------------------------ under a mask
def test_the_norm_is_of_the_kept_channels() -> None:
    """A pruned channel that is louder than all others does not choose for them, masked or slimmed."""
    _, _, space, random, call = prepare(nets.plain_example(zoo.AdaptivePolyphase(8)), batch=6)
    loud = random.get_submodule("body.before")
    keep = torch.ones(8, dtype=torch.bool)
    keep[3] = False
    masks = dp.Masks({"body.before": keep.numpy()})
    slim_before, dense_before = (f(random, call) for f in (outputs_of(space, masks), outputs_of(space, dp.Masks({}))))
    with torch.no_grad():
        loud.weight[3] *= 1000
    slim_after, dense_after = (f(random, call) for f in (outputs_of(space, masks), outputs_of(space, dp.Masks({}))))
    assert gap(slim_after, slim_before) < 1e-9
    assert gap(outputs_masked(random, space, masks, call), slim_before) < 1e-9
    assert gap(dense_after, dense_before) > 1e-3


def outputs_of(space: dp.PruningSpace, masks: dp.Masks):  # type: ignore[no-untyped-def]
    return lambda model, call: outputs_slim(model, space, masks, call)


def test_a_spec_that_forgets_the_norm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``whole`` a masked network would let pruned channels choose: the proof notices."""
    spec = dp.LayerSpec(in_channels=8, out_channels=8, widths={"channels": "out"}, coupled=1)
    monkeypatch.setitem(layers._TYPES, zoo.AdaptivePolyphase, lambda layer: spec)
    torch.manual_seed(0)
    space = dp.trace(*nets.plain_example(zoo.AdaptivePolyphase(8)))
    found = {r.layer: r.reason for r in space.refused}
    assert "masked and slimmed outputs differ" in found["body.before"]


# ------------------------------------------------------------------ networks
def consistency(model: nn.Module, images: Tensor) -> float:
    """Share of images with one label under all circular shifts, by a loop of its own."""
    with torch.no_grad():
        labels = torch.stack([model.eval()(moved).argmax(1) for moved in every_shift(images)])
    return float((labels == labels[0]).all(dim=0).float().mean())


def unrest(model: nn.Module, images: Tensor) -> float:
    """Largest change of an output by a shift, relative to how much outputs differ between images."""
    with torch.no_grad():
        outputs = torch.stack([model(moved) for moved in every_shift(images)])
    return float((outputs - outputs[0]).abs().max() / outputs[0].std(dim=0).max())


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_data(format="digits")


@pytest.fixture(scope="module")
def trained(splits: Splits) -> nn.Module:
    torch.manual_seed(0)
    model = zoo.digits_resnet(width=8, shift_invariant=True)
    recipe = dp.Recipe(lr=0.1, batch_size=32)
    dp.finetune(model, splits.train, epochs=3, recipe=recipe, device="cpu", progress=False)
    return model


def test_labels_survive_every_shift(trained: nn.Module, splits: Splits) -> None:
    images = splits.test[0][:60]
    untrained, plain = (zoo.digits_resnet(width=8, shift_invariant=flag) for flag in (True, False))
    assert consistency(untrained, images) == 1
    assert unrest(randomised(untrained), images.double()) < 1e-9 < 0.1 < unrest(randomised(plain), images.double())
    assert dp.accuracy(trained, splits.test, device="cpu") > 0.7
    assert consistency(trained, images) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_labels_survive_every_shift_after_pruning(trained: nn.Module, splits: Splits, seed: int) -> None:
    space = dp.trace(trained, splits.calibration[0])
    evaluate = dp.Evaluator(
        trained,
        space,
        calibration=splits.calibration,
        validation=(splits.validation[0][:120], splits.validation[1][:120]),
        objectives=("shift_consistency", "flops"),
        device="cpu",
    )
    masks = dp.Masks.random(space, keep=0.6, seed=seed)
    consistent, share = evaluate(masks)
    assert consistent == 1 and share < 0.5
    small, images = evaluate.slim(masks), splits.test[0][:60]
    assert consistency(small, images) == 1
    assert len(small(images).argmax(1).unique()) > 3  # one label for everything would be consistent, too
    with evaluate.masked(masks) as network:
        assert consistency(network, images) == 1


def test_the_cifar_network_costs_what_the_plain_one_costs() -> None:
    x = torch.randn(4, 3, 32, 32)
    plain, ours = (zoo.cifar_resnet(14, 10, "B", shift_invariant=flag).eval() for flag in (False, True))
    spaces = [dp.trace(model, x) for model in (plain, ours)]
    assert spaces[0].flops == spaces[1].flops and spaces[0].params == spaces[1].params
    labels = ours(x).argmax(1)
    assert all(torch.equal(ours(x.roll(by, (2, 3))).argmax(1), labels) for by in [(1, 0), (3, 5), (17, 30)])
