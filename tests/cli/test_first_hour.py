"""The first hour on the command line: a network and images of one's own, names of options, numbered runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import deap_prune as dp
from deap_prune.cli import app
from deap_prune.errors import DataError, RunError
from deap_prune.search import run
from deap_prune.search.first_config import data_section, first_config
from deap_prune.search.run_names import numbered, remove_run

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)).eval()
"""
SMALL = (
    "data.size=32",
    "search.population=4",
    "search.generations=1",
    "search.criteria=[l1, l2]",
    "search.finalists=0",
)


def here(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})


def settings(*overrides: str) -> list[str]:
    return [part for override in (*SMALL, *overrides) for part in ("--set", override)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a factory and a folder of images of two classes."""
    (tmp_path / "ownnet.py").write_text(NETWORK)
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for name in ("cats", "dogs"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = torch.randint(256, (40, 40, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / split / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "ownnet", raising=False)


def test_version() -> None:
    assert here("--version").stdout.strip() == f"deap-prune {dp.__version__}"
    shown = here()
    assert shown.exit_code == 2 and "prune" in shown.output and "init" in shown.output


def test_init_writes_a_config_that_runs(place: Path) -> None:
    done = here("init", "--model", "ownnet:make", "--data", "photos")
    assert done.exit_code == 0, done.output
    text = (place / "config.yaml").read_text()
    assert 10 <= len(text.splitlines()) <= 20 and text.count("#") >= 6
    again = here("init", "--model", "ownnet:make", "--data", "photos")
    assert again.exit_code == 2 and "--yes to overwrite" in again.stderr
    assert here("init", "--model", "ownnet:make", "--data", "photos", "--yes", "--max-flops", 0.6).exit_code == 0
    assert yaml.safe_load((place / "config.yaml").read_text())["search"]["max_flops"] == 0.6
    for name in ("0001-config", "0002-config"):
        done = here("search", "config.yaml", "--quiet", *settings())
        assert done.exit_code == 0, done.output
        assert f"in runs/{name}" in done.stdout and (place / "runs" / name / "front.json").is_file()
    taken = here("search", "config.yaml", "--quiet", "--out", "runs/0001-config", *settings())
    assert taken.exit_code == 2 and "exists and is not empty" in taken.stderr
    done = here("search", "config.yaml", "--quiet", "--out", "runs/0001-config", "--yes", *settings())
    assert done.exit_code == 0, done.output
    (place / "photos").rename(place / "moved")
    kept = here("search", "config.yaml", "--quiet", "--out", "runs/0001-config", "--yes", *settings())
    assert kept.exit_code == 2 and (place / "runs" / "0001-config" / "front.json").is_file(), kept.output
    (place / "moved").rename(place / "photos")
    refused = here("search", "config.yaml", "--quiet", "--out", "photos", "--yes", *settings())
    assert refused.exit_code == 2 and "holds no run" in refused.stderr and (place / "photos" / "train").is_dir()


def test_prune_in_one_command(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("deap_prune.cli.finish.find_spec", lambda name: None if "onnx" in name else find_spec(name))
    done = here(
        "prune", "ownnet:make", "--data", "photos", "--max-flops", 0.5, "--out", "small", "--quiet", *settings()
    )
    assert done.exit_code == 0, done.output
    assert "pixels" not in done.stdout and "next:" not in done.stdout  # the size was given
    assert "validation accuracy: dense" in done.stdout and "test accuracy: dense" in done.stdout
    names = {path.name for path in (place / "small" / "slim").iterdir()}
    assert names == {"network.safetensors", "recipe.json", "network.pt2"}
    assert (place / "small" / "report.html").is_file() == ("report:" in done.stdout)
    network = dp.load("small/slim")
    assert isinstance(network, nn.Sequential)
    front = dp.ParetoFront.load("small")
    assert sum(p.numel() for p in network.parameters()) == front[0].params < front.dense["params"]


def test_a_stopped_prune_is_finished_by_resume(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run folder knows that it is to end with an exported network and a report."""
    find_spec = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("deap_prune.cli.finish.find_spec", lambda name: None if "onnx" in name else find_spec(name))
    given = ("prune", "ownnet:make", "--data", "photos", "--out", "small", "--quiet", *settings()[2:])  # not the size
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_result", _interrupted)
        stopped = here(*given)
    assert stopped.exit_code == 130 and "deap-prune resume small" in stopped.stderr
    assert "images of 40 x 40 pixels; others: --set data.size=N" in stopped.stdout
    assert not (place / "small" / "front.json").exists()
    done = here("resume", "small", "--quiet")
    assert done.exit_code == 0, done.output
    assert "test accuracy: dense" in done.stdout and "report:" in done.stdout and "next:" not in done.stdout
    assert (place / "small" / "report.html").is_file()
    front = dp.ParetoFront.load("small")
    assert sum(p.numel() for p in dp.load("small/slim").parameters()) == front.best().params


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_choices_of_a_solution(place: Path) -> None:
    free = settings("search.max_flops=null", "search.objectives=[loss, flops]", "search.max_seconds=null")
    here("init", "--model", "ownnet:make", "--data", "photos")
    assert here("search", "config.yaml", "--out", "run", "--quiet", *free).exit_code == 0
    front = dp.ParetoFront.load("run")
    for options, solution in {
        ("--knee",): front.knee(),
        ("--max-params", "0.9"): front.best(max_params=0.9),
        ("--max-flops", "0.9", "--max-params", "0.9"): front.best(max_flops=0.9, max_params=0.9),
    }.items():
        done = here("slim", "run", *options, "--out", "smaller")
        assert done.exit_code == 0, done.output
        assert sum(p.numel() for p in dp.load("smaller/").parameters()) == solution.params
    both = here("slim", "run", "--knee", "--number", "0")
    assert both.exit_code == 2 and "exclude each other" in both.stderr
    done = here("slim", "run", "--out", "own.safetensors")
    assert done.exit_code == 0 and (place / "own.masks.json").is_file()


def test_a_scalar_budget_with_flops_as_an_objective_warns(place: Path) -> None:
    here("init", "--model", "ownnet:make", "--data", "photos")
    done = here("search", "config.yaml", "--quiet", *settings("search.objectives=[loss, flops]"))
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("warning: max_flops=0.5 is the cost of every candidate")
    assert "max_flops=(0.3, 0.6)" in done.stderr and len(done.stderr.splitlines()) == 1


def test_pretrained_networks_and_other_classes(place: Path) -> None:
    """Labels of other images say nothing about a network that was trained on ImageNet."""
    sections = first_config("resnet18", Path("photos"))
    assert sections["model"] == {"factory": "torchvision.models:resnet18", "kwargs": {"weights": "DEFAULT"}}
    assert sections["search"]["objectives"] == ["agreement"] and sections["search"]["labels"] is False
    for classes, objective in ((2, "loss"), (5, "agreement")):
        torch.save({"fc.weight": torch.zeros(classes, 4), "fc.bias": torch.zeros(classes)}, "net.pth")
        own = first_config("torchvision.models:resnet18", Path("photos"), weights=Path("net.pth"))
        assert own["model"]["kwargs"] == {"num_classes": classes} and own["search"]["objectives"] == [objective]
    wrong = here("init", "--model", "resnet19", "--data", "photos")
    assert wrong.exit_code == 2 and "did you mean 'resnet18'" in wrong.stderr


def test_data_sections(place: Path) -> None:
    section = data_section(Path("photos"))
    assert section.classes == 2 and section.values["test"] == "photos/test"
    assert (section.values["calibration"], section.values["validation"]) == (8, 8)
    assert "test" not in data_section(Path("photos/train")).values
    assert section.values["size"] == 224 and data_section(Path("photos"), enlarges=False).values["size"] == 40
    assert first_config("ownnet:make", Path("photos"))["data"]["size"] == 40
    assert first_config("resnet18", Path("photos"))["data"]["size"] == 224
    with pytest.raises(DataError, match=r"holds 0 images in 0 folders"):
        data_section(Path("photos/train/cats"))
    with pytest.raises(DataError, match="there is no folder 'nowhere'"):
        data_section(Path("nowhere"))


def test_a_run_that_does_not_exist(place: Path) -> None:
    for command in ("slim", "finetune", "export", "report"):
        done = here(command, "runs/mistyped")
        assert done.exit_code == 2 and "there is no folder 'runs/mistyped'" in done.stderr, command
    assert not (place / "runs").exists()
    assert "deap-prune resume" not in here("slim", "photos").stderr


def test_run_names(tmp_path: Path) -> None:
    assert numbered(tmp_path / "runs", "digits") == tmp_path / "runs/0001-digits"
    for name in ("0007-a", "9-b", "demo"):
        (tmp_path / name).mkdir()
    assert numbered(tmp_path, "c").name == "0008-c"
    remove_run(tmp_path / "nothing")
    with pytest.raises(RunError, match="holds no run"):
        remove_run(tmp_path / "demo")
    (tmp_path / "link").symlink_to(tmp_path / "demo")
    (tmp_path / "demo" / "config.yaml").touch()
    with pytest.raises(RunError, match="holds no run"):
        remove_run(tmp_path / "link")


def test_the_digits_network_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deap_prune import training
    from deap_prune.zoo import trained_digits_resnet

    trained: list[int] = []
    finetune: Callable[..., object] = training.finetune

    def counted(*args: object, **kwargs: object) -> object:
        trained.append(1)
        return finetune(*args, **kwargs)

    monkeypatch.setattr(training, "finetune", counted)
    before = torch.get_rng_state()
    first = trained_digits_resnet(str(tmp_path / "new" / "net.safetensors"), epochs=1)
    again = trained_digits_resnet(str(tmp_path / "new" / "net.safetensors"), epochs=1)
    assert trained == [1] and torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_h_is_help() -> None:
    for command in ([], ["search"], ["slim"]):
        done = CliRunner().invoke(app, [*command, "-h"])
        assert done.exit_code == 0 and "Usage" in done.output
