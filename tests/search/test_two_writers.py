"""Two processes, one folder: one of them writes, the other gets the error; a kill leaves a run that goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

import deap_prune as dp
from deap_prune.errors import RunError
from deap_prune.search.lock import LOCK, locked
from tests.attack import inputs
from tests.helpers import forked

Work = Callable[[Path, int], object]


def slowly(state: dp.algorithms.Generation) -> None:
    time.sleep(0.2)


def search(out: Path, seed: int) -> object:
    return inputs.search(out=out, population=4, generations=2, seed=seed, callbacks=[slowly])


def resume(out: Path, seed: int) -> object:
    return dp.resume(out, inputs.net(), inputs.X[:1], progress=False, callbacks=[slowly], **inputs.DATA)


def killed_search(out: Path, seed: int) -> object:
    def die(state: dp.algorithms.Generation) -> None:
        if state.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return inputs.search(out=out, population=4, generations=2, callbacks=[die])


def ends(out: Path, *works: Work) -> list[tuple[int, str]]:
    """Exit codes and errors of processes that run at the same time, the seed of each its number."""
    files = [out.with_name(f"errors-{number}") for number in range(len(works))]
    processes = [
        forked.start(partial(work, out, number), file)
        for number, (work, file) in enumerate(zip(works, files, strict=True))
    ]
    for process in processes:
        process.join()
    texts = [file.read_text() if file.exists() else "" for file in files]
    return sorted((process.exitcode or 0, text) for process, text in zip(processes, texts, strict=True))


def names(out: Path) -> dict[str, bytes]:
    """The result's files."""
    skipped = ("checkpoints", "versions.json", "front.png")
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and not any(s in str(p) for s in skipped)
    }


def test_two_searches(tmp_path: Path) -> None:
    out = tmp_path / "run"
    (first, _), (second, error) = ends(out, search, search)
    assert (first, second) == (0, 1) and re.search("another run writes to|is not empty", error)
    seed = yaml.safe_load((out / "config.yaml").read_text())["search"]["seed"]
    inputs.search(out=tmp_path / "alone", population=4, generations=2, seed=seed)
    (out / "config.yaml").write_bytes((tmp_path / "alone/config.yaml").read_bytes())  # threads of the two processes
    assert names(out) == names(tmp_path / "alone")


@pytest.mark.slow
def test_two_resumes_of_a_killed_run(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    assert ends(killed, killed_search)[0][0] == -signal.SIGKILL
    assert json.loads((killed / LOCK).read_text())["pid"] > 0
    (first, _), (second, error) = ends(killed, resume, resume)
    assert first == 0 and (second == 0 or "another run writes to" in error)  # one may begin after the other's end
    inputs.search(out=tmp_path / "whole", population=4, generations=2)
    (killed / "config.yaml").write_bytes((tmp_path / "whole/config.yaml").read_bytes())
    assert names(killed) == names(tmp_path / "whole")


def test_a_report_reads_while_another_process_writes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    inputs.search(out=out, population=4, generations=1)

    def hold() -> None:
        with locked(out, new=False):
            time.sleep(600)

    process = forked.start(hold, tmp_path / "errors")
    try:
        for _ in range(3000):
            if (out / LOCK).exists():
                break
            time.sleep(0.1)
        assert len(dp.ParetoFront.load(out))
        with pytest.raises(RunError, match="another run writes"):
            dp.resume(out, inputs.net(), inputs.X[:1], progress=False, **inputs.DATA)
    finally:
        process.kill()
        process.join()
    dp.resume(out, inputs.net(), inputs.X[:1], progress=False, **inputs.DATA)
