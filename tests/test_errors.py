"""Law 8: what a user does wrong raises our own exception, which says the value, what is legal and the next step."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import deap_prune as dp
from deap_prune import errors
from deap_prune.config import load_config
from deap_prune.errors import BudgetError, ConfigError, DataError, ModelError, PruneError, RegistryError
from deap_prune.search.workspace import Workspace
from deap_prune.weights import load_weights, read_weights, save_weights
from tests.helpers.pruning import prepared

DATA = (torch.randn(12, 3, 8, 8), torch.arange(12) % 5)


def search(**options: Any) -> dp.Result:
    model, inputs, *_ = prepared("residual")
    given = {"calibration": DATA, "validation": DATA, "device": "cpu", "progress": False, "population": 4}
    return dp.search(options.pop("model", model), inputs, **{**given, "generations": 0, **options})


BAD: dict[str, tuple[dict[str, Any], type[PruneError], str]] = {
    "criterion": (
        {"criteria": ("l1", "tailor_gate")},
        RegistryError,
        r"unknown criterion 'tailor_gate'; did you mean 'taylor_gate'\? known: apoz",
    ),
    "objective": (
        {"objectives": ("acc", "flops")},
        RegistryError,
        r"unknown objective 'acc'; .*known: accuracy, agreement",
    ),
    "allocation": ({"allocation": "unifrom"}, RegistryError, r"unknown allocation 'unifrom'; did you mean 'uniform'\?"),
    "normaliser": (
        {"normaliser": "softmax"},
        RegistryError,
        r"unknown normaliser 'softmax'.*known: max, rank, standard, sum",
    ),
    "no criteria": ({"criteria": ()}, ConfigError, "criteria and objectives each need at least one name"),
    "budget 0": ({"max_flops": 0}, BudgetError, r"max_flops is 0(\.0)?; it is the kept share .* above 0 and at most 1"),
    "budget above 1": ({"max_flops": 50}, BudgetError, r"max_flops is 50(\.0)?; it is the kept share"),
    "budget below reach": (
        {"max_flops": 0.001},
        BudgetError,
        r"max_flops is 0.001, but .* that is the reachable minimum; raise max_flops to 0\.\d+",
    ),
    "dense would win": (
        {"objectives": ("accuracy",)},
        ConfigError,
        r"'accuracy' alone and max_flops=None: the dense network would win; set max_flops",
    ),
    "probabilities": ({"cxpb": 0.7, "mutpb": 0.7}, ConfigError, r"cxpb 0.7 \+ mutpb 0.7 is above 1"),
    "option": ({"populations": 4}, ConfigError, r"unknown key 'populations'; did you mean 'population'\?"),
    "value": ({"population": 0}, ConfigError, r"'population' is 0: Input should be greater than or equal to 2"),
    "type": ({"generations": "many"}, ConfigError, r"'generations' is 'many': Input should be a valid integer"),
    "ignored": ({"ignore": ("body.conv9",)}, ModelError, r"ignore names 'body.conv9', .* did you mean 'body.conv"),
    "empty calibration": ({"calibration": []}, DataError, "calibration is empty: give"),
    "empty validation": ({"validation": (DATA[0][:0], DATA[1][:0])}, DataError, "validation is empty: give"),
    "labels above": (
        {"validation": (DATA[0], DATA[1] + 1)},
        DataError,
        "validation has labels from 1 to 5; the network has classes 0 to 4",
    ),
    "labels below": ({"validation": (DATA[0], DATA[1] - 1)}, DataError, "validation has labels from -1 to 3;"),
    "labels of calibration": (
        {"calibration": (DATA[0], DATA[1] + 7)},
        DataError,
        "calibration has labels from 7 to 11;",
    ),
    "labels of calibration are fractions": (
        {"calibration": (DATA[0], DATA[1].float())},
        DataError,
        r"the loss fails on the calibration data: targets are real .*labels are whole numbers \(labels.long\(\)\)",
    ),
    "labels are fractions": (
        {"validation": (DATA[0], DATA[1].float()), "objectives": ("loss",), "max_flops": 0.5},
        DataError,
        r"the objectives fail on the validation data: targets are real .*labels.long\(\)",
    ),
    "one-hot labels": (
        {"validation": (DATA[0], torch.eye(5)[DATA[1]])},
        DataError,
        r"the objectives fail on the validation data: labels have shape .*one a sample",
    ),
    "not finite": ({"calibration": (DATA[0] / 0, DATA[1])}, DataError, "calibration holds values that are not finite"),
    "lengths": ({"validation": (DATA[0], DATA[1][:5])}, DataError, "validation: 12 inputs but 5 targets"),
}


@pytest.mark.parametrize("case", BAD)
def test_search_says_what_is_wrong(case: str) -> None:
    options, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        search(**options)


def test_names_given_as_one_string() -> None:
    """criteria="l1" is a slip, not a list of letters."""
    model, _, space, _, _ = prepared("residual")
    with pytest.raises(PruneError, match=r"criteria.*(tuple|list|several|name)|unknown criterion 'l1'"):
        dp.score(model, space, criteria="l1")
    with pytest.raises(ConfigError, match=r"'criteria' is the text 'l1'; give several names, such as \['l1'\]"):
        search(criteria="l1")


def test_weights_that_are_nan() -> None:
    model = copy.deepcopy(prepared("residual").model)
    with torch.no_grad():
        model.body.conv3[0].weight[1, 2] = float("nan")
    with pytest.raises(ModelError, match=r"'body.conv3.0.weight' holds values that are not finite; load the trained"):
        search(model=model)


def test_nothing_to_prune() -> None:
    with pytest.raises(
        ModelError, match=r"no filters that can be pruned \(.*\); a prunable filter needs a convolution"
    ):
        search(model=nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))


def test_every_error_is_a_prune_error_and_a_builtin() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert len(kinds) > 5 and all(issubclass(k, PruneError) for k in kinds)
    assert issubclass(RegistryError, KeyError) and issubclass(errors.RunError, RuntimeError)
    assert str(RegistryError("in plain words")) == "in plain words"


# ------------------------------------------------------------------ weights
FACTORY = {"factory": "deap_prune.zoo:digits_resnet", "kwargs": {"width": 4}}


def workspace(tmp_path: Path, **model: Any) -> Workspace:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": {**FACTORY, **model}, "data": {"format": "digits"}}))
    return Workspace.open(load_config(path))


def test_weights_files(tmp_path: Path) -> None:
    work = workspace(tmp_path)
    save_weights(work.model, tmp_path / "a.safetensors")
    torch.save(work.model.state_dict(), tmp_path / "a.pth")
    torch.save({"state_dict": nn.DataParallel(work.model).state_dict()}, tmp_path / "wrapped.pth")
    save_weights(nn.DataParallel(work.model), tmp_path / "unwrapped.safetensors")
    from safetensors.torch import save_file

    save_file(nn.DataParallel(work.model).state_dict(), tmp_path / "wrapped.safetensors")
    for name in ("a.safetensors", "a.pth", "wrapped.pth", "unwrapped.safetensors", "wrapped.safetensors"):
        again = workspace(tmp_path, weights=str(tmp_path / name)).model
        assert all(torch.equal(v, work.model.state_dict()[k]) for k, v in again.state_dict().items()), name


class Malice:
    """What a pickle could run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("deap_prune_was_here"),))


