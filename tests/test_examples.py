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


def test_islands(tmp_path):
    assert "1 solutions" in run("islands.py", "--generations", "2", "--epochs", "2", cwd=tmp_path)


@pytest.mark.slow
def test_on_ray(tmp_path):
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    found = run("on_ray.py", "--generations", "1", "--epochs", "2", cwd=tmp_path)
    assert "candidates on 2 workers, 0 of them lost" in found and "dp.search:" in found


def test_own_operator(tmp_path):
    found = run("own_operator.py", "--generations", "2", "--epochs", "2", cwd=tmp_path)
    assert "generation 2: hypervolume" in found and "knee:" in found


def test_own_criterion(tmp_path):
    assert "linf" in run("own_criterion.py", "--epochs", "1", cwd=tmp_path)


def test_own_objective(tmp_path):
    found = run("own_objective.py", "--generations", "1", "--epochs", "1", cwd=tmp_path)
    assert "wrong_and_sure" in found and "least sure of its errors:" in found


def test_own_layer(tmp_path):
    found = run("own_layer.py", cwd=tmp_path)
    assert "2 groups, 48 filters" in found and "outputs (2, 10)" in found


def test_again(tmp_path):
    lines = run("again.py", "--generations", "1", "--epochs", "1", cwd=tmp_path).splitlines()
    shares = [float(line.split()[0]) for line in lines if "of the FLOPs" in line]
    assert 0.25 < shares[0] <= 0.5 and shares[1] <= 0.25


@pytest.mark.slow
def test_newcomer(tmp_path):
    """What a newcomer tries: torchvision's network, one's own, a budget, a resume, a report, an export to ONNX."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("plotly")
    found = run("newcomer.py", cwd=tmp_path)
    assert "own network: loss" in found and "onnx: same labels" in found and "resnet18:" in found
    assert (tmp_path / "runs/own/report.html").is_file() and (tmp_path / "runs/own/export/network.onnx").is_file()


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
