"""Stage one: criteria that rank filters alike share a cluster."""

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
    """Three rankings, each of them told three times in other units with a little noise."""
    rng = np.random.default_rng(0)
    found, known = {}, set()
    for f in range(3):
        base = rng.random(40)
        names = [f"{f}{i}" for i in range(3)]
        for i, name in enumerate(names):
            found[name] = np.exp((base + noise * rng.random(40)) * (i + 1)) * 10.0**i - 5
        known.add(frozenset(names))
    return one_group(**found), known


@pytest.mark.parametrize("n", [3, "auto"])
@pytest.mark.parametrize("seed", range(3))
def test_known_families_are_found(n: int | str, seed: int) -> None:
    table, known = families()
    found = dp.cluster(table, n_clusters=n, seed=seed)["g"]
    assert {frozenset(m) for m in found.members} == known
    assert found.labels[0] == 0 and list(dict.fromkeys(found.labels)) == [0, 1, 2]


@pytest.mark.parametrize("method", ["kmeans", "agglomerative"])
def test_any_whole_number_is_a_seed(method: str) -> None:
    table, known = families()
    for seed in (-1, 2**33):
        found = dp.cluster(table, n_clusters=3, seed=seed, method=method)["g"]
        assert {frozenset(m) for m in found.members} == known


def test_medoid_is_the_most_central() -> None:
    base = np.arange(12.0)
    left, right = base.copy(), base.copy()
    left[[0, 1]], right[[10, 11]] = left[[1, 0]], right[[11, 10]]
    other = np.random.default_rng(3).permutation(12)
    found = dp.cluster(one_group(left=left, centre=base, right=right, other=other), n_clusters=2)["g"]
    assert found.medoids == ("centre", "other")
    assert found.members[0][0] == "centre" and set(found.members[0]) == {"left", "centre", "right"}


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
    """Whatever the units: a cluster holds all that rank alike, and no criterion is lost."""
    rng = np.random.default_rng(1)
    a, b, c = rng.random((3, 8))
    table = one_group(a=a, b=b, a2=a**2, c=c, a_log=np.log(a), b3=3 * b)
    found = members(table, n)
    homes = {name: next(m for m in found if name in m) for name in table.scores["g"]}
    assert homes["a"] == homes["a2"] == homes["a_log"] and homes["b"] == homes["b3"]
    assert sum(len(m) for m in found) == 6
    if n != "auto":
        assert len(found) == min(n, 3)


@pytest.mark.parametrize("n", [3, "auto"])
def test_fewer_criteria_than_clusters(n: int | str) -> None:
    assert members(one_group(a=[1, 2, 3]), n) == {frozenset("a")}
    assert members(one_group(a=[1, 2, 3], b=[2, 4, 6]), n) == {frozenset("ab")}


@pytest.mark.parametrize("n", [2, 3, "auto"])
def test_two_opposite_criteria_are_two_clusters(n: int | str) -> None:
    assert members(one_group(a=[1, 2, 3, 4], b=[4, 3, 2, 1]), n) == {frozenset("a"), frozenset("b")}


@pytest.mark.parametrize("n", [1, 2, 3, "auto"])
def test_constant_scores_and_two_filters(n: int | str) -> None:
    """A layer of two filters knows two rankings and a tie; a constant criterion correlates with nothing."""
    table = one_group(up=[1, 2], down=[5, 1], flat=[3, 3], up2=[0, 9])
    group = dp.cluster(table, n_clusters=n)["g"]
    assert np.isfinite(group.correlation).all() and (np.diag(group.correlation) == 1).all()
    at = {name: i for i, name in enumerate(group.criteria)}
    assert group.labels[at["up"]] == group.labels[at["up2"]]
    assert group.correlation[at["flat"], at["up"]] == 0 and np.isclose(group.correlation[at["up"], at["down"]], -1)
    if n != 1:
        assert group.labels[at["up"]] != group.labels[at["down"]]


def test_overlap_at_the_cut() -> None:
    group = dp.cluster(one_group(a=[1, 2, 3, 4], b=[2, 1, 4, 3], c=[4, 3, 2, 1]))["g"]
    np.testing.assert_array_equal(group.overlap(2), [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert group.overlap(1)[0, 1] == 0 and group.overlap(4).min() == 1


def test_mean_correlation_is_over_the_groups_where_both_apply() -> None:
    table = Table({"g": {"a": np.arange(5.0), "b": np.arange(5.0)}, "h": {"a": np.arange(4.0), "c": -np.arange(4.0)}})
    names, rho = dp.cluster(table).correlation()
    assert names == ("a", "b", "c")
    np.testing.assert_allclose(rho, [[1, 1, -1], [1, 1, np.nan], [-1, np.nan, 1]])  # b and c never meet


def test_real_criteria(digits: Digits) -> None:
    """On a trained network the norms say the same, and clustering is deterministic."""
    names, rho = digits.clusters.correlation()
    at = {name: i for i, name in enumerate(names)}
    assert rho[at["l1"], at["l2"]] > 0.8 > rho[at["l1"], at["mean_activation"]]
    assert str(dp.cluster(digits.scores, n_clusters=3)) == str(digits.clusters)
    for group in digits.space.groups:
        assert len(digits.clusters[group.name].members) == 3
        assert sorted(n for m in digits.clusters[group.name].members for n in m) == sorted(digits.scores[group.name])


def test_spearman_of_constants() -> None:
    np.testing.assert_array_equal(spearman(np.ones((2, 4))), np.eye(2))


def test_messages() -> None:
    for n in (0, -1, 2.0, "many", None):
        with pytest.raises(ConfigError, match=rf"n_clusters is {n!r}; give a whole number from 1 up, or 'auto'"):
            dp.cluster(one_group(a=[1, 2]), n_clusters=n)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no chosen criterion applies to 'g'; add one on weights, such as 'l2'"):
        dp.cluster(Table({"g": {}}))


def test_ties_do_not_draw_criteria_together() -> None:
    """A criterion with many ties joins the one that it agrees with, not another one with many ties."""
    rng = np.random.default_rng(0)
    together = apart = 0
    for _ in range(10):
        a, b, c = rng.random((3, 64))
        tied = {"tied_a": np.where(a < 0.8, 0.0, a), "tied_b": np.where(b < 0.8, 0.0, b)}
        labels = dp.cluster(Table({"g": {"a": a, "b": b, "c": c, **tied}}), n_clusters=3)["g"].members
        home = {name: k for k, members in enumerate(labels) for name in members}
        together += home["tied_a"] == home["a"] and home["tied_b"] == home["b"]
        apart += home["tied_a"] != home["tied_b"]
    assert together >= 8 and apart >= 8
