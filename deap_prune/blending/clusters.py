"""Stage one: criteria that rank a layer's filters similarly form a cluster (He et al. 2021, arXiv 2107.05033).

For rank vectors a, b of n filters, ||a - b||^2 = n (n^2 - 1) / 6 * (1 - rho) with Spearman's rho (no ties), so k-means
on rank vectors clusters by Spearman correlation. Agglomerative clustering (average linkage) works on 1 - rho itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deap_prune.arguments import Count, checked
from deap_prune.display import html_table, short
from deap_prune.errors import ConfigError, RegistryError, did_you_mean

Scores = NDArray[np.float64]


class Scored(Protocol):
    """A table of scores: group -> criterion -> scores, shape (filters,)."""

    @property
    def scores(self) -> Mapping[str, Mapping[str, Scores]]: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class GroupClusters:
    """The clusters of one group.

    Attributes:
        criteria: The criteria that apply to the group.
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
        members = []
        for k in range(int(self.labels.max()) + 1):
            inside = np.flatnonzero(self.labels == k)
            closeness = self.correlation[np.ix_(inside, inside)].sum(axis=1)
            order = inside[np.argsort(-closeness, kind="stable")]
            members.append(tuple(self.criteria[i] for i in order))
        return tuple(members)

    @property
    def medoids(self) -> tuple[str, ...]:
        """The criterion of each cluster with the largest sum of correlations to the cluster's criteria."""
        return tuple(names[0] for names in self.members)

    def overlap(self, pruned: int) -> NDArray[np.float64]:
        """Share of the lowest-ranked filters that two criteria have in common, shape (criteria, criteria), in [0, 1].

        Args:
            pruned: Number of lowest-ranked filters.
        """
        lowest = np.argsort(np.argsort(self.ranks, axis=1, kind="stable"), axis=1) < pruned
        return (lowest[:, None] & lowest[None]).sum(axis=2) / max(pruned, 1)


