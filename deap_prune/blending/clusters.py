"""Stage one: criteria that rank a layer's filters alike form a cluster (He et al. 2021, arXiv 2107.05033).

For rank vectors a, b of n filters, ||a - b||^2 = n (n^2 - 1) / 6 * (1 - rho) with Spearman's rho (no ties), so k-means
on rank vectors clusters by Spearman correlation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deap_prune.errors import ConfigError

Scores = NDArray[np.float64]


class Scored(Protocol):
    """A table of scores: group -> criterion -> (filters,)."""

    @property
    def scores(self) -> Mapping[str, Mapping[str, Scores]]: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class GroupClusters:
    """The clusters of one group.

    Attributes:
        criteria: Those that apply to the group.
        labels: Cluster of each criterion, shape (criteria,), numbered in order of first appearance.
        correlation: Spearman's rho, shape (criteria, criteria); 0 where a criterion is constant.
        ranks: Rank vectors (ties averaged), shape (criteria, filters).
    """

    criteria: tuple[str, ...]
    labels: NDArray[np.intp]
    correlation: NDArray[np.float64]
    ranks: NDArray[np.float64]

    @property
    def members(self) -> tuple[tuple[str, ...], ...]:
        """The criteria of each cluster, its medoid first."""
        found = []
        for k in range(int(self.labels.max()) + 1):
            inside = np.flatnonzero(self.labels == k)
            closeness = self.correlation[np.ix_(inside, inside)].sum(axis=1)
            order = inside[np.argsort(-closeness, kind="stable")]
            found.append(tuple(self.criteria[i] for i in order))
        return tuple(found)

    @property
    def medoids(self) -> tuple[str, ...]:
        """The criterion of each cluster that is most like the others in it."""
        return tuple(names[0] for names in self.members)

    def overlap(self, pruned: int) -> NDArray[np.float64]:
        """Share of the ``pruned`` lowest filters that two criteria have in common, shape (criteria, criteria)."""
        lowest = np.argsort(np.argsort(self.ranks, axis=1, kind="stable"), axis=1) < pruned
        return (lowest[:, None] & lowest[None]).sum(axis=2) / max(pruned, 1)


@dataclass(frozen=True, eq=False)
class CriteriaClusters:
    """Group name -> its clusters. ``print(clusters)`` lists them."""

    groups: Mapping[str, GroupClusters]

    def __getitem__(self, group: str) -> GroupClusters:
        return self.groups[group]

    def correlation(self) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """Criteria, and Spearman's rho between them, averaged over the groups where both apply."""
        names = tuple(dict.fromkeys(name for group in self.groups.values() for name in group.criteria))
        at = {name: i for i, name in enumerate(names)}
        total, count = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
        for group in self.groups.values():
            index = np.ix_([at[n] for n in group.criteria], [at[n] for n in group.criteria])
            total[index] += group.correlation
            count[index] += 1
        return names, total / np.maximum(count, 1)

    def __str__(self) -> str:
        return "\n".join(
            f"{name}: " + " | ".join(", ".join(members) for members in group.members)
            for name, group in self.groups.items()
        )


def cluster(scores: Scored, *, n_clusters: int | str = 3, seed: int = 0) -> CriteriaClusters:
    """Cluster the criteria of every group by how they rank its filters: k-means on rank vectors.

    Args:
        scores: A score table.
        n_clusters: Clusters a group (fewer where fewer criteria differ), or ``"auto"``: the number from 2 up with
            the best silhouette on 1 - rho.
        seed: Of k-means.

    Raises:
        ConfigError: If ``n_clusters`` is neither a positive number nor "auto", or a group has no criterion.
    """
    check_clusters(n_clusters)
    from scipy.stats import rankdata  # slow to import: when first used

    groups = {}
    for name, by_criterion in scores.scores.items():
        if not by_criterion:
            raise ConfigError(f"no chosen criterion applies to '{name}'; add one on weights, such as 'l2'")
        criteria = tuple(by_criterion)
        ranks = np.stack([rankdata(by_criterion[c]) for c in criteria])
        rho = spearman(ranks)
        labels = _best_labels(ranks, rho, seed) if n_clusters == "auto" else _kmeans(ranks, int(n_clusters), seed)
        groups[name] = GroupClusters(criteria, labels, rho, ranks)
    return CriteriaClusters(groups)


def check_clusters(n_clusters: int | str) -> None:
    """A positive number, or "auto".

    Raises:
        ConfigError: If it is neither.
    """
    if n_clusters != "auto" and not (isinstance(n_clusters, int) and n_clusters >= 1):
        raise ConfigError(f"n_clusters is {n_clusters!r}; give a whole number from 1 up, or 'auto'")


def spearman(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rho between rank vectors of shape (criteria, filters); 0 beside a constant one, 1 on the diagonal."""
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    rho = (centred @ centred.T) / np.where(norms > 0, norms, 1)[:, None] / np.where(norms > 0, norms, 1)
    np.fill_diagonal(rho, 1.0)
    return np.asarray(np.clip(rho, -1, 1))


def _kmeans(ranks: NDArray[np.float64], k: int, seed: int) -> NDArray[np.intp]:
    """k-means labels, renumbered in order of first appearance; identical rank vectors always share a cluster."""
    from sklearn.cluster import KMeans

    distinct, inverse = np.unique(ranks, axis=0, return_inverse=True)
    labels = inverse.reshape(-1)
    if k < len(distinct):
        labels = KMeans(n_clusters=k, n_init=10, random_state=seed).fit(ranks).labels_
    seen: dict[int, int] = {}
    return np.array([seen.setdefault(int(label), len(seen)) for label in labels], dtype=np.intp)


def _best_labels(ranks: NDArray[np.float64], rho: NDArray[np.float64], seed: int) -> NDArray[np.intp]:
    from sklearn.metrics import silhouette_score

    distinct = len(np.unique(ranks, axis=0))
    if distinct <= 2:
        return _kmeans(ranks, distinct, seed)
    distance = 1 - rho
    np.fill_diagonal(distance, 0.0)
    best, best_score = _kmeans(ranks, 1, seed), -np.inf
    for k in range(2, distinct):
        labels = _kmeans(ranks, k, seed)
        value = silhouette_score(distance, labels, metric="precomputed")
        if value > best_score:
            best, best_score = labels, value
    return best
