"""Bad inputs over all doors: each ends in one clear error of ours; none in silence, a raw traceback or a hang."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deap_prune as dp
from tests.attack import arguments, damage, functions, inputs, weight_files
from tests.attack.doors import Attack, outcome, table

ALL: Counter[str] = Counter()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small network."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    inputs.search(out=out, population=4, generations=1)
    return out


def check(attacks: dict[str, Attack]) -> None:
    counts, lines = table(attacks)
    ALL.update(counts)
    print(f"{len(attacks)} attacks: {dict(counts)}; in all {sum(ALL.values())}: {dict(ALL)}")
    assert lines == []


@pytest.mark.parametrize("part", ["networks", "data", "options"])
def test_search(part: str) -> None:
    check(getattr(inputs, part)())


def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(arguments.arguments())


def test_functions_that_change_what_is_used_again() -> None:
    check(functions.functions())


def test_entries_of_registries() -> None:
    with functions.entries() as attacks:
        check(attacks)


def test_loops(tmp_path: Path) -> None:
    check(functions.loops(tmp_path))
    assert (tmp_path / "journal").read_text() == "a file of the user's"


def test_training_states_and_scores(tmp_path: Path) -> None:
    check(arguments.files_of_numbers(tmp_path / "numbers"))


def test_fronts(run: Path, tmp_path: Path) -> None:
    check(damage.fronts(run, tmp_path / "run"))


def test_masks(run: Path, tmp_path: Path) -> None:
    check(damage.masks(run, tmp_path / "run"))


def test_checkpoints(run: Path, tmp_path: Path) -> None:
    check(damage.checkpoints(run, tmp_path / "run"))


def test_configs(tmp_path: Path) -> None:
    check(damage.configs(tmp_path))


def test_weights(tmp_path: Path) -> None:
    check(weight_files.weights(tmp_path / "weights"))


def test_recipes(run: Path, tmp_path: Path) -> None:
    model = inputs.net()
    space, masks = dp.trace(model, inputs.X[:1]), dp.ParetoFront.load(run)[0].masks
    small = dp.slim(model, space, masks)
    dp.export(small, inputs.X[:2], tmp_path / "exported", formats=("safetensors",), masks=masks)
    check(damage.recipes(tmp_path / "exported", tmp_path / "copy", model))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_fronts(data: st.DataObject, run: Path, tmp_path: Path) -> None:
    """Any value in any place of front.json or of masks: an error of ours, or finite numbers and the right masks."""
    name = data.draw(st.sampled_from(["front.json", *sorted(f"masks/{p.name}" for p in (run / "masks").iterdir())]))
    content = json.loads((run / name).read_text())
    if data.draw(st.booleans()):
        content.pop("sha256", None)  # as in fronts of earlier versions
    path = data.draw(st.sampled_from(list(damage.everything(content))))
    text = json.dumps(damage.changed(content, path, data.draw(JSON))).encode()
    folder = damage.fresh(run, tmp_path / "run")
    renamed = name != "front.json" and data.draw(st.booleans())
    if renamed:
        damage._replace_masks(folder, old=name, data=text)
    else:
        (folder / name).write_bytes(text)
    kind, message = outcome(lambda: dp.ParetoFront.load(folder), 20)
    assert kind in ("own", "silent"), message
    if kind == "silent":
        front = dp.ParetoFront.load(folder)
        assert renamed or [s.masks for s in front] == [s.masks for s in dp.ParetoFront.load(run)][: len(front)]
        assert all(value == value and abs(value) != float("inf") for s in front for value in s.values.values())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_bytes(data: st.DataObject, run: Path, tmp_path: Path) -> None:
    """Flipped bytes in masks are always noticed; in front.json they never end in a raw error."""
    name = data.draw(st.sampled_from(["front.json", *sorted(f"masks/{p.name}" for p in (run / "masks").iterdir())]))
    folder = damage.fresh(run, tmp_path / "run")
    content = bytearray((folder / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    kind, message = outcome(lambda: dp.ParetoFront.load(folder), 20)
    assert kind == "own" or (kind == "silent" and name == "front.json"), message


def test_what_is_whole_is_accepted(run: Path, tmp_path: Path) -> None:
    """The doors refuse what is damaged, and nothing else."""
    damage._load(run, tmp_path / "run", lambda folder: None)
    newest = max((run / "checkpoints").glob("*.json"))
    damage._newest(tmp_path / "one", newest.read_bytes())
    again = dp.resume(run, inputs.net(), inputs.X[:1], progress=False, **inputs.DATA)
    assert [s.masks for s in again.front] == [s.masks for s in dp.ParetoFront.load(run)]
