"""Two processes, one folder: one of them writes, the other gets the error; a kill leaves a run that goes on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import deap_prune as dp
from deap_prune.errors import RunError
from deap_prune.search.lock import LOCK
from tests.attack import inputs

ROOT = Path(__file__).parents[2]
HEAD = """
import sys, time, os, signal
sys.path[:0] = ["."]
import torch
torch.set_num_threads(1)
import deap_prune as dp
from tests.attack import inputs
from pathlib import Path
out = Path(sys.argv[1])
"""
SEARCH = (
    "inputs.search(out=out, population=4, generations=2, seed=int(sys.argv[2]), callbacks=[lambda s: time.sleep(0.2)])"
)
RESUME = (
    "dp.resume(out, inputs.net(), inputs.X[:1], progress=False, callbacks=[lambda s: time.sleep(0.2)], **inputs.DATA)"
)
DIE = """
def die(state):
    if state.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
inputs.search(out=out, population=4, generations=2, callbacks=[die])
"""


def start(code: str, out: Path, seed: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HEAD + code, str(out), str(seed)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def ends(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    errors = [process.communicate()[1] for process in processes]
    return sorted((process.returncode, text) for process, text in zip(processes, errors, strict=True))


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
    (first, _), (second, error) = ends(start(SEARCH, out, 0), start(SEARCH, out, 1))
    assert (first, second) == (0, 1) and re.search("another run writes to|is not empty", error)
    seed = yaml.safe_load((out / "config.yaml").read_text())["search"]["seed"]
    inputs.search(out=tmp_path / "alone", population=4, generations=2, seed=seed)
    (out / "config.yaml").write_bytes((tmp_path / "alone/config.yaml").read_bytes())  # threads of the two processes
    assert names(out) == names(tmp_path / "alone")


@pytest.mark.slow
def test_two_resumes_of_a_killed_run(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    assert ends(start(DIE, killed))[0][0] == -signal.SIGKILL
    assert json.loads((killed / LOCK).read_text())["pid"] > 0
    (first, _), (second, error) = ends(start(RESUME, killed), start(RESUME, killed))
    assert first == 0 and (second == 0 or "another run writes to" in error)  # one may begin after the other's end
    inputs.search(out=tmp_path / "whole", population=4, generations=2)
    (killed / "config.yaml").write_bytes((tmp_path / "whole/config.yaml").read_bytes())
    assert names(killed) == names(tmp_path / "whole")


def test_a_report_reads_while_another_process_writes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    inputs.search(out=out, population=4, generations=1)
    process = start("from deap_prune.search.lock import locked\nwith locked(out, new=False): time.sleep(600)", out)
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
        process.communicate()
    dp.resume(out, inputs.net(), inputs.X[:1], progress=False, **inputs.DATA)
