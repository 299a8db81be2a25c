"""``deap-prune inspect --criteria``: agreement, clusters, and the values of each criterion's masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import Digits
from typer.testing import CliRunner

import deap_prune as dp
from deap_prune.cli import app
from deap_prune.plot import plot_agreement
from deap_prune.report.compare_criteria import rank_criteria
from deap_prune.weights import save_weights


def test_ranking_takes_one_evaluation_per_criterion(digits: Digits) -> None:
    genome = digits.genome(allocation="uniform", max_flops=0.5)
    evaluate = digits.evaluator(objectives=("loss", "flops"))
    ranking = rank_criteria(genome, evaluate)
    assert {r.criterion for r in ranking} == set(digits.scores.criteria)
    losses = [r.values["loss"] for r in ranking]
    assert losses == sorted(losses)  # a loss is minimised
    assert all(r.values["flops"] <= 0.5 for r in ranking) and evaluate.counters.candidates <= len(ranking)
    assert ranking[0].values["loss"] == evaluate(genome.decode(genome.single(ranking[0].criterion)))[0]
    best = rank_criteria(genome, digits.evaluator())
    assert [r.values["accuracy"] for r in best] == sorted((r.values["accuracy"] for r in best), reverse=True)


def test_picture(digits: Digits, tmp_path: Path) -> None:
    for number, names in enumerate([tuple(digits.scores.criteria), ("l1", "apoz"), ("l1",)]):
        part = dp.ScoreTable({g: {c: by[c] for c in names if c in by} for g, by in digits.scores.scores.items()})
        path = tmp_path / f"{number}.png"
        plot_agreement(dp.cluster(part), path, title="digits")
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def config(digits: Digits, tmp_path: Path) -> Path:
    save_weights(digits.model, tmp_path / "net.safetensors")
    content = {
        "model": {"factory": "deap_prune.zoo:digits_resnet", "weights": str(tmp_path / "net.safetensors")},
        "data": {"format": "digits", "calibration": 60, "validation": 100},
        "search": {"criteria": ["l1", "fpgm", "bn_scale", "mean_activation", "random"]},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "run.yaml"


def test_inspect_criteria(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = CliRunner().invoke(app, ["inspect", str(config), "--criteria", "--quiet"])
    assert done.exit_code == 0, done.output
    for part in (
        "9 groups",
        "Spearman's rho above the diagonal, overlap of the lower halves below it",
        "clusters of each layer",
        "criteria by the accuracy of their masks, uniform widths, 50% of the FLOPs",
        "dense network",
        "Rand index",
    ):
        assert part in done.stdout, part
    ranks = done.stdout[done.stdout.index("criteria by the") :].splitlines()[2:7]
    accuracies = [float(line.split()[1]) for line in ranks]
    assert accuracies == sorted(accuracies, reverse=True)
    assert {line.split()[0] for line in ranks} == {"l1", "fpgm", "bn_scale", "mean_activation", "random"}
    stable = {line.split()[0]: float(line.split()[3]) for line in ranks}
    assert stable["l1"] == stable["bn_scale"] == stable["random"] == 1 > stable["mean_activation"]
    assert Path("criteria.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_criteria_with_another_folder_and_budget(config: Path, tmp_path: Path) -> None:
    options = ["--criteria", "--quiet", "--out", str(tmp_path / "new" / "folder"), "--max-flops", "0.8"]
    done = CliRunner().invoke(app, ["inspect", str(config), *options, "--set", "search.n_clusters=auto"])
    assert done.exit_code == 0, done.output
    assert "80% of the FLOPs" in done.stdout and (tmp_path / "new" / "folder" / "criteria.png").is_file()
    bad = ("--max-flops=2", "max_flops is 2"), ("--max-flops=0", "max_flops is 0"), ("--set=search.n_clusters=x", "'x'")
    for change, message in bad:
        refused = CliRunner().invoke(app, ["inspect", str(config), "--criteria", "--quiet", change])
        assert refused.exit_code == 2 and message in refused.stderr


def test_correlation_and_overlap_are_symmetric(digits: Digits) -> None:
    _, rho = digits.clusters.correlation()
    _, overlap = digits.clusters.overlap(0.5)
    assert np.allclose(rho, rho.T) and np.allclose(overlap, overlap.T)
    assert np.allclose(np.diag(rho), 1) and np.allclose(np.diag(overlap), 1)
