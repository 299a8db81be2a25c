"""SIGKILL at random moments: a run that is killed and resumed several times equals an undisturbed one.

All slow; ``test_resume.py`` kills at chosen moments, in every run of the tests.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet

PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import torch
torch.set_num_threads(1)
from tests.search.test_kills import work
work(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
"""


def work(out: Path, seed: int, generations: int) -> None:
    """Search or resume, with untrained weights: the values do not matter here."""
    torch.manual_seed(0)
    model, digits = digits_resnet(width=8), load_data(format="digits")
    splits = {"calibration": digits.calibration, "validation": digits.validation}
    data = {name: (x[:40], y[:40]) for name, (x, y) in splits.items()}
    example = torch.zeros(1, 1, 8, 8)
    if (out / "config.yaml").is_file():
        dp.resume(out, model, example, **data, progress=False)
        return
    options = {"criteria": ("l1", "fpgm", "bn_scale"), "population": 6, "generations": generations, "device": "cpu"}
    dp.search(model, example, out=out, **data, seed=seed, progress=False, **options)


def start(out: Path, seed: int, generations: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    here = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", PROGRAM, here, str(out), str(seed), str(generations)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(out: Path, seed: int, generations: int) -> None:
    """Run to the end."""
    _, errors = (process := start(out, seed, generations)).communicate()
    assert process.returncode == 0, errors.decode()


def whole_run(out: Path, seed: int, generations: int) -> float:
    """An undisturbed run in this process; returns the seconds between its first and its last file."""
    work(out, seed, generations)
    return (out / "front.json").stat().st_mtime - (out / "config.yaml").stat().st_mtime


def killed_run(out: Path, seed: int, kills: int, generations: int, seconds: float) -> int:
    """A run with SIGKILLs at random moments after its first checkpoint; returns how many hit."""
    moments = random.Random(seed)
    hit = 0
    for _ in range(kills):
        process = start(out, seed, generations)
        before = set(out.glob("checkpoints/0*.json"))
        while process.poll() is None and set(out.glob("checkpoints/0*.json")) == before:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, seconds / kills))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        hit += process.returncode == -signal.SIGKILL
    finish(out, seed, generations)
    return hit


def result(out: Path) -> dict[str, bytes]:
    names = ["front.json", "front.csv", "history.csv", "cache.jsonl"]
    masks = sorted(str(p.relative_to(out)) for p in (out / "masks").iterdir())
    return {name: (out / name).read_bytes() for name in (*names, *masks)}


@pytest.mark.slow
def test_killed_twice(tmp_path: Path) -> None:
    seconds = whole_run(tmp_path / "whole", 0, 6)
    assert killed_run(tmp_path / "run", 0, 2, 6, seconds) >= 1
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_five_times(seed: int, tmp_path: Path) -> None:
    seconds = whole_run(tmp_path / "whole", seed, 20)
    hit = killed_run(tmp_path / "run", seed, 5, 20, seconds / 2)
    assert hit >= 3
    assert result(tmp_path / "run") == result(tmp_path / "whole")
