"""The examples are programs: they run, briefly, on few images."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import deap_prune as dp
from deap_prune.criteria.registry import CRITERIA
from deap_prune.fitness.objectives import OBJECTIVES
from deap_prune.structure import layers
from tests.helpers import brief

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs an example in an empty folder, in this process, and returns what it prints.

    What the example registers is removed after the test.
    """
    for registry in (CRITERIA, OBJECTIVES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(layers, "_TYPES", dict(layers._TYPES))

    def program(name, *args):
        monkeypatch.chdir(tmp_path)
        brief.run(str(EXAMPLES / name), *args)
        return capsys.readouterr().out

    return program


def run_apart(name, *args, cwd):
    """Run an example in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, brief.__file__, str(EXAMPLES / name), *args]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------ first steps
def test_torchvision_network(run):
    lines = run("torchvision_network.py").splitlines()
    small, dense = (int(word.replace(",", "")) for word in lines[-1].split()[::2][:2])
    assert small < dense == 2_542_856


def test_own_network(run):
    output = run("own_network.py")
    assert "2 groups, 40 filters" in output and "Own(" in output


def test_budget(run):
    assert 0.45 < float(run("budget.py").split()[0]) <= 0.5


def test_front(run, tmp_path):
    output = run("front.py")
    assert "best at half the cost" in output and "knee" in output and (tmp_path / "front.png").is_file()


def test_own_loop(run):
    assert "solutions" in run("own_loop.py", "--generations", "1", "--epochs", "2")


@pytest.mark.slow
def test_on_ray(tmp_path):
    """Slow: it starts a cluster twice; the tests of evolution start one in every run."""
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    output = run_apart("on_ray.py", "--generations", "0", "--epochs", "1", cwd=tmp_path)
    assert "candidates on 2 workers, 0 of them lost" in output and "dp.search:" in output


def test_own_criterion(run):
    assert "linf" in run("own_criterion.py", "--epochs", "1")


def test_resume(run, tmp_path):
    first, longer = (int(number) for number in run("resume.py").splitlines()[0].split() if number.isdigit())
    history = (tmp_path / "runs/resume/history.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in history] == ["nevals", "6", "6", "6", "6"]
    assert 6 < first <= 12 < longer <= 24  # networks of two individuals are evaluated once
    assert longer == len((tmp_path / "runs/resume/cache.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_int8(run, tmp_path):
    """Slow: it exports two networks and quantises both; ``test_int8.py`` checks the same export in every run."""
    pytest.importorskip("onnxruntime")
    output = run("int8.py")
    assert output.count("%") == 4 and "slim int8" in output and (tmp_path / "runs/int8/network.int8.onnx").is_file()


@pytest.mark.slow
def test_export_onnx(run, tmp_path):
    """Slow: it exports two networks; ``test_export.py`` checks the same export in every run."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    assert "onnx: same labels" in run("export_onnx.py") and (tmp_path / "runs/onnx/network.onnx").is_file()


def test_read_report(run, tmp_path):
    page = tmp_path / "runs/report/report.html"
    assert run("read_report.py").splitlines()[-1] == f"open {page.as_uri()}" and page.is_file()


# ------------------------------------------------------------------ further examples
def test_islands(run):
    assert "1 solution\n" in run("islands.py", "--generations", "2", "--epochs", "2")


def test_own_operator(run):
    output = run("own_operator.py", "--generations", "2", "--epochs", "2")
    assert "generation 2: hypervolume" in output and "knee:" in output


def test_own_objective(run):
    output = run("own_objective.py", "--generations", "1", "--epochs", "1")
    assert "wrong_and_sure" in output and "least sure of its errors:" in output


def test_other_tasks(run):
    output = run("other_tasks.py", "--generations", "1", "--epochs", "2")
    assert "mean squared error on new images: dense" in output and "with 40% of the FLOPs" in output


def test_own_layer(run):
    output = run("own_layer.py")
    assert "2 groups, 48 filters" in output and "outputs (2, 10)" in output


def test_again(run):
    lines = run("again.py", "--generations", "1", "--epochs", "1").splitlines()
    shares = [float(line.split()[0]) for line in lines if "of the FLOPs" in line]
    assert 0.25 < shares[0] <= 0.5 and shares[1] <= 0.25


def test_shift_invariance(run):
    """Shifts change no label of the polyphase network, untrained, trained, pruned or fine-tuned."""
    lines = run("shift_invariance.py", "--generations", "0", "--epochs", "1").splitlines()
    figures = [line.split()[-2:] for line in lines if line.startswith("polyphase")]
    assert [consistency for consistency, _ in figures] == ["100.0%"] * 4
    assert [float(share.rstrip("%")) <= 50 for _, share in figures] == [False, False, True, True]


def test_point_sets(run):
    assert "of the FLOPs; test accuracy" in run("point_sets.py", "--generations", "0", "--epochs", "1")


@pytest.mark.slow
def test_demo(tmp_path, monkeypatch, capsys):
    """The whole demo: trained, searched, compared, slimmed, fine-tuned; a second run gets its own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    runpy.run_path(str(EXAMPLES / "demo.py"), run_name="__main__")
    assert "everything is in runs/demo:" in capsys.readouterr().out
    points = np.array([list(s.values.values()) for s in dp.ParetoFront.load(tmp_path / "runs/demo")]) * [-1, 1]
    assert len(points) >= 8
    assert not any(((points <= p).all(axis=1) & (points < p).any(axis=1)).any() for p in points)
    brief.run(str(EXAMPLES / "demo.py"), "--generations", "1", "--epochs", "1")
    assert "everything is in runs/demo-2:" in capsys.readouterr().out
