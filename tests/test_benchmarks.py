"""The scripts of benchmarks/: compare_methods.py on a small digits network, and RESULTS.md from its JSON files."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import deap_prune as dp
from deap_prune.config import import_factory, load_config
from deap_prune.weights import save_weights
from deap_prune.zoo import digits_resnet

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
FEW_IMAGES = ["data.calibration=40", "data.validation=40", "search.criteria=[l2, bn_scale, apoz]"]
NARROW = "model.kwargs={width: 4}"
SEARCHES = ("ours, uniform widths", "ours, evolved widths", "LeGR", "no clustering", "random search, evolved widths")


@pytest.fixture(scope="module", autouse=True)
def _scripts_importable():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def call(script, *arguments):
    """Run a script's main function in this process."""
    module = import_module(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        module.main()


def run(out, *options):
    overrides = [part for value in (*FEW_IMAGES, NARROW) for part in ("--set", value)]
    small = ["--pairs", "digits", "--seeds", "1", "--evaluations", "12", "--images", "20"]
    call("compare_methods", "run", "--out", out, *small, *overrides, *options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the steps of one budget and the plain ones of another, and the number of test evaluations."""
    out = tmp_path_factory.mktemp("compare_methods")
    torch.manual_seed(0)
    save_weights(digits_resnet(width=4), out / "digits_resnet.safetensors")
    tests, accuracy = [], dp.accuracy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dp, "accuracy", lambda *a, **k: tests.append(1) or accuracy(*a, **k))
        run(out, "--budgets", "0.5")
        run(out, "--budgets", "0.7", "--protocols", "plain")
    return out, len(tests)


def rows_of(out):
    return [json.loads(path.read_text()) for path in out.glob("*/*/*.json")]


def setup_of(out):
    pairs = import_module("pairs")
    args = argparse.Namespace(out=out, set=[*FEW_IMAGES, NARROW])
    return pairs.Setup(pairs.open_config("digits", 0, args), 0, 12, 20)


# ------------------------------------------------------------------ compare_methods.py
def test_every_reported_network_is_tested_once(folder):
    out, tests = folder
    assert tests == sum(1 + ("refined" in row) for row in rows_of(out))


def test_all_methods_stay_inside_the_budget(folder):
    out, _ = folder
    assert all(row["validation"]["flops"] <= row["budget"] for row in rows_of(out))


def test_all_searches_have_equal_evaluations(folder):
    out, _ = folder
    searches = [row for row in rows_of(out) if row["arm"] in SEARCHES]
    assert {row["arm"] for row in searches} == set(SEARCHES)
    assert {row["evaluations"] for row in searches} == {12}


def test_a_blend_has_at_most_the_best_single_criterions_validation_loss(folder):
    out, _ = folder
    losses = {(r["budget"], r["protocol"], r["arm"]): r.get("judged", r["validation"])["loss"] for r in rows_of(out)}
    cells = [(budget, protocol) for budget, protocol, arm in losses if arm == "best single"]
    assert len(cells) == 4
    for cell in cells:
        blend = "ours, uniform widths, pre-screened" if "drafts" in cell else "ours, uniform widths"
        assert losses[(*cell, blend)] <= losses[(*cell, "best single")]


def test_a_missing_step_is_run_again_with_the_same_result(folder, capsys):
    out, _ = folder
    path = next(out.glob("digits/0.5/plain-0-arm-legr.json"))
    before = json.loads(path.read_text())
    path.unlink()
    run(out, "--budgets", "0.5")
    again = json.loads(path.read_text())
    assert capsys.readouterr().out.count("Step(") == 1
    assert {**again, "seconds": 0} == {**before, "seconds": 0}


def test_a_blend_transferred_to_its_own_network_keeps_the_same_filters(folder):
    out, _ = folder
    row = json.loads(next(out.glob("digits/0.5/plain-0-arm-ours-evolved-widths.json")).read_text())
    moved = import_module("methods").transferred(setup_of(out), 0.5, "plain", source=row)
    assert moved["validation"] == row["validation"]


def test_layers_are_matched_by_stage_and_relative_depth():
    matching_layers = import_module("methods").matching_layers
    deep, shallow = ([f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in range(n)] for n in (9, 3))
    matches = matching_layers(deep, shallow)
    assert all(name.split(".")[0] == source.split(".")[0] for name, source in matches.items())
    assert list(matches.values()) == [name for name in shallow for _ in range(3)]
    assert matching_layers(shallow, shallow) == {name: name for name in shallow}


def test_the_volume_of_a_point_is_its_rectangle():
    assert import_module("methods").volume(np.array([[0.5, 0.25]])) == pytest.approx(0.5 * 0.75)


def test_rows_are_gathered_in_order_with_compact_masks(folder, tmp_path):
    call("compare_methods", "gather", "--out", folder[0], "--results", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == len(rows_of(folder[0]))
    assert [row["budget"] for row in rows] == sorted((row["budget"] for row in rows), reverse=True)
    assert not any({"individual", "blend"} & row.keys() for row in rows)
    whole = {json.dumps(row["masks"]) for row in rows_of(folder[0]) if "masks" in row}
    masks = [import_module("provenance").unpacked(row["masks"]) for row in rows if "masks" in row]
    assert whole == {json.dumps(json.loads(candidate.to_json())) for candidate in masks}


def test_rows_of_two_networks_are_not_mixed(folder, tmp_path):
    """No network is trained anew either where rows of a lost one exist."""
    out = tmp_path / "runs"
    shutil.copytree(folder[0], out)
    assert all(len(row["weights"]) == 12 for row in rows_of(out))
    path = next(out.glob("digits/0.5/plain-0-arm-legr.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights": "another"}))
    with pytest.raises(SystemExit, match=r"the rows of digits in .* are of several networks: .*another"):
        call("compare_methods", "gather", "--out", out, "--results", tmp_path / "rows.json")
    (out / "digits_resnet.safetensors").unlink()
    with pytest.raises(SystemExit, match="rows of a digits network that is gone: restore"):
        run(out, "--budgets", "0.5")


@pytest.mark.parametrize("pair", ["cifar10-resnet20", "cifar100-resnet20", "imagenet-resnet50"])
def test_the_configs_prune_inner_filters_alone(pair):
    assert pair in import_module("pairs").PAIRS
    config = load_config(BENCHMARKS.parent / "configs" / f"{pair}.yaml")
    model = import_factory(config.model.factory)()
    space = dp.trace(model, torch.zeros(1, 3, 32, 32), ignore=config.search.ignore)
    assert all(len(group.layers("filter")) == 1 for group in space.groups)


# ------------------------------------------------------------------ other scripts
def test_proxies_are_compared_with_full_refinement(folder):
    proxies, setup = import_module("proxies"), setup_of(folder[0])
    masks = proxies.candidates(setup, 0.5, 2)
    assert len(masks) == len(set(masks))
    assert all(dp.flops(setup.space, candidate) / setup.space.flops <= 0.5 for candidate in masks)
    figures, seconds = proxies.measured(setup, masks[:3])
    assert figures.keys() == seconds.keys() and all(len(values) == 3 for values in figures.values())
    evaluator = setup.evaluator("compensated", refine=True)
    assert figures["refined"] == [evaluator(candidate)[0] for candidate in masks[:3]] != figures["compensated"]


def test_compensation_restores_accuracy(tmp_path):
    call("compensation", "--cases", "digits-vgg", "--epochs", "2", "--out", tmp_path)
    accuracy = json.loads((tmp_path / "compensation-digits.json").read_text())["digits-vgg"]["accuracy"]
    assert accuracy["refined"] > accuracy["slim, BN data"] > accuracy["slim"]


def test_training_goes_on_where_it_stopped(tmp_path):
    torch.manual_seed(0)
    save_weights(digits_resnet(width=4), tmp_path / "digits_resnet.safetensors")
    arms = ["best single criterion, uniform widths", "one threshold, L2", "dense of equal FLOPs, from scratch"]
    options = ["--pair", "digits", "--budget", "0.4", "--seeds", "1", "--evaluations", "18", "--epochs", "2"]
    options += [part for value in (*FEW_IMAGES, NARROW) for part in ("--set", value)]
    options += ["--images", "200", "--out", tmp_path, "--results", tmp_path / "rows.json", "--arms", *arms]
    with pytest.raises(SystemExit, match="not chosen yet"):
        call("after_training", "train", *options)
    call("after_training", "choose", *options)
    call("after_training", "train", "--together", "2", *options)
    call("after_training", "gather", *options)
    rows = json.loads((tmp_path / "rows.json").read_text())["digits-0.4"]
    assert {row["arm"] for row in rows} == set(arms)
    assert all(0.25 < row["flops"] <= 0.4 and len(row["losses"]) == 2 for row in rows)
    assert all(row["images"] == 200 and row["seed"] == 1 and row["masks"] and row["versions"] for row in rows)
    (scratch,) = (row for row in rows if row["arm"] == arms[-1])
    assert scratch["before training"] is None
    shares = [keep.mean() for keep in import_module("provenance").unpacked(scratch["masks"]).values()]
    assert len(shares) > 5 and max(shares) - min(shares) <= 0.25, "one share everywhere, but for whole filters"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}
    call("after_training", "train", *options)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}


def test_packed_masks_are_the_masks():
    provenance, rng = import_module("provenance"), np.random.default_rng(0)
    masks = dp.Masks({str(size): rng.random(size) < 0.5 for size in (1, 7, 8, 9, 64)})
    assert provenance.unpacked(json.loads(json.dumps(provenance.packed(masks)))) == masks
    assert provenance.packed(dp.Masks({"a": [True] + 8 * [False]})) == {"a": "9:8000"}


@pytest.mark.parametrize("rival", ["L2, global", "Taylor, local", "OBD-C, global"])
def test_a_rivals_masks_are_what_torch_pruning_removes(folder, rival):
    rivals, setup = import_module("rivals"), setup_of(folder[0])
    masks, ratio = rivals.chosen(setup, rival, 0.5)
    assert 0.3 < dp.flops(setup.space, masks) / setup.space.flops <= 0.5
    network = rivals.with_gradients(setup.model, setup.data.calibration)
    pruner = rivals.pruner_of(network, setup, rival, ratio)
    if rival.startswith("OBD-C"):
        pruner.importance = rivals.fisher(network, setup)
    pruner.step()
    slim = dp.slim(setup.model, setup.space, masks).state_dict()
    theirs = network.state_dict()
    assert all(torch.equal(slim[name], value) for name, value in theirs.items()) and slim.keys() == theirs.keys()


@pytest.fixture
def small(tmp_path):
    """A folder with a digits network of random weights."""
    torch.manual_seed(0)
    save_weights(digits_resnet(width=4), tmp_path / "digits_resnet.safetensors")
    return tmp_path


def small_run(script, out, *options):
    """Run a script on the small digits network of a folder; the content of its file of results."""
    path = out / f"{script}.json"
    overrides = [part for value in (*FEW_IMAGES, NARROW) for part in ("--set", value)]
    call(script, *options, "--out", out, "--results", path, *overrides)
    return json.loads(path.read_text())


def test_rows_of_the_search_with_selection_say_what_they_are(small):
    arms = ["the search", "uniform widths, L2, no search"]
    sizes = ["--pairs", "digits", "--population", "4", "--generations", "1"]
    rows = small_run("ablation", small, *sizes, "--arms", *arms)
    assert [row["evaluations"] for row in rows] == [8, 1]
    assert all(0.2 < row["flops"] <= 0.5 and torch.__version__.startswith(row["versions"]["torch"]) for row in rows)
    rows = small_run("parameter_budgets", small, *sizes, "--budgets", "0.5")
    assert len(rows) == 1 and 0.4 < rows[0]["params"] <= 0.5
    masks = import_module("provenance").unpacked(rows[0]["masks"])
    space = setup_of(small).space
    assert dp.params(space, masks) / space.params == rows[0]["params"]


@pytest.mark.slow
def test_candidates_are_trained_once(small):
    options = ["run", "--pair", "digits", "--epochs", "1", "--images", "100", "--drawn", "1"]
    report = small_run("trained_proxies", small, *options)
    assert len(report["rows"]) == len({json.dumps(row["masks"]) for row in report["rows"]}) > 3
    assert all(set(row["figures"]) | {"accuracy before training"} == set(report["tau"]) for row in report["rows"])
    assert small_run("trained_proxies", small, *options) == report


def test_a_tau_is_that_of_the_ranks():
    taus = import_module("trained_proxies").taus
    rows = [{"after training": k, "before training": -k, "figures": {"good": k**3, "swap": k ^ 1}} for k in range(16)]
    found = taus(rows)
    good, swap = found["good"], found["swap"]
    assert good["tau"] == 1 and found["accuracy before training"]["tau"] == -1
    assert swap["tau"] == pytest.approx(1 - 2 * 8 / 120) and swap["better half"] == pytest.approx(5 / 7)
    assert good["spread"] == pytest.approx(0) and swap["spread"] > 0


@pytest.mark.slow
def test_export_latency(tmp_path):
    """Dense and slim in turn: multiples of 16 can't reach half of a ResNet-56, whose first stage is 16 wide."""
    pytest.importorskip("onnxruntime")
    out = tmp_path / "latency.json"
    options = ["--networks", "resnet56", "--repeats", "2", "--out", str(out)]
    subprocess.run([sys.executable, str(BENCHMARKS / "export_latency.py"), *options], check=True)
    rows = json.loads(out.read_text())["rows"]
    assert {row["widths"] for row in rows} == {"dense", "multiples of 1", "multiples of 8"} and len(rows) == 12
    assert all(row["speed-up"] == 1 for row in rows if row["widths"] == "dense")
    assert all(0.45 < row["flops"] <= 0.5 for row in rows if row["widths"] != "dense")


# ------------------------------------------------------------------ gpu.py, dry
def test_stages_for_a_device_run_dry(tmp_path):
    """The code of the device on tiny networks: rows of every way to run candidates, and a training that resumes."""
    for stage in ("resnet56", "training", "training"):
        call("gpu", "--dry", "--out", tmp_path, "--only", stage)
    rows = json.loads((tmp_path / "resnet56.json").read_text())["rows"]
    assert {row["executor"] for row in rows} == {"masked", "slim"} and {"fp32"} <= {row["precision"] for row in rows}
    for row in rows:
        assert row["candidates per second"] > 0 and row["n"] == 2
        assert row["share of the floor"] == row["seconds"]["floor"] / row["seconds"]["candidate"]
    trained = json.loads((tmp_path / "training.json").read_text())
    assert [row["arm"] for row in trained["rows"]] == ["one threshold, L2"] and trained["stage"] == "finished"
    assert trained["rows"][0]["epochs"] == 1 and trained["commit"]


def test_stages_for_a_device_share_the_minutes(tmp_path, monkeypatch):
    """A stage that fails or takes too long does not stop the others; without a device the dry form is named."""
    gpu = import_module("gpu")
    limits = []

    def run(command, timeout, check):
        limits.append((command[command.index("--only") + 1], timeout))
        if len(limits) == 2:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, len(limits) - 1)

    monkeypatch.setattr(gpu.subprocess, "run", run)
    call("gpu", "--dry", "--out", tmp_path, "--minutes", "2")
    assert [stage for stage, _ in limits] == list(gpu.STAGES)
    assert limits[0][1] == 60 and limits[3][1] == pytest.approx(110, abs=3)
    ends = list(json.loads((tmp_path / "gpu.json").read_text())["stages"].values())
    words = ("finished", "stopped after 100 s", "exit status 2", "exit status 3")
    assert all(end.startswith(word) for end, word in zip(ends, words, strict=True))
    call("gpu", "--dry", "--out", tmp_path, "--minutes", "0.1")
    assert "no time left" in json.loads((tmp_path / "gpu.json").read_text())["stages"]["training"]
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            call("gpu", "--out", tmp_path)


# ------------------------------------------------------------------ RESULTS.md
def test_results_are_what_the_script_makes():
    text = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    assert text == import_module("tables").results(), "run `make results`"
    assert len(text.splitlines()) <= 250


def test_every_command_of_the_results_names_a_script():
    text = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    scripts = {word for word in text.replace("`", " ").split() if word.startswith("benchmarks/")}
    assert len(scripts) > 10 and all((BENCHMARKS.parent / script).is_file() for script in scripts)


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.name)
def test_results_name_no_path_of_a_machine(path):
    assert not re.search(r'"/|file:|[A-Z]:\\\\|/(home|root|tmp|usr|Users)/', path.read_text(encoding="utf-8"))
