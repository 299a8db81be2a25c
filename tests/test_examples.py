"""The examples are programs: they run, briefly."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import deap_prune as dp

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *args, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name), *args]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_loop(tmp_path):
    assert "solutions" in run("own_loop.py", "--generations", "1", "--epochs", "2", cwd=tmp_path)


def test_own_criterion(tmp_path):
    assert "linf" in run("own_criterion.py", "--epochs", "1", cwd=tmp_path)


def test_shift_invariance(tmp_path):
    """Whatever the training gives, shifts change no label of the polyphase network: untrained to fine-tuned."""
    lines = run("shift_invariance.py", "--generations", "0", "--epochs", "1", cwd=tmp_path).splitlines()
    figures = [line.split()[-2:] for line in lines if line.startswith("polyphase")]
    assert [consistency for consistency, _ in figures] == ["100.0%"] * 4
    assert [float(share.rstrip("%")) <= 50 for _, share in figures] == [False, False, True, True]


def test_point_sets(tmp_path):
    assert "of the FLOPs; test accuracy" in run("point_sets.py", "--generations", "0", "--epochs", "1", cwd=tmp_path)


@pytest.mark.slow
def test_demo(tmp_path):
    """The main job whole: trained, searched, compared, slimmed, fine-tuned; a second run gets its own folder."""
    first = run("demo.py", cwd=tmp_path)
    assert "everything is in runs/demo:" in first
    points = np.array([list(s.values.values()) for s in dp.ParetoFront.load(tmp_path / "runs/demo")]) * [-1, 1]
    assert len(points) >= 8
    assert not any(((points <= p).all(axis=1) & (points < p).any(axis=1)).any() for p in points)
    assert "everything is in runs/demo-2:" in run("demo.py", "--generations", "1", "--epochs", "1", cwd=tmp_path)
