"""SIGKILL at random moments: a run that was killed and resumed, again and again, ends as the one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet

out, seed = Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
model = digits_resnet()
data = load_data(format="digits")
few = lambda pair: (pair[0][:100], pair[1][:100])  # noqa: E731
data = {"calibration": few(data.calibration), "validation": few(data.validation), "progress": False}
if (out / "config.yaml").is_file():
    dp.resume(out, model, torch.zeros(1, 1, 8, 8), **data)
else:
    options = dict(criteria=("l1", "fpgm", "bn_scale"), population=6, generations=GENERATIONS, seed=seed, device="cpu")
    dp.search(model, torch.zeros(1, 1, 8, 8), out=out, **data, **options)
"""


def start(out: Path, seed: int, generations: int) -> subprocess.Popen[bytes]:
    """Search or resume; untrained weights do, since killing asks nothing of the figures."""
    code = PROGRAM.replace("GENERATIONS", str(generations))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(out), str(seed)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(out: Path, seed: int, generations: int) -> float:
    """Run to the end; gives the seconds from the first checkpoint on."""
    process = start(out, seed, generations)
    while process.poll() is None and not list(out.glob("checkpoints/0*.json")):
        time.sleep(0.02)
    begin = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return time.monotonic() - begin


def killed_run(out: Path, seed: int, kills: int, generations: int, seconds: float) -> int:
    """A run with SIGKILLs at random moments after it has begun to work; gives how many hit."""
    moments = random.Random(seed)
    hit = 0
    for _ in range(kills):
        process = start(out, seed, generations)
        before = set(out.glob("checkpoints/0*.json"))
        while process.poll() is None and set(out.glob("checkpoints/0*.json")) == before:
            time.sleep(0.005)
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


def test_killed_twice(tmp_path: Path) -> None:
    seconds = finish(tmp_path / "whole", 0, 6)
    assert killed_run(tmp_path / "run", 0, 2, 6, seconds) >= 1
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_five_times(seed: int, tmp_path: Path) -> None:
    seconds = finish(tmp_path / "whole", seed, 20)
    hit = killed_run(tmp_path / "run", seed, 5, 20, seconds / 2)
    assert hit >= 3
    assert result(tmp_path / "run") == result(tmp_path / "whole")
