"""Stage one: criteria that rank a layer's filters alike form a cluster (He et al. 2021, arXiv 2107.05033).

For rank vectors a, b of n filters, ||a - b||^2 = n (n^2 - 1) / 6 * (1 - rho) with Spearman's rho (no ties), so k-means
on rank vectors clusters by Spearman correlation. Agglomerative clustering (average linkage) works on 1 - rho itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deap_prune.errors import ConfigError, RegistryError, did_you_mean

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
        """Criteria, and Spearman's rho between them, averaged over the groups where both apply (NaN where none is)."""
        return self._mean({name: group.correlation for name, group in self.groups.items()})

    def overlap(self, share: float = 0.5) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """Criteria, and the share of the lowest filters that two have in common, averaged likewise.

        Full-rank agreement is not enough: only the ranking near the cut changes a mask.

        Args:
            share: Of each group's filters, how many would go (at least one).
        """
        pruned = {name: max(1, round(share * group.ranks.shape[1])) for name, group in self.groups.items()}
        return self._mean({name: group.overlap(pruned[name]) for name, group in self.groups.items()})

    def _mean(self, tables: Mapping[str, NDArray[np.float64]]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        names = tuple(dict.fromkeys(name for group in self.groups.values() for name in group.criteria))
        at = {name: i for i, name in enumerate(names)}
        total, count = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
        for name, group in self.groups.items():
            index = np.ix_([at[n] for n in group.criteria], [at[n] for n in group.criteria])
            total[index] += tables[name]
            count[index] += 1
        return names, np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

    def __str__(self) -> str:
        return "\n".join(
            f"{name}: " + " | ".join(", ".join(members) for members in group.members)
            for name, group in self.groups.items()
        )


def cluster(scores: Scored, *, n_clusters: int | str = 3, method: str = "kmeans", seed: int = 0) -> CriteriaClusters:
    """Cluster the criteria of every group by how they rank its filters.

    Args:
        scores: A score table.
        n_clusters: Clusters a group (fewer where fewer criteria differ), or ``"auto"``: the number from 2 up with
            the best silhouette on 1 - rho.
        method: ``"kmeans"`` on rank vectors, or ``"agglomerative"`` on 1 - rho (average linkage).
        seed: Of k-means.

    Examples:
        >>> clusters = dp.cluster(scores, n_clusters=2)
        >>> len(clusters["3"].members), sorted(c for members in clusters["3"].members for c in members)
        (2, ['l1', 'l2', 'taylor_weight'])

    Raises:
        ConfigError: If ``n_clusters`` is neither a positive number nor "auto", or a group has no criterion.
        RegistryError: If the method is unknown.
    """
    check_clusters(n_clusters, method)
    from scipy.stats import rankdata  # slow to import: when first used

    groups = {}
    for name, by_criterion in scores.scores.items():
        if not by_criterion:
            raise ConfigError(f"no chosen criterion applies to '{name}'; add one on weights, such as 'l2'")
        criteria = tuple(by_criterion)
        ranks = np.stack([rankdata(by_criterion[c]) for c in criteria])
        rho = spearman(ranks)
        split = METHODS[method]
        labels = _best_labels(split, ranks, seed) if n_clusters == "auto" else split(ranks, int(n_clusters), seed)
        groups[name] = GroupClusters(criteria, labels, rho, ranks)
    return CriteriaClusters(groups)


def check_clusters(n_clusters: int | str, method: str = "kmeans") -> None:
    """A positive number, or "auto"; and a known method.

    Raises:
        ConfigError: If the number is neither.
        RegistryError: If the method is unknown.
    """
    if method not in METHODS:
        raise RegistryError(f"unknown clustering method '{method}'; {did_you_mean(method, METHODS)}")
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
    """k-means labels; identical rank vectors always share a cluster."""
    from sklearn.cluster import KMeans

    distinct, inverse = np.unique(ranks, axis=0, return_inverse=True)
    labels = inverse.reshape(-1)
    if k < len(distinct):
        # Centred and of one length, squared distances are 2 (1 - rho) with ties too: else a vector with many ties is
        # short, and near everything.
        centred = ranks - ranks.mean(axis=1, keepdims=True)
        lengths = np.linalg.norm(centred, axis=1, keepdims=True)
        points = centred / np.where(lengths > 0, lengths, 1)
        labels = KMeans(n_clusters=k, n_init=10, random_state=seed % 2**32).fit(points).labels_
    return _renumbered(labels)


def _agglomerative(ranks: NDArray[np.float64], k: int, seed: int) -> NDArray[np.intp]:
    """Labels of average linkage on 1 - rho; identical rank vectors always share a cluster."""
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import squareform

    distinct, inverse = np.unique(ranks, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    if k >= len(distinct):
        return _renumbered(inverse)
    tree = linkage(squareform(_distance(distinct), checks=False), "average")
    return _renumbered(cut_tree(tree, n_clusters=k)[:, 0][inverse])


METHODS: Mapping[str, Callable[[NDArray[np.float64], int, int], NDArray[np.intp]]] = {
    "kmeans": _kmeans,
    "agglomerative": _agglomerative,
}


def _renumbered(labels: NDArray[np.intp]) -> NDArray[np.intp]:
    """The same clusters, numbered in order of first appearance."""
    seen: dict[int, int] = {}
    return np.array([seen.setdefault(int(label), len(seen)) for label in labels], dtype=np.intp)


def _distance(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    distance = 1 - spearman(ranks)
    np.fill_diagonal(distance, 0.0)
    return distance


def _best_labels(
    split: Callable[[NDArray[np.float64], int, int], NDArray[np.intp]], ranks: NDArray[np.float64], seed: int
) -> NDArray[np.intp]:
    from sklearn.metrics import silhouette_score

    distinct = len(np.unique(ranks, axis=0))
    if distinct <= 2:
        return split(ranks, distinct, seed)
    distance = _distance(ranks)
    best, best_score = split(ranks, 1, seed), -np.inf
    for k in range(2, distinct):
        labels = split(ranks, k, seed)
        value = silhouette_score(distance, labels, metric="precomputed")
        if value > best_score:
            best, best_score = labels, value
    return best
