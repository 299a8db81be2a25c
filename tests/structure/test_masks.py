"""Masks as values, and models that come back as they were."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

import deap_prune as dp
from deap_prune.errors import MaskError
from deap_prune.structure.inputs import forward
from deap_prune.structure.masks import listed_masks
from tests.helpers.networks import NETWORKS
from tests.helpers.pruning import assert_unchanged, draw_masks, gap, outputs_masked, prepared, snapshot

KEEP = st.dictionaries(st.text(max_size=4), st.lists(st.booleans(), max_size=9), max_size=4)


# ------------------------------------------------------------------ values
@given(KEEP)
def test_json_round_trip_and_hash(keep: dict[str, list[bool]]) -> None:
    masks = dp.Masks({name: np.array(k, dtype=bool) for name, k in keep.items()})
    again = dp.Masks.from_json(masks.to_json())
    reordered = dp.Masks(dict(reversed(list(masks.items()))))
    assert again == masks == reordered
    assert hash(again) == hash(masks) == hash(reordered)
    assert {name: k.tolist() for name, k in again.items()} == keep


def test_equality_looks_at_names_lengths_and_bits() -> None:
    base = dp.Masks({"a": [True, False], "b": [True]})
    different = [
        dp.Masks({"a": [False, True], "b": [True]}),
        dp.Masks({"a": [True, False, False], "b": [True]}),
        dp.Masks({"a": [True, False], "c": [True]}),
        dp.Masks({"a": [True, False]}),
        dp.Masks({"a": [True], "b": [True, False]}),
    ]
    assert all(other != base for other in different)
    assert len({base, *different}) == 6
    assert base != {"a": [True, False], "b": [True]}


@pytest.mark.parametrize(
    "again",
    [lambda m: m, copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["it", "copy", "deep", "pickle"],
)
def test_immutable(again: Callable[[dp.Masks], dp.Masks]) -> None:
    source = np.array([True, False])
    masks = dp.Masks({"a": source})
    hash(masks)
    same = again(masks)
    assert same == masks
    source[0] = False
    assert same["a"].tolist() == [True, False]
    with pytest.raises(ValueError, match="read-only"):
        same["a"][0] = False
    with pytest.raises(TypeError):
        same["a"] = source  # type: ignore[index]


@pytest.mark.parametrize("name", ["grouped_in_a_row", "norms", "residual"])
@given(keep=st.floats(0.01, 1), seed=st.integers(0, 1000))
def test_random_masks_fit_and_keep_the_share(name: str, keep: float, seed: int) -> None:
    space = prepared(name).space
    masks = dp.Masks.random(space, keep=keep, seed=seed)
    assert masks == dp.Masks.random(space, keep=keep, seed=seed)
    for group, count in zip(space.groups, space.kept_counts(masks), strict=True):
        width = group.size // group.blocks
        assert count == group.blocks * max(1, round(keep * width))
        assert (masks[group.name].reshape(group.blocks, -1).sum(axis=1) == count // group.blocks).all()


def test_random_masks_differ_by_seed() -> None:
    space = prepared("residual").space
    assert len({dp.Masks.random(space, seed=seed) for seed in range(20)}) == 20


def test_rows_are_masks_one_by_one() -> None:
    rows = [np.array([[True, False], [True, True]]), np.array([[True, True, False], [False, True, True]])]
    found = dp.Masks.of_rows(["a", "b"], rows)
    assert found == [dp.Masks({"a": a, "b": b}) for a, b in zip(*rows, strict=True)]
    rows[0][:] = False
    assert found[0]["a"].tolist() == [True, False] and found[1]["b"].base.size == 5
    with pytest.raises(ValueError, match="read-only"):
        found[0]["a"][0] = False


def test_messages() -> None:
    space = prepared("residual").space
    for values, found in [
        ([1, 0], r"int64 and shape \(2,\)"),
        ([[True]], r"bool and shape \(1, 1\)"),
        ([0.5], "float64"),
    ]:
        with pytest.raises(MaskError, match=rf"the mask of 'a' has dtype {found}.*one boolean for each filter"):
            dp.Masks({"a": values})
    for keep in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(MaskError, match=rf"keep is {keep}; it must be above 0 and at most 1"):
            dp.Masks.random(space, keep=keep)
    with pytest.raises(
        MaskError,
        match=r"no filter group 'stem.1' in this space \(masks of another .*\); did you mean 'stem.0'\? known: body",
    ):
        dp.flops(space, dp.Masks({"stem.1": [True] * 6}))
    with pytest.raises(MaskError, match=r"the mask of 'stem.0' has 5 entries; the group has 6 filters"):
        dp.params(space, dp.Masks({"stem.0": [True] * 5}))
    with pytest.raises(MaskError, match=r"'stem.0' keeps \[0\] filters \(by block\); it must keep at least one"):
        dp.slim(prepared("residual").model, space, dp.Masks({"stem.0": [False] * 6}))
    with (
        pytest.raises(MaskError, match=r"not masks in JSON"),
        dp.masked(prepared("residual").model, space, dp.Masks.from_json("[1]")),
    ):
        pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"groups": {}}',
        '{"masks": {"a": {"size": 2, "keep": [2]}}}',
        '{"masks": {"a": {"size": 2, "keep": [-1]}}}',
        '{"masks": {"a": {"size": -2, "keep": []}}}',
        '{"masks": {"a": {"size": 2, "keep": [0.5]}}}',
        '{"masks": {"a": [true]}}',
        '{"masks": [1]}',
    ],
)
def test_what_is_no_mask_file(text: str) -> None:
    with pytest.raises(MaskError, match=r"not masks in JSON, as Masks.to_json writes them"):
        dp.Masks.from_json(text)


def test_json_is_short_and_readable() -> None:
    text = dp.Masks({"a": [True, False, True]}).to_json()
    assert json.loads(text) == {"masks": {"a": {"size": 3, "keep": [0, 2]}}}


# ------------------------------------------------------------------ models come back unchanged
def hook(*_: object) -> None:
    return None


def lived_in() -> nn.Module:
    """A model in the middle of its life: mixed modes and flags, gradients, hooks."""
    model = prepared("residual").model
    model = copy.deepcopy(model).train()
    model.body.conv1.eval()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    for number, p in enumerate(model.parameters()):
        p.requires_grad_(number % 3 > 0)
    model.body.conv2.register_forward_hook(hook)
    model.register_forward_pre_hook(hook)
    return model


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, 8, 8), torch.randint(0, 5, (6,))


def enter_masked(model: nn.Module, space: dp.PruningSpace, masks: dp.Masks) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with dp.masked(model, space, masks):
        assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())


ALL = ("l1", "fermat", "bn_scale", "taylor_gate", "taylor_weight", "mean_activation", "apoz", "random")
USES: dict[str, Callable[[nn.Module, dp.PruningSpace, dp.Masks], object]] = {
    "trace": lambda m, s, k: dp.trace(m, torch.randn(1, 3, 8, 8)),
    "slim": dp.slim,
    "masked": enter_masked,
    "score": lambda m, s, k: dp.score(m, s, data(), criteria=ALL),
    "evaluate": lambda m, s, k: dp.Evaluator(m, s, calibration=data(), validation=data(), device="cpu")(k),
}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone, for DistributedDataParallel."""
    store = tmp_path_factory.mktemp("ddp") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bare": lambda model: model,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_model_comes_back_unchanged(use: str, wrapper: str) -> None:
    model = lived_in()
    wrapped = WRAPPERS[wrapper](model)
    before = snapshot(model)
    space = prepared("residual").space
    USES[use](wrapped, space, draw_masks(space, 1))
    assert_unchanged(model, before)


