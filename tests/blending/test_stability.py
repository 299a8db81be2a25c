"""Agglomerative clusters, agreement at the cut, and what depends on the calibration images."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Digits
from hypothesis import given, settings
from hypothesis import strategies as st
from test_clusters import Table, families, members, one_group

import deap_prune as dp
from deap_prune.errors import ConfigError, RegistryError


@pytest.mark.parametrize("n", [3, "auto"])
def test_known_families_are_found_by_agglomeration(n: int | str) -> None:
    table, known = families()
    found = dp.cluster(table, n_clusters=n, method="agglomerative")["g"]
    assert {frozenset(m) for m in found.members} == known
    assert found.labels[0] == 0 and list(dict.fromkeys(found.labels)) == [0, 1, 2]


def test_average_linkage_by_hand() -> None:
    """1 - rho: a-b 0.2, c-d 0.4, then the two pairs; three clusters part c and d."""
    base = np.arange(4.0)
    table = one_group(a=base, b=base[[1, 0, 2, 3]], c=-base, d=-base[[0, 2, 3, 1]])
    for n, wanted in ((2, ["ab", "cd"]), (3, ["ab", "c", "d"]), (4, ["a", "b", "c", "d"])):
        found = dp.cluster(table, n_clusters=n, method="agglomerative")["g"]
        assert {frozenset(m) for m in found.members} == set(map(frozenset, wanted))


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(2, 12), st.sampled_from(["kmeans", "agglomerative"]))
@settings(max_examples=40)
def test_any_table_is_clustered(seed: int, criteria: int, filters: int, method: str) -> None:
    """Ties, constants, two filters: every criterion in one cluster, equal rankings together, never too many."""
    rng = np.random.default_rng(seed)
    scores = {f"c{i}": rng.integers(0, 3, filters).astype(float) for i in range(criteria)}
    for n in (1, 2, 3, "auto"):
        group = dp.cluster(one_group(**scores), n_clusters=n, method=method)["g"]
        assert sorted(c for m in group.members for c in m) == sorted(scores)
        assert list(dict.fromkeys(group.labels.tolist())) == list(range(len(group.members)))
        if n != "auto":
            assert len(group.members) == min(n, len(np.unique(group.ranks, axis=0)))
        for i, a in enumerate(group.ranks):
            assert all(group.labels[i] == group.labels[j] for j, b in enumerate(group.ranks) if np.array_equal(a, b))


def test_agglomeration_needs_no_seed(digits: Digits) -> None:
    a, b = (dp.cluster(digits.scores, method="agglomerative", seed=s) for s in (0, 1))
    assert str(a) == str(b)
    assert all(len(a[g.name].members) == 3 for g in digits.space.groups)


def test_mean_overlap_is_over_the_groups_where_both_apply() -> None:
    up = np.arange(4.0)
    table = Table({"g": {"a": up, "b": -up}, "h": {"a": up, "b": up, "c": up}, "one": {"a": up[:1], "c": up[:1]}})
    names, overlap = dp.cluster(table).overlap(0.5)
    assert names == ("a", "b", "c")
    np.testing.assert_allclose(overlap, [[1, 0.5, 1], [0.5, 1, 1], [1, 1, 1]])


# ------------------------------------------------------------------ stability
def test_stability_of_what_is_known() -> None:
    rng = np.random.default_rng(0)
    fixed, constant = rng.random(50), np.ones(50)
    tables = [
        one_group(fixed=fixed * (i + 1), nearly=fixed + 0.05 * rng.random(50), noise=rng.random(50), constant=constant)
        for i in range(4)
    ]
    found = deap_prune.blending.stability(tables, n_clusters=2)
    assert found.criteria["fixed"] == found.criteria["constant"] == 1
    assert found.criteria["nearly"] > 0.95 and abs(found.criteria["noise"]) < 0.3
    assert set(found.clusters) == {"g"}


def test_stable_clusters_have_a_rand_index_of_one() -> None:
    table, _ = families()
    same = one_group(**{name: 2 * s for name, s in table.scores["g"].items()})
    assert deap_prune.blending.stability([table, same, table]).clusters == {"g": 1.0}
    renamed = dict(zip(sorted(table.scores["g"]), list(table.scores["g"].values())[::2] * 2, strict=False))
    assert deap_prune.blending.stability([one_group(**renamed), one_group(**renamed)]).clusters == {"g": 1.0}


def test_stability_is_of_the_criteria_that_always_apply() -> None:
    a, b = one_group(x=[1, 2, 3], y=[3, 1, 2]), one_group(x=[1, 2, 3])
    assert set(deap_prune.blending.stability([a, b]).criteria) == {"x"}


def test_stability_of_a_network(digits: Digits) -> None:
    """Weights do not look at images; gradients of a trained network do."""
    x, y = digits.calibration
    names = ("l1", "bn_scale", "mean_activation", "taylor_gate")
    halves = [dp.score(digits.model, digits.space, (x[i::2], y[i::2]), criteria=names) for i in range(2)]
    found = deap_prune.blending.stability(halves)
    assert found.criteria["l1"] == found.criteria["bn_scale"] == 1
    assert 1 > found.criteria["mean_activation"] > found.criteria["taylor_gate"]


def test_messages() -> None:
    table = one_group(a=[1, 2])
    with pytest.raises(ConfigError, match="two or more score tables of the same groups; 1 were given"):
        deap_prune.blending.stability([table])
    with pytest.raises(ConfigError, match="two or more score tables of the same groups; 2 were given"):
        deap_prune.blending.stability([table, Table({"h": {"a": np.arange(2.0)}})])
    with pytest.raises(RegistryError, match="unknown clustering method 'kmean'; did you mean 'kmeans'"):
        dp.cluster(table, method="kmean")
    assert members(table, 2) == {frozenset("a")}