def test_weights_that_can_not_be_loaded(tmp_path: Path) -> None:
    missing = tmp_path / "none.safetensors"
    with pytest.raises(ModelError, match=rf"no weights at '{missing}'; set model.weights to a .safetensors or .pth"):
        workspace(tmp_path, weights=str(missing))
    with pytest.raises(ModelError, match=r"no weights at '.*none.safetensors'; give a"):
        read_weights(missing)
    model = workspace(tmp_path).model
    for name in ("garbage.safetensors", "garbage.pth"):
        (tmp_path / name).write_bytes(b"not a file of weights at all" * 9)
        with pytest.raises(ModelError, match=f"{name}' can't be read"):
            load_weights(model, tmp_path / name)
    torch.save({"a": Malice()}, tmp_path / "malice.pth")
    with pytest.raises(ModelError, match=r"malice.pth' can't be read as a plain state dict"):
        read_weights(tmp_path / "malice.pth")
    assert not Path("deap_prune_was_here").exists()
    torch.save({"a": 3}, tmp_path / "numbers.pth")
    with pytest.raises(ModelError, match=r"numbers.pth' is no state dict of tensors"):
        read_weights(tmp_path / "numbers.pth")
    save_weights(nn.Linear(2, 2), tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"the weights in '.*other.safetensors' don't fit the network: .*conv1.weight"):
        load_weights(model, tmp_path / "other.safetensors")


