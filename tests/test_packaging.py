"""The wheel and the sdist: built, installed apart from the checkout, and used from there."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = """
import json, sys
from importlib.resources import files
import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.zoo import digits_resnet

data, model = load_data(format="digits"), digits_resnet(width=8).eval()
calibration = tuple(t[:64] for t in data.calibration)
result = dp.search(model, data.calibration[0], calibration=calibration, validation=calibration, criteria=("l1", "l2"),
                   population=2, generations=0, out="run", progress=False)
page = dp.report("run", network=False)
print(json.dumps([dp.__file__, len(result.front), page.is_file(), files("deap_prune").joinpath("py.typed").is_file(),
                  sorted(set(sys.modules) & {"ray", "onnx", "onnxruntime", "playwright", "mkdocs"})]))
"""


def python(*args, **options):
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_and_sdist(tmp_path):
    """The wheel imports, searches and reports from a folder of its own; the sdist has what it takes to build it."""
    pytest.importorskip("hatchling")
    python("-m", "hatchling", "build", "-d", tmp_path / "dist", cwd=ROOT)
    (sdist,), (wheel,) = (list((tmp_path / "dist").glob(kind)) for kind in ("*.tar.gz", "*.whl"))
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "deap_prune/report/page.js", "deap_prune/py.typed"} <= names
    assert not [n for n in names if n.startswith(("runs/", ".cache/", "site/", ".venv/"))]
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "there", wheel)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "there"), "OMP_NUM_THREADS": "1"}
    found = python("-c", USE, cwd=tmp_path, env=environment).strip().splitlines()[-1]
    assert found.startswith(f'["{tmp_path / "there"}') and found.endswith("true, true, []]")
