"""The command line on a digits network: the search in a process of its own, the other commands in this one."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

import deap_prune as dp
from deap_prune.cli import app
from deap_prune.data import load_data
from deap_prune.search import from_config
from deap_prune.structure.tracing.fvcore_count import count_flops
from deap_prune.weights import build_model, read_weights, save_weights
from deap_prune.zoo import digits_resnet

CRITERIA = ("l1", "bn_scale", "taylor_gate")


def cli(*args, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "deap_prune.cli", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def here(*args):
    """Run a command in this process, in the current folder."""
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a config and trained weights."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    data, model = load_data(format="digits"), digits_resnet(width=8)
    dp.finetune(model, data.train, epochs=3, recipe=dp.Recipe(lr=0.1, batch_size=64), progress=False)
    save_weights(model, folder / "net.safetensors")
    config = {
        "model": {"factory": "deap_prune.zoo:digits_resnet", "kwargs": {"width": 8}, "weights": "net.safetensors"},
        "data": {"format": "digits", "calibration": 100, "validation": 100},
        "search": {"population": 4, "generations": 2, "finalists": 0, "refine_images": 50, "criteria": list(CRITERIA)},
        "finetune": {"epochs": 1},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def run(home):
    """A finished run folder."""
    done = cli("search", "run.yaml", "--out", "runs/a", "--quiet", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "evaluations, in runs/a" in done.stdout
    assert re.search(r"dense +\d\.\d{4} +1\.0000 +[\d,]+ \(100\.0%\) +[\d,]+ \(100\.0%\)", done.stdout)
    assert done.stderr == ""  # no warnings of ours or of others on a normal run
    return home / "runs" / "a"


def test_the_run_folder_holds_all_files_and_no_pickle(run):
    names = {p.name for p in run.iterdir()}
    files = {"config.yaml", "versions.json", "front.json", "front.csv", "history.csv", "front.png"}
    assert names == files | {"cache.jsonl", "refined.jsonl", "live.json", "masks", "checkpoints"}
    assert {p.suffix for p in run.rglob("*") if p.is_file()} <= {".yaml", ".json", ".jsonl", ".csv", ".png"}
    assert len((run / "history.csv").read_text().splitlines()) == 4
    assert not list(run.rglob("*.tmp"))


def test_front_json_holds_the_values_of_the_networks(run, monkeypatch, home):
    """Each solution's slim network has the stated costs and values, and gives the masked network's outputs."""
    from deap_prune.search.finished_run import open_solution

    monkeypatch.chdir(home)
    content = json.loads((run / "front.json").read_text())
    for number, entry in enumerate(content["solutions"]):
        opened = open_solution(run, number=number)
        evaluator, solution = opened.evaluator, opened.solution
        small = evaluator.slim(solution.masks)
        images = opened.opened.splits.validation[0]
        assert count_flops(small, ((images[:1],), {}))[0] == entry["flops"] == solution.flops
        assert sum(p.numel() for p in small.parameters()) == entry["params"]
        assert entry["values"]["flops"] == entry["flops"] / content["dense"]["flops"]
        assert dict(zip(evaluator.names, evaluator(solution.masks), strict=True)) == entry["values"]
        with torch.no_grad(), evaluator.masked(solution.masks) as network:
            torch.testing.assert_close(network(images), small(images), rtol=1e-4, atol=1e-4)


def test_inspect_criteria_slim_finetune(run, home, monkeypatch):
    monkeypatch.chdir(home)
    assert "filters" in here("inspect", "run.yaml").stdout
    listed = here("criteria").stdout
    assert all(name in listed for name in ("l1", "taylor_gate", "apoz"))
    done = here("slim", run, "--number", "0")
    assert done.exit_code == 0, done.stderr
    weights = read_weights(run / "slim.safetensors")
    masks = dp.Masks.from_json((run / "slim.masks.json").read_text())
    assert sum(v.numel() for k, v in weights.items() if k == "conv1.weight") == masks["conv1"].sum() * 9
    trained = []
    for _ in range(2):  # the second time the state says that all epochs are done
        done = here("finetune", run, "--number", "0", "--quiet", "--state", home / "training")
        assert done.exit_code == 0, done.stderr
        trained.append((run / "finetuned.safetensors").read_bytes())
    assert trained[0] == trained[1]
    refused = here("finetune", run, "--number", "0", "--quiet", "--epochs", "0")
    assert refused.exit_code and "epochs is 0" in refused.stderr
    assert (run / "finetuned.safetensors").read_bytes() == trained[1]
    for part in ("after the last epoch (1)", "after the best (1)", "as pruned", "after fine-tuning (last epoch)"):
        assert part in done.stdout
    assert "trained on those images" not in done.stdout
    known = dataclasses.replace(load_data(format="digits", calibration=100, validation=100), held_out=False)
    monkeypatch.setattr(from_config, "load_data", lambda **_: known)
    done = here("finetune", run, "--number", "0", "--quiet", "--state", home / "training")
    assert "trained on those images too: --set data.exclude_from_train=true leaves them out" in done.stdout
    monkeypatch.undo()
    monkeypatch.chdir(home)
    options = ("--number", "0", "--format", "safetensors", "--weights", run / "finetuned.safetensors")
    done = here("export", run, *options)
    assert done.exit_code == 0, done.stderr
    tuned = dp.load(run / "export").state_dict()
    expected = read_weights(run / "finetuned.safetensors")
    assert all(torch.equal(value, tuned[name]) for name, value in expected.items())
    front = dp.ParetoFront.load(run)
    assert "finetuned.safetensors, on the validation images:" in done.stdout
    assert f"accuracy {front[0].values['accuracy']:.4f}" not in done.stdout  # of other weights


def test_resume_of_a_finished_run_and_beyond(run, home, monkeypatch):
    monkeypatch.chdir(home)
    before = (run / "front.json").read_bytes()
    assert here("resume", run, "--quiet").exit_code == 0
    assert (run / "front.json").read_bytes() == before
    here("search", "run.yaml", "--out", "runs/longer", "--quiet", "--set", "search.generations=3")
    assert here("resume", run, "--generations", "3", "--quiet").exit_code == 0
    resumed, whole = dp.ParetoFront.load(run), dp.ParetoFront.load(home / "runs/longer")
    assert resumed.hypervolume() >= whole.hypervolume()  # it also keeps what its earlier end refined
    assert (run / "history.csv").read_bytes() == (home / "runs/longer/history.csv").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.weights=missing.pth", "no weights at 'missing.pth'"),
        ("search.criteria=[l11]", "unknown criterion 'l11'; did you mean 'l1'?"),
        ("search.populaton=4", "unknown key 'search.populaton'; did you mean 'population'?"),
        ("serach.population=4", "unknown key 'serach'; did you mean 'search'?"),
        ("search.max_flops=0", "max_flops is 0"),
        ("search.max_flops=1.5", "max_flops is 1.5"),
        ("search.max_flops=0.000001", "the reachable minimum"),
        ("search.objectives=[acuracy]", "did you mean 'accuracy'?"),
        ("data.format=npy", "unknown data format 'npy'; did you mean 'npz'?"),
        ("data.calibration=5000", "5000"),
        ("search.population=1", "'search.population' is 1"),
        ("model.factory=deap_prune.zoo:nothing", "can't be imported"),
        ("nonsense", "is not key.sub=value"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(home, monkeypatch, change, message):
    monkeypatch.chdir(home)
    done = CliRunner().invoke(app, ["search", "run.yaml", "--out", "runs/bad", "--set", change])
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.startswith("error:") and len(done.stderr.splitlines()) == 1
    assert not (home / "runs" / "bad").exists()


def test_an_existing_run_is_not_overwritten(run, home, monkeypatch):
    monkeypatch.chdir(home)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    done = here("search", "run.yaml", "--out", run)
    assert done.exit_code == 2 and "exists and is not empty" in done.stderr
    assert done.stderr.startswith("error:") and "Traceback" not in done.stderr
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    refused = CliRunner().invoke(app, ["resume", str(home)])
    assert refused.exit_code == 2 and "holds no run" in refused.stderr


@pytest.mark.parametrize("config", sorted(Path(__file__).parents[1].glob("configs/**/*.yaml")), ids=lambda p: p.stem)
def test_every_config_validates(config):
    from deap_prune.config import load_config

    loaded = load_config(config)
    loaded.search.check()
    kwargs = {k: v for k, v in loaded.model.kwargs.items() if k != "weights"}  # torchvision's: nothing is fetched here
    assert build_model(loaded.model.model_copy(update={"weights": None, "kwargs": kwargs})) is not None


@pytest.mark.parametrize("option", ["prescreen=8", "compare=drafts", "guard=20"])
def test_criteria_are_compared_under_any_options_of_the_search(option, home, monkeypatch):
    monkeypatch.chdir(home)
    options = ["--set", "search.objectives=[loss]", "--set", "search.max_flops=0.5"]
    done = here("inspect", "run.yaml", "--criteria", "--quiet", "--set", f"search.{option}", *options)
    assert done.exit_code == 0 and "criteria by the accuracy of their masks" in done.stdout, done.stderr


def test_a_search_never_reads_the_test_images(home, monkeypatch):
    """Law 7: a search works although the test split can't be read."""

    def refuse():
        raise AssertionError("the test images were read")

    splits = dataclasses.replace(load_data(format="digits", calibration=100, validation=100), load_test=refuse)
    monkeypatch.setattr(from_config, "load_data", lambda **_: splits)
    monkeypatch.chdir(home)
    done = CliRunner().invoke(
        app, ["search", "run.yaml", "--out", "runs/blind", "--quiet", "--set", "search.generations=1"]
    )
    assert done.exit_code == 0, done.output
    with pytest.raises(AssertionError, match="were read"):
        _ = splits.test