def test_factories_that_fail(tmp_path: Path) -> None:
    for factory, message in [
        ("digits_resnet", "factory 'digits_resnet' is not 'module:function', such as"),
        ("deap_prune.zoo:digit", "factory 'deap_prune.zoo:digit' can't be imported"),
        ("no_such_module:make", "factory 'no_such_module:make' can't be imported"),
        ("builtins:dict", "factory 'builtins:dict' made a dict, not an nn.Module"),
        ("math:sqrt", "factory 'math:sqrt' failed: TypeError"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            workspace(tmp_path, factory=factory)


# ------------------------------------------------------------------ config
def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


CONFIGS = {
    "unknown section": ("serach: {}", r"unknown key 'serach'; did you mean 'search'\?"),
    "unknown key": ("search: {max_flop: 0.5}", r"unknown key 'search.max_flop'; did you mean 'max_flops'\?"),
    "unknown model key": ("model: {factory: a:b, weight: x}", r"unknown key 'model.weight'; did you mean 'weights'\?"),
    "illegal value": ("search: {population: 1}", r"'search.population' is 1: Input should be greater"),
    "missing key": ("model: {kwargs: {}}", r"'model.factory'.*Field required"),
    "not yaml": ("search: [", "is not YAML"),
    "no mapping": ("- 1", "holds a list; a config is a mapping of sections"),
    "not a section": ("search: 3", "'search' is 3"),
    "unknown key of the recipe": (
        "finetune: {recipe: {lrr: 1}}",
        r"unknown key 'finetune.recipe.lrr'; did you mean 'lr'\?",
    ),
    "illegal type in the recipe": ("finetune: {recipe: {lr: fast}}", "'finetune.recipe.lr' is 'fast'"),
    "illegal value in the recipe": ("finetune: {recipe: {lr: -1}}", "^lr=-1.0 in the training recipe; give a number"),
    "key of another type": ("3: 4", "3"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_messages(case: str, tmp_path: Path) -> None:
    text, message = CONFIGS[case]
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.population", r"--set 'search.population' is not key.sub=value"),
        ("=3", "is not key.sub=value"),
        ("search.population=few", "'search.population' is 'few': Input should be a valid integer"),
        ("search.popluation=8", r"unknown key 'search.popluation'; did you mean 'population'\?"),
        ("search.seed.x=1", r"--set 'search.seed.x=1': 'seed' is not a section"),
        ("search.criteria=[l1", r"--set 'search.criteria=\[l1'"),
        ("search.criteria={", "--set"),
    ],
)
def test_bad_overrides(override: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "search: {seed: 3}")
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


def test_good_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "search: {seed: 3}")
    config = load_config(
        path, ["search.seed=4", "search.criteria=[l1, l2]", "model.factory=a:b", "search.max_flops=0.5", "out=runs/x=y"]
    )
    assert (config.search.seed, config.search.criteria, config.search.max_flops) == (4, ("l1", "l2"), 0.5)
    assert config.model is not None and config.model.factory == "a:b" and config.out == "runs/x=y"


def test_missing_config_and_sections(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config at '.*nowhere.yaml'; give a YAML file or a run folder"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"no config at"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="the config has no model and data section"):
        Workspace.open(load_config(write(tmp_path, "")))
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00search")
    with pytest.raises(ConfigError, match=r"YAML|text"):
        load_config(tmp_path / "config.yaml")


def test_workspace_names_unknown_data(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump({"model": FACTORY, "data": {"format": "digit"}}))
    with pytest.raises(DataError, match=r"unknown data format 'digit'; did you mean 'digits'\?"):
        Workspace.open(load_config(path))


def test_no_caller_need_think_of_inference_mode() -> None:
    """A search takes gradients, also when it is called where torch lets none through."""
    with torch.inference_mode():
        inside = search(generations=1)
    assert [s.values for s in inside.front] == [s.values for s in search(generations=1).front]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_of_half_precision_are_scored(dtype: torch.dtype) -> None:
    """Criteria see fp32: distances and sorting are not there for less on every device."""
    model, inputs, *_ = prepared("residual")
    space = dp.trace(model, inputs)
    half = copy.deepcopy(model).to(dtype)
    rounded = copy.deepcopy(half).float()
    options = {"criteria": ("l1", "fpgm", "bn_scale")}
    found, wanted = (dp.score(m, space, None, **options) for m in (half, rounded))
    for group in space.groups:
        for name in options["criteria"]:
            assert np.allclose(found[group.name][name], wanted[group.name][name], rtol=1e-6)


def test_labels_of_another_shape_are_not_compared_with_every_sample() -> None:
    """(N,) against (N, 1) would broadcast."""
    x, y = DATA
    for labels in (y[:, None], torch.eye(12)[:, :5].long()):
        with pytest.raises(DataError, match=r"the network's outputs ask for \(12,\)"):
            search(criteria=("l1",), validation=(x, labels))


def test_ignore_takes_names_not_a_text() -> None:
    model, inputs, *_ = prepared("residual")
    with pytest.raises(ModelError, match=r"give several names, such as \('10',\)"):
        dp.trace(model, inputs, ignore="10")
    with pytest.raises(ModelError, match=r"give several names, such as \('10',\)"):
        search(ignore="10")
    with pytest.raises(ModelError, match="ignore is None; give modules or names"):
        search(ignore=None)


def test_a_search_ignores_modules_too(tmp_path: Path) -> None:
    """The run's config names them."""
    model, _, *_ = prepared("residual")
    result = search(model=nn.DataParallel(model), ignore=[model.body.conv3], out=tmp_path / "run")
    assert all(group.name != "body.conv3.0" for group in result.space.groups)
    assert "body.conv3" in (tmp_path / "run" / "config.yaml").read_text()


def test_datasets_and_nothing_are_refused_before_anything_is_read() -> None:
    with pytest.raises(DataError, match="calibration is a TensorDataset: wrap it"):
        search(calibration=torch.utils.data.TensorDataset(*DATA))
    with pytest.raises(DataError, match="validation is a NoneType"):
        search(validation=None)


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(DataError, match="unknown device 'gpu'; use 'auto'"):
        search(device="gpu")


def test_criteria_of_layers_that_see_nothing_are_finite() -> None:
    """A dead layer's moments are rounding alone."""
    model, inputs, *_ = prepared("residual")
    space = dp.trace(model, inputs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, -50)
    table = dp.score(model, space, DATA, criteria=("compensation",))
    assert all(np.isfinite(table[group.name]["compensation"]).all() for group in space.groups)


def test_tracing_needs_no_thought_of_inference_mode() -> None:
    model, inputs, *_ = prepared("residual")
    with torch.inference_mode():
        inside = dp.trace(model, inputs)
    assert str(inside) == str(dp.trace(model, inputs))
