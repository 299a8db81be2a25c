"""Stage one: criteria that rank filters similarly share a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from conftest import Digits
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

import deap_prune as dp
from deap_prune.blending.clusters import spearman
from deap_prune.errors import ConfigError


@dataclass
class Table:
    """Scores without a network."""

    scores: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def one_group(**scores: list[float] | np.ndarray) -> Table:
    return Table({"g": {name: np.asarray(s, dtype=float) for name, s in scores.items()}})


def members(table: Table, n: int | str) -> set[frozenset[str]]:
    return {frozenset(m) for m in dp.cluster(table, n_clusters=n)["g"].members}


def families(noise: float = 0.02) -> tuple[Table, set[frozenset[str]]]:
    """Three rankings, each in three units with a little noise; and the expected clusters."""
    rng = np.random.default_rng(0)
    scores, clusters = {}, set()
    for f in range(3):
        base = rng.random(40)
        names = [f"{f}{i}" for i in range(3)]
        for i, name in enumerate(names):
            scores[name] = np.exp((base + noise * rng.random(40)) * (i + 1)) * 10.0**i - 5
        clusters.add(frozenset(names))
    return one_group(**scores), clusters


@pytest.mark.parametrize("n", [3, "auto"])
@pytest.mark.parametrize("seed", range(3))
def test_families_become_clusters(n: int | str, seed: int) -> None:
    table, expected = families()
    group = dp.cluster(table, n_clusters=n, seed=seed)["g"]
    assert {frozenset(m) for m in group.members} == expected
    assert group.labels[0] == 0 and list(dict.fromkeys(group.labels)) == [0, 1, 2]


@pytest.mark.parametrize("method", ["kmeans", "agglomerative"])
def test_any_whole_number_is_a_seed(method: str) -> None:
    table, expected = families()
    for seed in (-1, 2**33):
        group = dp.cluster(table, n_clusters=3, seed=seed, method=method)["g"]
        assert {frozenset(m) for m in group.members} == expected


def test_medoid_is_the_most_central() -> None:
    base = np.arange(12.0)
    left, right = base.copy(), base.copy()
    left[[0, 1]], right[[10, 11]] = left[[1, 0]], right[[11, 10]]
    unrelated = np.random.default_rng(3).permutation(12)
    group = dp.cluster(one_group(left=left, centre=base, right=right, unrelated=unrelated), n_clusters=2)["g"]
    assert group.medoids == ("centre", "unrelated")
    assert group.members[0][0] == "centre" and set(group.members[0]) == {"left", "centre", "right"}


@given(st.integers(0, 10_000), st.integers(2, 30))
@settings(max_examples=30)
def test_rank_distance_is_spearman(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(n, dtype=float), (2, 1)), axis=1) ** 3
    group = dp.cluster(one_group(a=scores[0], b=scores[1]))["g"]
    squared = ((group.ranks[0] - group.ranks[1]) ** 2).sum()
    assert np.isclose(squared, n * (n**2 - 1) / 6 * (1 - group.correlation[0, 1]))
    if n > 2:
        assert np.isclose(group.correlation[0, 1], spearmanr(scores[0], scores[1]).statistic)


def test_correlation_with_ties_is_spearman_s() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, 25), rng.integers(0, 4, 25)
    assert np.isclose(dp.cluster(one_group(a=a, b=b))["g"].correlation[0, 1], spearmanr(a, b).statistic)


@pytest.mark.parametrize("n", [1, 2, 3, 9, "auto"])
def test_equal_rankings_share_a_cluster(n: int | str) -> None:
    """Criteria with equal rankings share a cluster whatever their units; every criterion is in a cluster."""
    rng = np.random.default_rng(1)
    a, b, c = rng.random((3, 8))
    table = one_group(a=a, b=b, a2=a**2, c=c, a_log=np.log(a), b3=3 * b)
    clusters = members(table, n)
    cluster_of = {name: next(m for m in clusters if name in m) for name in table.scores["g"]}
    assert cluster_of["a"] == cluster_of["a2"] == cluster_of["a_log"] and cluster_of["b"] == cluster_of["b3"]
    assert sum(len(m) for m in clusters) == 6
    if n != "auto":
        assert len(clusters) == min(n, 3)


@pytest.mark.parametrize("n", [3, "auto"])
def test_fewer_criteria_than_clusters(n: int | str) -> None:
    assert members(one_group(a=[1, 2, 3]), n) == {frozenset("a")}
    assert members(one_group(a=[1, 2, 3], b=[2, 4, 6]), n) == {frozenset("ab")}


@pytest.mark.parametrize("n", [2, 3, "auto"])
def test_two_opposite_criteria_are_two_clusters(n: int | str) -> None:
    assert members(one_group(a=[1, 2, 3, 4], b=[4, 3, 2, 1]), n) == {frozenset("a"), frozenset("b")}


@pytest.mark.parametrize("n", [1, 2, 3, "auto"])
def test_constant_scores_and_two_filters(n: int | str) -> None:
    """Two filters have two rankings and a tie; a constant criterion has correlation 0 with all others."""
    table = one_group(up=[1, 2], down=[5, 1], flat=[3, 3], up2=[0, 9])
    group = dp.cluster(table, n_clusters=n)["g"]
    assert np.isfinite(group.correlation).all() and (np.diag(group.correlation) == 1).all()
    index = {name: i for i, name in enumerate(group.criteria)}
    assert group.labels[index["up"]] == group.labels[index["up2"]]
    assert group.correlation[index["flat"], index["up"]] == 0
    assert np.isclose(group.correlation[index["up"], index["down"]], -1)
    if n != 1:
        assert group.labels[index["up"]] != group.labels[index["down"]]


def test_overlap_at_the_cut() -> None:
    group = dp.cluster(one_group(a=[1, 2, 3, 4], b=[2, 1, 4, 3], c=[4, 3, 2, 1]))["g"]
    np.testing.assert_array_equal(group.overlap(2), [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert group.overlap(1)[0, 1] == 0 and group.overlap(4).min() == 1


def test_mean_correlation_is_over_the_groups_where_both_apply() -> None:
    table = Table({"g": {"a": np.arange(5.0), "b": np.arange(5.0)}, "h": {"a": np.arange(4.0), "c": -np.arange(4.0)}})
    names, rho = dp.cluster(table).correlation()
    assert names == ("a", "b", "c")
    np.testing.assert_allclose(rho, [[1, 1, -1], [1, 1, np.nan], [-1, np.nan, 1]])  # no group has both b and c


def test_mean_overlap_is_over_the_groups_where_both_apply() -> None:
    up = np.arange(4.0)
    table = Table({"g": {"a": up, "b": -up}, "h": {"a": up, "b": up, "c": up}, "one": {"a": up[:1], "c": up[:1]}})
    names, overlap = dp.cluster(table).overlap(0.5)
    assert names == ("a", "b", "c")
    np.testing.assert_allclose(overlap, [[1, 0.5, 1], [0.5, 1, 1], [1, 1, 1]])


def test_real_criteria(digits: Digits) -> None:
    """On a trained network L1 and L2 norms rank similarly, and clustering is deterministic."""
    names, rho = digits.clusters.correlation()
    index = {name: i for i, name in enumerate(names)}
    assert rho[index["l1"], index["l2"]] > 0.8 > rho[index["l1"], index["mean_activation"]]
    assert str(dp.cluster(digits.scores, n_clusters=3)) == str(digits.clusters)
    for group in digits.space.groups:
        assert len(digits.clusters[group.name].members) == 3
        assert sorted(n for m in digits.clusters[group.name].members for n in m) == sorted(digits.scores[group.name])


@pytest.mark.parametrize("n", [3, "auto"])
def test_families_become_agglomerative_clusters(n: int | str) -> None:
    table, expected = families()
    group = dp.cluster(table, n_clusters=n, method="agglomerative")["g"]
    assert {frozenset(m) for m in group.members} == expected
    assert group.labels[0] == 0 and list(dict.fromkeys(group.labels)) == [0, 1, 2]


def test_average_linkage_by_hand() -> None:
    """1 - rho is 0.2 for a and b, 0.4 for c and d, more between the pairs: with three clusters c and d separate."""
    base = np.arange(4.0)
    table = one_group(a=base, b=base[[1, 0, 2, 3]], c=-base, d=-base[[0, 2, 3, 1]])
    for n, expected in ((2, ["ab", "cd"]), (3, ["ab", "c", "d"]), (4, ["a", "b", "c", "d"])):
        group = dp.cluster(table, n_clusters=n, method="agglomerative")["g"]
        assert {frozenset(m) for m in group.members} == set(map(frozenset, expected))


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(2, 12), st.sampled_from(["kmeans", "agglomerative"]))
@settings(max_examples=40)
def test_any_table_is_clustered(seed: int, criteria: int, filters: int, method: str) -> None:
    """With ties, constants and few filters: each criterion is in one cluster, equal rankings share a cluster."""
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


def test_spearman_of_constants() -> None:
    np.testing.assert_array_equal(spearman(np.ones((2, 4))), np.eye(2))


def test_messages() -> None:
    for n in (0, -1, 2.0, "many", None):
        with pytest.raises(ConfigError, match=rf"n_clusters is {n!r}; give a whole number from 1 up, or ('auto'|text)"):
            dp.cluster(one_group(a=[1, 2]), n_clusters=n)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no chosen criterion applies to 'g'; add one on weights, such as 'l2'"):
        dp.cluster(Table({"g": {}}))


def test_ties_do_not_make_criteria_similar() -> None:
    """A criterion with many ties joins the one with which it correlates, not another one with many ties."""
    rng = np.random.default_rng(0)
    together = apart = 0
    for _ in range(10):
        a, b, c = rng.random((3, 64))
        tied = {"tied_a": np.where(a < 0.8, 0.0, a), "tied_b": np.where(b < 0.8, 0.0, b)}
        labels = dp.cluster(Table({"g": {"a": a, "b": b, "c": c, **tied}}), n_clusters=3)["g"].members
        cluster_of = {name: k for k, members in enumerate(labels) for name in members}
        together += cluster_of["tied_a"] == cluster_of["a"] and cluster_of["tied_b"] == cluster_of["b"]
        apart += cluster_of["tied_a"] != cluster_of["tied_b"]
    assert together >= 8 and apart >= 8
