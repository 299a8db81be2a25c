"""Commands on run folders that Python wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import deap_prune as dp
from deap_prune.cli import app
from deap_prune.errors import ConfigError, DataError, RunError
from deap_prune.search import kept, run

FACTORY = f"{__name__}:network"
OPTIONS: dict[str, Any] = {
    "criteria": ("l1", "l2"),
    "population": 4,
    "generations": 1,
    "finalists": 0,
    "progress": False,
    "device": "cpu",
}


def network() -> nn.Module:
    """A network with random weights, other ones each time."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    ).eval()


def images(seed: int, count: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % 3


def batches(seed: int) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images(seed)), batch_size=8)


def here(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})


def search(out: Path, kind: Callable[[int], Any] = images, **options: Any) -> tuple[dp.Result, nn.Module]:
    model = network()
    data = {"calibration": kind(0), "validation": kind(1)}
    return dp.search(model, images(0)[0], **data, out=out, **OPTIONS, **options), model


@pytest.mark.parametrize("kind", [images, batches])
def test_commands_work_on_a_run_with_factory_and_data(kind: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result, _ = search(run, kind, factory=FACTORY, keep_data=True)
    assert {"dense.safetensors", "data.safetensors"} <= {path.name for path in run.iterdir()}
    assert not [p for p in run.rglob("*") if p.suffix in (".pt", ".pth", ".pkl")]
    done = here("slim", run, "--number", 0, "--out", tmp_path / "small")
    assert done.exit_code == 0, done.output
    small, expected = dp.load(tmp_path / "small"), result.slim(0)
    with torch.no_grad():
        torch.testing.assert_close(small(images(2)[0]), expected(images(2)[0]), rtol=1e-4, atol=1e-5)
    assert "8 filters" in here("inspect", run).stdout
    done = here("export", run, "--number", 0, "--format", "torch", "--out", tmp_path / "exported")
    assert done.exit_code == 0, done.output
    program = dp.load(tmp_path / "exported")
    with torch.no_grad():
        torch.testing.assert_close(program(images(2)[0]), expected(images(2)[0]), rtol=1e-4, atol=1e-5)
    done = here("report", run, "--singles", 0, "--quiet")
    assert done.exit_code == 0 and "not opened" not in (run / "report.html").read_text(), done.output
    assert here("resume", run, "--quiet").exit_code == 0
    done = here("finetune", run, "--number", 0)
    assert done.exit_code == 2 and "keeps no training images: give --data FOLDER" in done.stderr


def test_finetune_on_a_folder_of_images(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (90 * number, 50, 50)).save(tmp_path / "photos" / name / f"{number}.png")
    search(tmp_path / "run", factory=FACTORY, keep_data=True)
    target = tmp_path / "tuned.safetensors"
    options = ("--data", tmp_path / "photos", "--set", "data.size=8", "--epochs", 1, "--out", target, "--quiet")
    done = here("finetune", tmp_path / "run", "--number", 0, *options)
    assert done.exit_code == 0 and target.is_file(), done.output


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    search(tmp_path / "bare")
    done = here("slim", tmp_path / "bare")
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1
    assert "give --model module:function" in done.stderr and "keep_data=True" in done.stderr
    search(tmp_path / "data", keep_data=True)
    done = here("slim", tmp_path / "data", "--number", 0)
    assert done.exit_code == 2 and "--model module:function" in done.stderr and "keep_data" not in done.stderr
    for command in ("slim", "inspect", "resume", "report"):
        quiet = ["--quiet"] if command in ("resume", "report") else []
        done = here(command, tmp_path / "data", "--model", FACTORY, *quiet)
        assert done.exit_code == 0, (command, done.output)


def test_factories_and_data_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="makes another network"):
        search(tmp_path / "run", factory="torch.nn:Identity")
    with pytest.raises(ConfigError, match="commands can't import it"):
        search(tmp_path / "run", factory="__main__:network")
    with pytest.raises(DataError, match="without forward= and loss="):
        search(tmp_path / "run", keep_data=True, loss=lambda outputs, targets: outputs.mean())
    with pytest.raises(DataError, match=r"keeps \(inputs, targets\) tensors; calibration has a dict"):
        search(tmp_path / "run", lambda seed: [{"x": images(seed)[0]}], keep_data=True)
    assert not (tmp_path / "run").exists()


def test_what_is_kept_is_written_before_the_first_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the first generation loses neither weights nor data; one before the config leaves a usable folder."""
    out = tmp_path / "run"

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "dump_config", killed)
        search(out, factory=FACTORY, keep_data=True)
    assert sorted(path.name for path in out.iterdir()) == ["data.safetensors", "dense.safetensors"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "evolve", killed)
        search(out, factory=FACTORY)
    assert not (out / "data.safetensors").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.safetensors").write_bytes(b"of the user")
    with pytest.raises(RunError, match="exists and is not empty"):
        search(tmp_path / "other", keep_data=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "evolve", killed)
        search(tmp_path / "next", factory=FACTORY, keep_data=True)
    assert len(dp.resume(tmp_path / "next", progress=False).front) > 0


def test_weights_that_are_not_kept_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_BYTES", 100)
    with pytest.warns(UserWarning, match=r"are not kept in '.*run': they have 0 MB, .* need --set model\.weights=FILE"):
        search(tmp_path / "run")
    assert not (tmp_path / "run" / "dense.safetensors").exists()
