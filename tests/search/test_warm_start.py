"""Warm starts: the first population holds an earlier front, for another budget or another network too."""

import shutil

import pytest

import deap_prune as dp
from deap_prune.errors import RunError
from deap_prune.zoo import digits_resnet

OPTIONS = {
    "criteria": ("l1", "fpgm", "bn_scale"),
    "population": 8,
    "generations": 0,
    "refine": False,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def search(digits, tmp_path_factory):
    """Short searches on the digits network, each in a folder of its own."""
    data = {"calibration": digits.calibration, "validation": digits.validation}

    def run(name, model=None, **options):
        folder = tmp_path_factory.getbasetemp() / f"warm-{name}"
        return dp.search(model or digits.model, digits.example, **data, **{**OPTIONS, **options}, out=folder), folder

    return run


@pytest.fixture(scope="module")
def earlier(search):
    return search("earlier", generations=3)


def genes(front):
    return {s.individual for s in front}


def test_begins_where_the_earlier_one_ended(earlier, search):
    front, folder = earlier[0].front, earlier[1]
    size = len(front) + 2
    seen = []
    result, _ = search(
        "again", warm_start=folder, population=size, seed=5, callbacks=[lambda s: seen.extend(map(tuple, s.population))]
    )
    assert len(seen) == size and genes(front) <= set(seen)
    assert result.front.hypervolume() >= front.hypervolume()


def test_a_smaller_population_takes_a_spread(earlier, search):
    front, folder = earlier[0].front, earlier[1]
    seen = []
    search("few", warm_start=folder, population=3, callbacks=[lambda s: seen.extend(map(tuple, s.population))])
    assert len(front) > 3 and set(seen) < genes(front) and len(seen) == 3
    assert seen[0] == front[0].individual and seen[-1] == front[len(front) - 1].individual


def test_another_budget_and_objective(earlier, search):
    options = {"warm_start": earlier[1], "objectives": ("loss",), "max_flops": 0.4, "generations": 1}
    result, folder = search("budget", **options)
    assert result.best.flops <= 0.4 * result.space.flops
    assert dp.ParetoFront.load(folder)[0].masks == result.best.masks


def test_another_network_of_the_same_layout(earlier, search):
    result, _ = search("narrow", model=digits_resnet(width=8).eval(), warm_start=earlier[1], n_clusters=3)
    assert result.space.sizes.sum() < earlier[0].space.sizes.sum() and len(result.front) > 0


def test_errors(earlier, search, tmp_path):
    with pytest.raises(RunError, match=r"holds no front\.json"):
        search("none", warm_start=tmp_path)
    with pytest.raises(RunError, match=r"individuals of '.*' have \d+ genes, this search's have \d+; use the same"):
        search("other", warm_start=earlier[1], n_clusters=1)
    assert not (tmp_path / "warm-other").exists()


def test_a_resumed_run_does_not_need_the_earlier_one(digits, earlier, search, tmp_path):
    kept = shutil.copytree(earlier[1], tmp_path / "kept")
    whole, _ = search("whole", warm_start=kept, generations=2)
    _, folder = search("part", warm_start=kept, generations=1)
    shutil.rmtree(kept)
    data = {"calibration": digits.calibration, "validation": digits.validation, "progress": False}
    longer = dp.resume(folder, digits.model, digits.example, generations=2, **data)
    assert [s.individual for s in longer.front] == [s.individual for s in whole.front]
