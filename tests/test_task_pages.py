"""The programs of the task pages run, briefly. Those that need a large package, or train for long, are slow."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
import torch

from deap_prune.fitness import OBJECTIVES
from tests.helpers import brief

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted(path.name for path in (ROOT / "examples/tasks").glob("*.py"))
SLOW = {"with_lightning.py": "lightning", "with_timm.py": "timm", "with_transformers.py": "transformers"}
QUICK = {
    "image_folder.py": r"4\d\.\d% of the multiply-adds|50\.0% of the multiply-adds",
    "inside_optuna.py": r"trial \d+: accuracy 0\.\d+, flops 0\.\d+",
    "inside_torch_pruning.py": r"\(0\): Conv2d\(1, 11, (.|\n)* of the test images",
    "notebook.py": r"0\.\d+ of the test images",
    "segmentation.py": r"solution(.|\n)*miou(.|\n)*dense",
}
PATTERNS = {
    "with_lightning.py": r"test accuracy: dense 0\.\d+, slim 0\.\d+",
    "with_timm.py": r"[\d,]+ of 1,880,856 parameters, outputs \(16, 1000\)",
    "with_transformers.py": r"solution(.|\n)* accurate, [\d,]+ parameters",
}


def output_of(name, tmp_path, monkeypatch, capsys, *args):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(OBJECTIVES, "_entries", dict(OBJECTIVES._entries))  # a program may register its own
    brief.run(str(ROOT / name), *args)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", QUICK)
def test_program(name, tmp_path, monkeypatch, capsys):
    if "inside" in name:
        pytest.importorskip(name[7:-3])
    assert re.search(QUICK[name], output_of(f"examples/tasks/{name}", tmp_path, monkeypatch, capsys))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_program_with_a_large_package(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip(SLOW[name])
    assert re.search(PATTERNS[name], output_of(f"examples/tasks/{name}", tmp_path, monkeypatch, capsys))


@pytest.mark.slow
def test_detector(tmp_path, monkeypatch, capsys):
    """Trained, pruned by its mAP, exported and reloaded; the heads' outputs are those of the dense network."""
    pytest.importorskip("onnxscript")
    args = ("--epochs", "2", "--images", "64", "--population", "4", "--generations", "0", "--out", "out")
    text = output_of("examples/detector.py", tmp_path, monkeypatch, capsys, *args)
    assert "onnx: same labels" in text and re.search(r"reloaded: [\d,]+ of 180,150 parameters", text)
    recipe = json.loads((tmp_path / "out/recipe.json").read_text())
    assert not any(name.endswith(("classes.1", "sides.1")) for name in recipe["masks"])


def test_average_precision(monkeypatch):
    """Two boxes of one class: the surest detection is right, the next wrong, the third right."""
    monkeypatch.setattr(OBJECTIVES, "_entries", dict(OBJECTIVES._entries))
    precision = runpy.run_path(str(ROOT / "examples/detector.py"), run_name="detector")["average_precision"]
    total = torch.zeros(3, 3, 100)
    total[0, 0, [90, 50]] = 1
    total[0, 1, 70] = 1
    total[0, 2, 0] = 2
    assert precision(total) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_every_program_has_a_page_and_a_test():
    assert sorted([*QUICK, *SLOW]) == PROGRAMS
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/tasks").glob("*.md"))
    assert all(f'title="examples/tasks/{name}"' in pages for name in PROGRAMS)