@dataclass(frozen=True, eq=False)
class CriteriaClusters:
    """Group name -> its clusters. ``print(clusters)`` lists them."""

    groups: Mapping[str, GroupClusters]

    def __getitem__(self, group: str) -> GroupClusters:
        return self.groups[group]

    def correlation(self) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """Names of the criteria, and Spearman's rho between them, shape (criteria, criteria).

        The mean over the groups where both criteria apply; NaN if there is no such group.
        """
        return self._mean({name: group.correlation for name, group in self.groups.items()})

    def overlap(self, share: float = 0.5) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """Names of the criteria, and the share of the lowest filters that two have in common, averaged likewise.

        It complements the correlation of whole rankings: only the ranking near the cut changes a mask.

        Args:
            share: Share of each group's filters that is pruned (at least one filter).
        """
        pruned = {name: max(1, round(share * group.ranks.shape[1])) for name, group in self.groups.items()}
        return self._mean({name: group.overlap(pruned[name]) for name, group in self.groups.items()})

    def _mean(self, tables: Mapping[str, NDArray[np.float64]]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        names = tuple(dict.fromkeys(name for group in self.groups.values() for name in group.criteria))
        column = {name: i for i, name in enumerate(names)}
        total, count = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
        for name, group in self.groups.items():
            index = np.ix_([column[n] for n in group.criteria], [column[n] for n in group.criteria])
            total[index] += tables[name]
            count[index] += 1
        return names, np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

    def __str__(self) -> str:
        return "\n".join(f"{name}: {' | '.join(parts)}" for name, parts in self._members())

    def __repr__(self) -> str:
        lines = (f"  {name}: {' | '.join(parts)}" for name, parts in self._members())
        return short([f"CriteriaClusters: {len(self.groups)} groups", *lines], "print(clusters)")

    def _repr_html_(self) -> str:
        table = self._members()
        columns = range(1, 1 + max((len(parts) for _, parts in table), default=0))
        rows = [[name, *parts, *[""] * (len(columns) - len(parts))] for name, parts in table]
        return html_table("Clusters of criteria, the medoid first", ("group", *map(str, columns)), rows)

    def _members(self) -> list[tuple[str, list[str]]]:
        """Each group's name, and the criteria of its clusters as texts."""
        return [(name, [", ".join(names) for names in group.members]) for name, group in self.groups.items()]


@checked
def cluster(scores: Scored, *, n_clusters: Count | str = 3, method: str = "kmeans", seed: int = 0) -> CriteriaClusters:
    """Cluster the criteria of every group by their rankings of its filters.

    Args:
        scores: A score table.
        n_clusters: Number of clusters per group (fewer if fewer rankings are distinct), or ``"auto"``: the number, at
            least 2, with the best silhouette on 1 - rho.
        method: ``"kmeans"`` on rank vectors, or ``"agglomerative"`` on 1 - rho (average linkage).
        seed: Seed of k-means.

    Examples:
        >>> clusters = dp.cluster(scores, n_clusters=2)
        >>> len(clusters["3"].members), sorted(c for members in clusters["3"].members for c in members)
        (2, ['l1', 'l2', 'taylor_weight'])

    Raises:
        ConfigError: If ``n_clusters`` is neither a positive whole number nor "auto", or a group has no criterion.
        RegistryError: If the method is unknown.
    """
    check_clusters(n_clusters, method)
    from scipy.stats import rankdata  # imported on first use, because it is slow to import

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
    """Check the arguments of :func:`cluster`.

    Raises:
        ConfigError: If ``n_clusters`` is neither a positive whole number nor "auto".
        RegistryError: If the method is unknown.
    """
    if method not in METHODS:
        raise RegistryError(f"unknown clustering method '{method}'; {did_you_mean(method, METHODS)}")
    if n_clusters != "auto" and not (isinstance(n_clusters, int) and n_clusters >= 1):
        raise ConfigError(f"n_clusters is {n_clusters!r}; give a whole number from 1 up, or 'auto'")


def spearman(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rho between rank vectors, shape (criteria, criteria): 1 on the diagonal, 0 for constant vectors.

    Args:
        ranks: Shape (criteria, filters).
    """
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    rho = (centred @ centred.T) / np.where(norms > 0, norms, 1)[:, None] / np.where(norms > 0, norms, 1)
    np.fill_diagonal(rho, 1.0)
    return np.asarray(np.clip(rho, -1, 1))


def _kmeans(ranks: NDArray[np.float64], k: int, seed: int) -> NDArray[np.intp]:
    """Labels of k-means, shape (criteria,); identical rank vectors always share a cluster."""
    from sklearn.cluster import KMeans

    distinct, inverse = np.unique(ranks, axis=0, return_inverse=True)
    labels = inverse.reshape(-1)
    if k < len(distinct):
        # Of centred vectors of unit length the squared distance is 2 (1 - rho), also with ties. Without this step, a
        # vector with many ties is short and close to all others.
        centred = ranks - ranks.mean(axis=1, keepdims=True)
        lengths = np.linalg.norm(centred, axis=1, keepdims=True)
        points = centred / np.where(lengths > 0, lengths, 1)
        labels = KMeans(n_clusters=k, n_init=10, random_state=seed % 2**32).fit(points).labels_
    return _renumbered(labels)


def _agglomerative(ranks: NDArray[np.float64], k: int, seed: int) -> NDArray[np.intp]:
    """Labels of average linkage on 1 - rho, shape (criteria,); identical rank vectors always share a cluster."""
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
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(int(label), len(numbers)) for label in labels], dtype=np.intp)


def _distance(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - rho between rank vectors, shape (criteria, criteria)."""
    distance = 1 - spearman(ranks)
    np.fill_diagonal(distance, 0.0)
    return distance


def _best_labels(
    split: Callable[[NDArray[np.float64], int, int], NDArray[np.intp]], ranks: NDArray[np.float64], seed: int
) -> NDArray[np.intp]:
    """The labels with the best silhouette on 1 - rho, shape (criteria,).

    Args:
        split: Function of (ranks, number of clusters, seed) to labels.
        ranks: Shape (criteria, filters).
        seed: Seed of k-means.
    """
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
