"""YAML that would take long, or much memory, is refused within a second; what configs hold is read as ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deap_prune.config import load_config
from deap_prune.errors import ConfigError
from deap_prune.yaml_text import parse_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 10)}]\n" for last, name in zip("abcdefg", "bcdefgh", strict=True)
)
HOSTILE = {
    "alias bomb": (LAUGHS, "more than 20,000 values, aliases counted as often"),
    "alias of itself": ("model: &a {factory: x, kwargs: {k: *a}}", r"the alias \*a contains itself"),
    "list of itself": ("search: {criteria: &a [l1, *a]}", "contains itself"),
    "deep lists": ("search: " + "[" * 5000 + "]" * 5000, "nested more than 40 deep"),
    "deep maps": ("search: " + "{a: " * 5000 + "1" + "}" * 5000, "nested more than 40 deep"),
    "deep and open": ("[" * 50000, "nested more than 40 deep"),
    "deep blocks": ("\n".join(" " * k + "a:" for k in range(300)), "nested more than 40 deep"),
    "long": ("a: " + "x" * 10**6, "characters; at most"),
    "wide": ("a: [" + "1, " * 60000 + "]", "more than 20,000 values"),
    "key twice": ("search: {seed: 1, seed: 2}", "the key 'seed' stands twice"),
    "number of 100,000 digits": ("search: {seed: " + "9" * 100000 + "}", "a value can't be read"),
    "no such date": ("a: 2020-99-99", "a value can't be read"),
    "code": ("search: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_refused_at_once(name: str, tmp_path: Path) -> None:
    text, message = HOSTILE[name]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)is not YAML: .*{message}"):
        load_config(path)
    with pytest.raises(ConfigError, match="the value is not YAML"):
        load_config(Path(__file__).parents[1] / "configs/digits.yaml", [f"search.seed={text}"])


def test_configs_are_read_as_by_safe_load() -> None:
    for path in (Path(__file__).parents[1] / "configs").rglob("*.yaml"):
        assert parse_yaml(path.read_text()) == yaml.safe_load(path.read_text())
    text = "base: &b {seed: 1, x: [1, 2]}\nsearch: {<<: *b, seed: 2}\nother: *b\nlist: [*b, *b]"
    assert parse_yaml(text) == yaml.safe_load(text) and parse_yaml("") is None


def test_a_config_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not YAML: 'utf-8' codec"):
        load_config(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="no config at '/dev/zero'"):
        load_config("/dev/zero")