def test_slim_network_is_rebuilt_from_its_class_masks_and_weights(tmp_path: Path) -> None:
    """No pickle: JSON, a safetensors file and the user's own code."""
    model, inputs, space, *_ = prepared("resnet20_b")
    masks = dp.Masks.random(space, seed=2)
    small = dp.slim(model, space, masks).eval()
    (tmp_path / "masks.json").write_text(masks.to_json())
    save_file(small.state_dict(), tmp_path / "small.safetensors")

    fresh = NETWORKS["resnet20_b"]().model
    again = dp.Masks.from_json((tmp_path / "masks.json").read_text())
    rebuilt = dp.slim(fresh, dp.trace(fresh, inputs), again).eval()
    rebuilt.load_state_dict(load_file(tmp_path / "small.safetensors"))
    with torch.no_grad():
        assert torch.equal(rebuilt(inputs), small(inputs))


def test_masked_is_undone_after_an_error() -> None:
    for name in ("norms", "resnet20_a"):
        model, _, space, _, _ = prepared(name)
        before = snapshot(model)
        with pytest.raises(ZeroDivisionError), dp.masked(model, space, dp.Masks.random(space)):
            raise ZeroDivisionError
        assert_unchanged(model, before)


def test_a_cast_inside_a_mask_does_not_stop_its_undoing() -> None:
    model, _, space, _, _ = prepared("residual")
    model = copy.deepcopy(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with dp.masked(model, space, dp.Masks.random(space, seed=1)):
        model.double()
    assert all(torch.equal(value.float(), before[name].float()) for name, value in model.state_dict().items())


def test_masked_nests() -> None:
    """A mask inside a mask prunes both, and each is undone on its own."""
    _, _, space, random, call = prepared("resnet20_a")
    first = dp.Masks({space.groups[0].name: dp.Masks.random(space)[space.groups[0].name]})
    second = dp.Masks({space.groups[1].name: dp.Masks.random(space)[space.groups[1].name]})
    before = snapshot(random)
    both = outputs_masked(random, space, dp.Masks({**first, **second}), call)
    with torch.no_grad(), dp.masked(random, space, first):
        assert gap(outputs_masked(random, space, second, call), both) < 1e-12
        assert gap(forward(random, call), outputs_masked(random, space, first, call)) == 0
    assert_unchanged(random, before)


def test_own_forward_of_a_layer_comes_back() -> None:
    """Layers that were patched by hand (as accelerators do) keep their patch."""
    model, _, space, _, call = prepared("norms")
    model = copy.deepcopy(model).double()
    layer, plain = model.body.norm1, outputs_masked(model, space, dp.Masks({}), call)
    layer.forward = lambda x: nn.functional.group_norm(x, 3, layer.weight, layer.bias)
    before = snapshot(model)
    with dp.masked(model, space, dp.Masks.random(space)):
        pass
    assert_unchanged(model, before)
    assert gap(outputs_masked(model, space, dp.Masks({}), call), plain) < 1e-12


def test_wrapped_and_frozen_models_are_accepted() -> None:
    model, inputs = NETWORKS["residual"]()
    usual = str(dp.trace(model, inputs))
    for p in model.parameters():
        p.requires_grad_(False)
    wrapped = nn.DataParallel(model)
    space = dp.trace(wrapped, inputs)
    assert str(space) == usual
    masks = dp.Masks.random(space)
    small = dp.slim(wrapped, space, masks)
    assert type(small) is type(model)
    assert not any(p.requires_grad for p in small.parameters())
    wrapped.eval()
    with dp.masked(wrapped, space, masks) as network:
        assert network is wrapped
        assert torch.allclose(network(inputs), small.eval()(inputs), atol=1e-5)
    table = dp.score(wrapped, space, data(), criteria=("taylor_weight",))
    assert all(by["taylor_weight"].max() > 0 for by in table.scores.values())


def test_masks_of_another_network() -> None:
    space = prepared("residual").space
    with pytest.raises(MaskError, match=r"no filter group 'conv1' in this space .*known: body.conv1.0, body.conv2.0"):
        dp.flops(space, dp.Masks({"conv1": [True]}))
    model = copy.deepcopy(prepared("residual").model)
    model.body.conv1 = nn.Sequential(nn.Identity(), nn.Identity())
    with (
        pytest.raises(MaskError, match=r"the space was traced on another network: 'body.conv1.0' is missing"),
        dp.masked(model, space, dp.Masks.random(space)),
    ):
        pass


def test_an_individual_is_no_mask() -> None:
    for candidate in ([[0.5, 1]], [0.5, 1]):
        with pytest.raises(
            MaskError, match=r"give masks .*; for an individual call toolbox.evaluate\(individual\), or"
        ):
            listed_masks(candidate)
    with pytest.raises(MaskError, match=r"a candidate is a str; give masks \(dp.Masks\)$"):
        listed_masks(["conv1"])
