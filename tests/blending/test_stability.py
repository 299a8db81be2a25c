"""How much rankings and clusterings depend on the calibration images."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Digits
from test_clusters import Table, families, members, one_group

import deap_prune as dp
import deap_prune.blending
from deap_prune.errors import ConfigError, RegistryError


def test_stability_of_known_scores() -> None:
    rng = np.random.default_rng(0)
    fixed, constant = rng.random(50), np.ones(50)
    tables = [
        one_group(fixed=fixed * (i + 1), nearly=fixed + 0.05 * rng.random(50), noise=rng.random(50), constant=constant)
        for i in range(4)
    ]
    result = deap_prune.blending.stability(tables, n_clusters=2)
    assert result.criteria["fixed"] == result.criteria["constant"] == 1
    assert result.criteria["nearly"] > 0.95 and abs(result.criteria["noise"]) < 0.3
    assert set(result.clusters) == {"g"}


def test_stable_clusters_have_a_rand_index_of_one() -> None:
    table, _ = families()
    same = one_group(**{name: 2 * s for name, s in table.scores["g"].items()})
    assert deap_prune.blending.stability([table, same, table]).clusters == {"g": 1.0}
    renamed = dict(zip(sorted(table.scores["g"]), list(table.scores["g"].values())[::2] * 2, strict=False))
    assert deap_prune.blending.stability([one_group(**renamed), one_group(**renamed)]).clusters == {"g": 1.0}


def test_stability_covers_the_criteria_of_all_tables() -> None:
    a, b = one_group(x=[1, 2, 3], y=[3, 1, 2]), one_group(x=[1, 2, 3])
    assert set(deap_prune.blending.stability([a, b]).criteria) == {"x"}


def test_stability_of_a_network(digits: Digits) -> None:
    """Criteria on weights do not depend on the images; gradients of a trained network do most."""
    x, y = digits.calibration
    names = ("l1", "bn_scale", "mean_activation", "taylor_gate")
    halves = [dp.score(digits.model, digits.space, (x[i::2], y[i::2]), criteria=names) for i in range(2)]
    result = deap_prune.blending.stability(halves)
    assert result.criteria["l1"] == result.criteria["bn_scale"] == 1
    assert 1 > result.criteria["mean_activation"] > result.criteria["taylor_gate"]


def test_messages() -> None:
    table = one_group(a=[1, 2])
    with pytest.raises(ConfigError, match="two or more score tables of the same groups; 1 were given"):
        deap_prune.blending.stability([table])
    with pytest.raises(ConfigError, match="two or more score tables of the same groups; 2 were given"):
        deap_prune.blending.stability([table, Table({"h": {"a": np.arange(2.0)}})])
    with pytest.raises(RegistryError, match="unknown clustering method 'kmean'; did you mean 'kmeans'"):
        dp.cluster(table, method="kmean")
    assert members(table, 2) == {frozenset("a")}
