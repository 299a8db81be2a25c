"""Configs: sections, overrides, and the messages about illegal ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from deap_prune.config import load_config
from deap_prune.errors import ConfigError, DataError
from deap_prune.search.from_config import open_config


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
    "illegal value in the recipe": ("finetune: {recipe: {lr: -1}}", "^lr is -1.0; give a number"),
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
        open_config(load_config(write(tmp_path, "")))
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00search")
    with pytest.raises(ConfigError, match=r"YAML|text"):
        load_config(tmp_path / "config.yaml")


def test_an_unknown_data_format_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, 'model: {factory: "deap_prune.zoo:digits_resnet"}\ndata: {format: digit}')
    with pytest.raises(DataError, match=r"unknown data format 'digit'; did you mean 'digits'\?"):
        open_config(load_config(path))
