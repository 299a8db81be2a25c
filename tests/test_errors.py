"""Law 8: illegal input raises our own exception, with the value, the legal values and the next step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deap_prune as dp
from deap_prune import errors
from deap_prune.errors import BudgetError, ConfigError, DataError, ModelError, PruneError, RegistryError, did_you_mean
from tests.helpers.pruning import prepared

DATA = (torch.randn(12, 3, 8, 8), torch.arange(12) % 5)


def search(**options: Any) -> dp.Result:
    model, inputs, *_ = prepared("residual")
    fixed = {"calibration": DATA, "validation": DATA, "device": "cpu", "progress": False, "population": 4}
    return dp.search(options.pop("model", model), inputs, **{**fixed, "generations": 0, **options})


BAD: dict[str, tuple[dict[str, Any], type[PruneError], str]] = {
    "criterion": (
        {"criteria": ("l1", "tailor_gate")},
        RegistryError,
        r"unknown criterion 'tailor_gate'; did you mean 'taylor_gate'\? known: .*taylor_gate",
    ),
    "objective": (
        {"objectives": ("acc", "flops")},
        RegistryError,
        r"unknown objective 'acc'; .*known: .*accuracy",
    ),
    "allocation": ({"allocation": "unifrom"}, RegistryError, r"unknown allocation 'unifrom'; did you mean 'uniform'\?"),
    "no criteria": ({"criteria": ()}, ConfigError, "criteria and objectives each need at least one name"),
    "budget 0": ({"max_flops": 0}, BudgetError, r"max_flops is 0(\.0)?; it is the kept share .* above 0 and at most 1"),
    "budget above 1": ({"max_flops": 50}, BudgetError, r"max_flops is 50(\.0)?; it is the kept share"),
    "budget below reach": (
        {"max_flops": 0.001},
        BudgetError,
        r"max_flops is 0.001 \([\d,]+\), but .* that is the reachable minimum; raise max_flops to 0\.\d+",
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
def test_illegal_options_and_data(case: str) -> None:
    options, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        search(**options)


def test_names_given_as_one_string() -> None:
    """criteria="l1" is a mistake, not a list of letters."""
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
    kinds = [
        k
        for k in vars(errors).values()
        if isinstance(k, type) and issubclass(k, Exception) and not issubclass(k, Warning)
    ]
    assert len(kinds) > 5 and all(issubclass(k, PruneError) for k in kinds)
    assert issubclass(RegistryError, KeyError) and issubclass(errors.RunError, RuntimeError)
    assert str(RegistryError("in plain words")) == "in plain words"


def test_labels_of_another_shape_are_not_compared_with_every_sample() -> None:
    """Comparing (N,) with (N, 1) would broadcast."""
    x, y = DATA
    for labels in (y[:, None], torch.eye(12)[:, :5].long()):
        with pytest.raises(DataError, match=r"the network's outputs ask for \(12,\)"):
            search(criteria=("l1",), validation=(x, labels))


def test_ignore_takes_names_not_a_text() -> None:
    model, inputs, *_ = prepared("residual")
    with pytest.raises(ModelError, match="ignore is '10'; give several values, each text, or a network"):
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


def test_datasets_and_none_are_refused_before_any_data_is_read() -> None:
    with pytest.raises(DataError, match="calibration is a TensorDataset: wrap it"):
        search(calibration=torch.utils.data.TensorDataset(*DATA))
    with pytest.raises(DataError, match="validation is a NoneType"):
        search(validation=None)


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(DataError, match="unknown device 'gpu'; use 'auto'"):
        search(device="gpu")


def test_long_lists_of_names_are_cut() -> None:
    """The eight nearest names, and how to list all of them."""
    few, many = [f"name{n}" for n in range(8)], [f"name{n:02}" for n in range(60)]
    assert did_you_mean("x", few) == f"known: {', '.join(few)}"
    text = did_you_mean("nam07", many, lists="names()")
    assert text.startswith("did you mean 'name07'? known: ") and text.endswith(" and 52 more (names() lists all)")
    assert "name07" in text and text.count(", ") == 7
