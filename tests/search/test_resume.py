"""Law 5: one seed, one result; a stopped and resumed run equals an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

import deap_prune as dp
from deap_prune.errors import PruneError, RunError
from deap_prune.weights import load_weights, save_weights
from tests.helpers import forked
from tests.helpers.runs import (
    FILES,
    Interruption,
    at,
    files,
    images,
    interrupted,
    problem,
    resume,
    search,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dp.Result]:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, search(out)


def test_run_folder(whole: tuple[Path, dp.Result]) -> None:
    out, result = whole
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert {*FILES, "front.png", "cache.jsonl", "checkpoints/000004.json", "checkpoints/000003.json"} <= names
    assert not [name for name in names if name.endswith((".tmp", ".pkl", ".pickle", ".pt"))]
    assert len([name for name in names if name.startswith("checkpoints/")]) == 3
    again = dp.ParetoFront.load(out)
    assert [(s.values, s.masks, s.flops) for s in again] == [(s.values, s.masks, s.flops) for s in result.front]
    assert len(result.logbook) == 5 and (out / "history.csv").read_text().count("\n") == 6
    assert yaml.safe_load((out / "config.yaml").read_text())["search"]["population"] == 6


def test_callbacks_may_add_columns_later_on(tmp_path: Path) -> None:
    def note(state: dp.algorithms.Generation) -> None:
        if state.number:
            state.logbook[-1]["size"] = len(state.population)

    search(tmp_path / "run", callbacks=[note], generations=1)
    header, first, second = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert header.endswith(",size") and first.endswith(",") and second.endswith(",6")


def test_values_and_networks_belong_together(whole: tuple[Path, dp.Result]) -> None:
    _, result = whole
    for solution in result.front:
        small = result.slim(solution)
        assert dp.accuracy(small, images(1), device="cpu") == pytest.approx(solution.values["accuracy"])
        assert sum(p.numel() for p in small.parameters()) == solution.params


def test_a_run_folder_does_not_change_the_search(whole: tuple[Path, dp.Result]) -> None:
    again, other = search(None), search(None, seed=1)
    assert [dict(s.values) for s in again.front] == [dict(s.values) for s in whole[1].front]
    assert list(again.logbook) == list(whole[1].logbook) != list(other.logbook)


@pytest.mark.parametrize("generation", [0, 1, 3])
def test_resumed_after_an_exception(generation: int, tmp_path: Path, whole: tuple[Path, dp.Result]) -> None:
    out = tmp_path / "run"
    interrupted(out, generation)
    assert not (out / "front.json").exists()
    random.seed(99), np.random.seed(98), torch.manual_seed(97)
    result = resume(out)
    assert files(out) == files(whole[0])
    assert list(result.logbook) == list(whole[1].logbook)
    assert result.evaluations == whole[1].evaluations


def test_resumed_after_sigkill(tmp_path: Path, whole: tuple[Path, dp.Result]) -> None:
    out = tmp_path / "run"
    save_weights(problem()[0], tmp_path / "model.safetensors")

    def die(state: dp.algorithms.Generation) -> None:
        if state.number == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked.exit_code(lambda: search(out, callbacks=[die]), tmp_path / "errors") == -signal.SIGKILL
    model, _ = problem()
    load_weights(model, tmp_path / "model.safetensors")
    resume(out, model)
    assert files(out) == files(whole[0])


def test_stopped_by_a_callback_and_resumed_twice(tmp_path: Path, whole: tuple[Path, dp.Result]) -> None:
    out = tmp_path / "run"

    def stop(state: dp.algorithms.Generation) -> None:
        state.stop = True

    search(out, callbacks=[stop])
    resume(out, callbacks=[stop])
    assert (out / "front.json").exists()
    resume(out)
    assert files(out) == files(whole[0])


def test_a_finished_run_resumes_to_itself_and_can_run_longer(tmp_path: Path, whole: tuple[Path, dp.Result]) -> None:
    out = tmp_path / "run"
    search(out, generations=2)
    short = files(out)
    resume(out)
    assert files(out) == short
    resume(out, generations=4)
    assert files(out) == files(whole[0])


# ------------------------------------------------------------------ damage
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "binary"])
def test_damaged_checkpoint(damage: str, tmp_path: Path, whole: tuple[Path, dp.Result]) -> None:
    out = tmp_path / "run"
    interrupted(out)
    newest = max((out / "checkpoints").iterdir())
    assert newest.name == "000002.json"
    data = newest.read_bytes()
    flipped = data[:-50] + (b"1" if data[-50:-49] != b"1" else b"2") + data[-49:]
    newest.write_bytes(
        {"cut": data[: len(data) // 2], "flipped": flipped, "empty": b"", "binary": b"\xff\x00\n"}[damage]
    )
    (out / "checkpoints/000003.json.tmp").write_text("half of the nex")
    with pytest.warns(UserWarning, match=r"checkpoint '.*000002.json' is damaged; going back to the one before"):
        resume(out)
    assert files(out) == files(whole[0])


def test_all_checkpoints_damaged_starts_again(tmp_path: Path, whole: tuple[Path, dp.Result]) -> None:
    out = tmp_path / "run"
    interrupted(out)
    for path in (out / "checkpoints").iterdir():
        path.write_text("{}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resume(out)
    assert len([w for w in caught if "is damaged" in str(w.message)]) == 3
    assert files(out) == files(whole[0])


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_lost_cache_loses_no_generation(damage: str, tmp_path: Path, whole: tuple[Path, dp.Result]) -> None:
    """Candidates are evaluated again, to the same values; a new journal begins, and is whole afterwards."""
    out, seen = tmp_path / "run", []
    interrupted(out)
    journal = out / "cache.jsonl"
    data = journal.read_bytes()
    if damage == "gone":
        journal.unlink()
    else:
        journal.write_bytes({"cut": data[:20], "flipped": b"#" + data[1:]}[damage])
    with pytest.warns(UserWarning, match=r"cache.jsonl' is lost or damaged; going on from generation 2 without it"):
        result = resume(out, callbacks=[lambda state: seen.append(state.number)])
    assert seen == [3, 4] and list(result.logbook) == list(whole[1].logbook)
    assert files(out) == files(whole[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resume(out)


def test_a_journal_that_is_damaged_at_its_end_goes_back(tmp_path: Path, whole: tuple[Path, dp.Result]) -> None:
    out, seen = tmp_path / "run", []
    interrupted(out)
    journal = out / "cache.jsonl"
    journal.write_bytes(journal.read_bytes()[:-3])
    with pytest.warns(UserWarning, match=r"the end of '.*cache.jsonl' is damaged; going back to '.*000001.json'"):
        resume(out, callbacks=[lambda state: seen.append(state.number)])
    assert seen[0] == 2 and files(out) == files(whole[0])


@pytest.mark.filterwarnings("ignore:checkpoint:UserWarning")
def test_a_run_that_started_again_may_be_stopped_again(tmp_path: Path, whole: tuple[Path, dp.Result]) -> None:
    """Its checkpoints have lower numbers than the damaged ones, which are moved out of the way."""
    out, seen = tmp_path / "run", []
    interrupted(out)
    for path in (out / "checkpoints").iterdir():
        path.write_text("{}")
    with pytest.raises(Interruption):
        resume(out, callbacks=[at(1)])
    resume(out, callbacks=[lambda state: seen.append(state.number)])
    assert seen[0] == 1 and files(out) == files(whole[0])


# ------------------------------------------------------------------ refusals
def test_resuming_with_other_input_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(out, 1)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    other, _ = problem()
    with torch.no_grad():
        other.fc.bias[0] += 1e-6
    x, y = images(0)
    renamed = y.clone()
    renamed[0] = (renamed[0] + 1) % 5
    with pytest.raises(RunError, match=r"was run with another model \[\w{8}, now \w{8}\]; go on with the same"):
        resume(out, other)
    for data in ((x, renamed), (x + 1e-6, y), iter([(x + 1e-6, y)])):
        with pytest.raises(RunError, match=r"was run with other calibration data \(a DataLoader needs shuffle=False"):
            resume(out, calibration=data)
    with pytest.raises(RunError, match=r"was run with another model .* and other validation data"):
        resume(out, other, validation=images(5))
    config = out / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 3", 1))
    with (
        pytest.raises(RunError, match=r"was run with other settings: seed 0, now 3;"),
        pytest.warns(UserWarning, match=r"config\.yaml' was changed after the run wrote it; what makes"),
    ):
        resume(out)
    config.write_bytes(before[config])
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_one_shot_data_is_the_same_data(tmp_path: Path) -> None:
    """Batches from a generator: the fingerprint is of their content, although they can be read only once."""
    x, y = images(0)
    out = tmp_path / "run"
    interrupted(out, 1, calibration=iter([(x, y)]))
    with pytest.raises(RunError, match="was run with other calibration data"):
        resume(out, calibration=iter([(x + 1, y)]))
    resume(out, calibration=iter([(x, y)]))


def test_a_shuffled_loader_resumes_exactly(tmp_path: Path) -> None:
    """In any order of the images: the same result or an error, never another result."""

    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(*images(0)), batch_size=6, shuffle=True)

    torch.manual_seed(5)
    whole = search(tmp_path / "whole", calibration=loader())
    torch.manual_seed(6)
    interrupted(tmp_path / "run", 2, calibration=loader())
    torch.manual_seed(7)
    try:
        result = resume(tmp_path / "run", calibration=loader())
    except RunError as error:
        assert "other calibration data" in str(error)
        return
    assert [dict(s.values) for s in result.front] == [dict(s.values) for s in whole.front]
    assert list(result.logbook) == list(whole.logbook)


def test_out_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(
            RunError,
            match=r"exists and is not empty; choose another out folder$",
        ):
            search(out)
    with pytest.raises(RunError, match=r"can't be made: '.*notes.txt' is no folder that you may write to"):
        search(tmp_path / "notes.txt" / "run")
    with pytest.raises(RunError, match=r"can't be made: .*too long"):
        search(tmp_path / ("x" * 300))
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(RunError, match="exists and is not empty"):
        search(tmp_path / "link")
    (tmp_path / "link").unlink()
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    for options in ({"criteria": ("l3",)}, {"max_flops": 0.0001}, {"calibration": []}, {"populatoin": 4}):
        with pytest.raises(PruneError):
            search(tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run \(no config.yaml\); start one with dp.search"):
        resume(tmp_path)
    interrupted(tmp_path / "run", 1)
    with pytest.raises(
        RunError, match=r"was started from Python: pass model, example_inputs, calibration= and validation="
    ):
        dp.resume(tmp_path / "run")


# ------------------------------------------------------------------ random state
def states() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, keys.tolist(), rest, torch.get_rng_state().tolist()


def test_global_random_state_is_restored(tmp_path: Path) -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    random.gauss(0, 1), np.random.normal()
    before = states()
    search(None, generations=1)
    assert states() == before
    interrupted(tmp_path / "run", 1)
    assert states() == before
    resume(tmp_path / "run")
    assert states() == before


def test_callbacks_may_draw_random_numbers_of_their_own(whole: tuple[Path, dp.Result]) -> None:
    """The checkpoint stores the generators after the callbacks, so resuming is exact in any case."""

    def noisy(state: dp.algorithms.Generation) -> None:
        torch.rand(3)  # torch's generator takes no part in the search

    assert [dict(s.values) for s in search(None, callbacks=[noisy]).front] == [dict(s.values) for s in whole[1].front]