@pytest.mark.slow
def test_search_and_resume_on_ray(home, run):
    """The same files as without Ray; the command starts and stops the cluster."""
    pytest.importorskip("ray")
    done = cli("search", "run.yaml", "--out", "runs/ray", "--ray", "local", "--set", "search.generations=1", cwd=home)
    assert done.returncode == 0 and "evaluations, in runs/ray" in done.stdout, done.stderr
    done = cli("resume", "runs/ray", "--ray", "local", "--generations", "2", "--quiet", cwd=home)
    assert done.returncode == 0, done.stderr
    for name in ("front.json", "front.csv", "history.csv", "cache.jsonl"):
        assert (home / "runs/ray" / name).read_bytes() == (run / name).read_bytes(), name


@pytest.mark.slow
def test_ray_at_no_address(home):
    pytest.importorskip("ray")
    done = cli("search", "run.yaml", "--out", "runs/nowhere", "--ray", "127.0.0.1:1", "--quiet", cwd=home)
    assert done.returncode == 2 and "error: no Ray cluster at '127.0.0.1:1'" in done.stderr, done.stderr
    assert not (home / "runs/nowhere").exists()


SEGMENTING = """
import torch
from torch import nn
from deap_prune.data import Splits

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)).eval()

def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 1, 8, 8, generator=generator)
    pair = x, (x[:, 0] > 0).long()
    return Splits.from_tensors(calibration=pair, validation=pair, train=pair, test=pair, num_classes=3)
"""


def test_finetune_of_maps_of_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segmentation: there is a loss, and no accuracy."""
    (tmp_path / "segmenting.py").write_text(SEGMENTING)
    monkeypatch.syspath_prepend(str(tmp_path))
    search = {"objectives": ["miou", "flops"], "criteria": ["l1"], "population": 4, "generations": 1, "finalists": 0}
    data = {"format": "factory", "factory": "segmenting:images"}
    config = {"model": {"factory": "segmenting:network"}, "data": data, "search": search, "finetune": {"epochs": 1}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    done = here("search", tmp_path / "run.yaml", "--out", tmp_path / "run", "--quiet")
    assert done.exit_code == 0, done.output
    done = here("finetune", tmp_path / "run", "--quiet")
    assert done.exit_code == 0, done.output
    assert re.search(r"validation loss (\S+) after the last epoch \(1\), \1 after the best \(1\)", done.output)
    assert re.search(r"test loss \d\.\d{4} as pruned, \d\.\d{4} after fine-tuning", done.output)
