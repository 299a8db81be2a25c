"""benchmarks/quality.py on a random digits network, a few images and a few evaluations."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deap_prune.weights import save_weights
from deap_prune.zoo import digits_resnet

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = ["--set", "data.calibration=40", "--set", "data.validation=40", "--set", "search.criteria=[l2, bn_scale, apoz]"]
SMALL = ["--set", "model.kwargs={width: 4}"]
SEARCHES = ("ours, uniform widths", "ours, evolved widths", "LeGR", "no clustering", "random search, evolved widths")


@pytest.fixture(scope="module")
def quality():
    sys.path.insert(0, str(BENCHMARKS))
    import quality

    yield quality
    sys.path.remove(str(BENCHMARKS))


def run(quality, out, *options):
    arguments = ["quality.py", "run", "--out", str(out), "--pairs", "digits", "--seeds", "1", "--evaluations", "12"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*arguments, "--images", "20", *TINY, *options])
        quality.main()


@pytest.fixture(scope="module")
def done(quality, tmp_path_factory):
    """A folder with every step of one budget, the plain ones of another, and how often test images were looked at."""
    out = tmp_path_factory.mktemp("quality")
    torch.manual_seed(0)
    save_weights(digits_resnet(width=4), out / "digits_resnet.safetensors")
    looks = []
    accuracy = quality.dp.accuracy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality.dp, "accuracy", lambda *a, **k: looks.append(1) or accuracy(*a, **k))
        run(quality, out, "--budgets", "0.5", *SMALL)
        run(quality, out, "--budgets", "0.7", "--protocols", "plain", *SMALL)
    return out, len(looks)


def rows_of(out):
    return [json.loads(path.read_text()) for path in out.glob("*/*/*.json")]


def test_test_images_are_looked_at_once_for_each_network_that_is_reported(done):
    out, looks = done
    assert looks == sum(1 + ("refined" in row) for row in rows_of(out))


def test_all_arms_stay_inside_the_budget(done):
    out, _ = done
    assert all(row["validation"]["flops"] <= row["budget"] for row in rows_of(out))


def test_searches_have_equal_evaluations(done):
    out, _ = done
    searches = [row for row in rows_of(out) if row["arm"] in SEARCHES]
    assert {row["arm"] for row in searches} == set(SEARCHES)
    assert {row["evaluations"] for row in searches} == {12}


def test_a_blend_is_on_validation_at_least_as_good_as_the_best_single(done):
    out, _ = done
    found = {(r["budget"], r["protocol"], r["arm"]): r.get("judged", r["validation"])["loss"] for r in rows_of(out)}
    cells = [(b, p) for b, p, arm in found if arm == "best single"]
    assert len(cells) == 4
    for cell in cells:
        blend = "ours, uniform widths, pre-screened" if "drafts" in cell else "ours, uniform widths"
        assert found[(*cell, blend)] <= found[(*cell, "best single")]


def test_a_step_that_is_missing_is_done_again_and_gives_the_same(quality, done, capsys):
    out, _ = done
    path = next(out.glob("digits/0.5/plain-0-arm-legr.json"))
    before = json.loads(path.read_text())
    path.unlink()
    run(quality, out, "--budgets", "0.5", *SMALL)
    again = json.loads(path.read_text())
    assert capsys.readouterr().out.count("Step(") == 1
    assert {**again, "seconds": 0} == {**before, "seconds": 0}


def test_a_blend_carried_to_where_it_was_found_chooses_the_same_filters(quality, done):
    out, _ = done
    row = json.loads(next(out.glob("digits/0.5/plain-0-arm-ours-evolved-widths.json")).read_text())
    args = quality_args(quality, out)
    ground = quality.Ground(quality.open_config("digits", 0, args), 0, 12, 20)
    assert quality.transferred(ground, 0.5, "plain", source=row)["validation"] == row["validation"]


def quality_args(quality, out):
    import argparse

    return argparse.Namespace(out=out, set=[*TINY[1::2], "model.kwargs={width: 4}"])


def test_layers_are_matched_by_stage_and_relative_depth(quality):
    import arms

    deep, shallow = ([f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in range(n)] for n in (9, 3))
    found = arms.matching(deep, shallow)
    assert all(name.split(".")[0] == source.split(".")[0] for name, source in found.items())
    assert list(found.values()) == [name for name in shallow for _ in range(3)]
    assert arms.matching(shallow, shallow) == {name: name for name in shallow}


def test_the_volume_of_a_point_is_its_rectangle(quality):
    import arms

    assert arms.volume(np.array([[0.5, 0.25]])) == pytest.approx(0.5 * 0.75)


def test_rows_of_two_networks_are_not_mixed(quality, done, tmp_path, monkeypatch):
    """Nor is a network trained anew where there are rows of one that is gone."""
    out = tmp_path / "quality"
    shutil.copytree(done[0], out)
    assert all(len(row["weights"]) == 12 for row in rows_of(out))
    path = next(out.glob("digits/0.5/plain-0-arm-legr.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights": "another"}))
    monkeypatch.setattr(sys, "argv", ["quality.py", "table", "--out", str(out), "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"the rows of digits in .* are of several networks: .*another"):
        quality.main()
    (out / "digits_resnet.safetensors").unlink()
    with pytest.raises(SystemExit, match="rows of a digits network that is not there: bring"):
        run(quality, out, "--budgets", "0.5")


def test_tables_stand_between_the_marks(quality, done, tmp_path, monkeypatch):
    out, _ = done
    report = tmp_path / "RESULTS.md"
    report.write_text("before\n<!-- quality -->\nstale\n<!-- end of quality -->\nafter\n")
    command = ["quality.py", "table", "--out", str(out), "--results", str(tmp_path), "--report", str(report)]
    monkeypatch.setattr(sys, "argv", command)
    quality.main()
    text = report.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text
    best = next(row for row in rows_of(out) if row["arm"] == "mean rank" and row["budget"] == 0.7)
    assert f"| mean rank | {100 * best['test accuracy']:.2f} (1) |" in text
    assert "imagenet-resnet50: not measured." in text
    assert len(json.loads((tmp_path / "quality.json").read_text())) == len(rows_of(out))
    assert (tmp_path / "quality.png").stat().st_size > 1000


@pytest.mark.parametrize("pair", ["cifar10-resnet20", "cifar100-resnet20", "imagenet-resnet50"])
def test_the_configs_prune_inner_filters_alone(quality, pair):
    from deap_prune.config import import_factory, load_config

    assert pair in quality.PAIRS
    config = load_config(BENCHMARKS.parent / "configs" / f"{pair}.yaml")
    space = quality.dp.trace(
        import_factory(config.model.factory)(), torch.zeros(1, 3, 32, 32), ignore=config.search.ignore
    )
    assert all(len(group.layers("filter")) == 1 for group in space.groups)


def test_ablations_are_runs_of_their_own(quality, done):
    out, _ = done
    ground = quality.Ground(quality.open_config("digits", 0, quality_args(quality, out)), 0, 18, 20)
    for name in ("validation images: 100", "clusters: 1", "population: 10"):
        row = quality.ABLATIONS[name](ground, 0.5, "plain")
        assert row["evaluations"] >= 18 and row["validation"]["flops"] <= 0.5


def test_drafts_are_compared_with_what_they_become(quality, done):
    import drafts

    out, _ = done
    ground = quality.Ground(quality.open_config("digits", 0, quality_args(quality, out)), 0, 18, 20)
    masks = drafts.candidates(ground, 0.5, 2)
    assert len(masks) == len(set(masks)) and all(
        quality.dp.flops(ground.space, m) / ground.space.flops <= 0.5 for m in masks
    )
    figures, seconds = drafts.measured(ground, masks[:3])
    assert figures.keys() == seconds.keys() and all(len(values) == 3 for values in figures.values())
    evaluator = ground.judge("compensated").with_settings(refine=True)
    assert figures["refined"] == [evaluator(m)[0] for m in masks[:3]] != figures["compensated"]


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


def test_training_goes_on_and_full_width_is_the_same_training(quality, tmp_path, monkeypatch):
    import training

    torch.manual_seed(0)
    save_weights(digits_resnet(width=4), tmp_path / "digits_resnet.safetensors")
    options = ["--pair", "digits", "--budget", "0.4", "--seeds", "1", "--evaluations", "18", "--epochs", "2", *TINY]
    options += ["--set", "model.kwargs={width: 4}", "--out", str(tmp_path), "--results", str(tmp_path / "found.json")]

    def call(*command):
        monkeypatch.setattr(sys, "argv", ["training.py", *command, *options, "--arms", "best single", "random"])
        training.main()
        return json.loads((tmp_path / "found.json").read_text())["digits-0.4"] if command[0] == "table" else None

    with pytest.raises(SystemExit, match="not chosen yet"):
        call("train")
    call("choose")
    call("train", "--together", "2")
    untrained, rows = call("table")[:2], call("table")[2:]
    assert [row["arm"] for row in rows] == ["best single", "random"]
    assert [row["refined"] for row in rows] == [row["refined"] for row in untrained]
    assert all(0.3 < row["flops"] <= 0.4 and len(row["losses"]) == 2 for row in rows)
    for path in (tmp_path / "digits-0.4").glob("random-1.*2*"):  # its training alone is done again
        path.unlink()
    call("train", "--full-width")
    again = call("table")[2:]
    assert again[0] == rows[0]
    assert again[1]["losses"] == pytest.approx(rows[1]["losses"], rel=1e-4)
