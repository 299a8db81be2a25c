"""How much rankings and clusterings depend on the choice of calibration images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from deap_prune.blending.clusters import Scored, cluster, spearman
from deap_prune.errors import ConfigError


@dataclass(frozen=True)
class Stability:
    """Agreement between score tables of different calibration images; 1 is perfect agreement.

    Attributes:
        criteria: Criterion to Spearman's rho between its rankings, in [-1, 1], mean over pairs of tables and groups.
        clusters: Group to the adjusted Rand index between its clusterings, mean over pairs of tables; 0 is chance.
    """

    criteria: Mapping[str, float]
    clusters: Mapping[str, float]


def stability(
    tables: Sequence[Scored], *, n_clusters: int | str = 3, method: str = "kmeans", seed: int = 0
) -> Stability:
    """Compare the scores of one network on several sets of calibration images.

    Args:
        tables: Score tables, for instance ``[dp.score(model, space, [batch], ...) for batch in batches]``.
        n_clusters: See :func:`cluster`.
        method: See :func:`cluster`.
        seed: See :func:`cluster`.

    Raises:
        ConfigError: If there are fewer than two tables, or their groups differ.
    """
    from scipy.stats import rankdata
    from sklearn.metrics import adjusted_rand_score

    if len(tables) < 2 or any(list(table.scores) != list(tables[0].scores) for table in tables):
        raise ConfigError(f"stability takes two or more score tables of the same groups; {len(tables)} were given")
    rho: dict[str, list[float]] = {}
    rand: dict[str, float] = {}
    for group in tables[0].scores:
        common = [c for c in tables[0].scores[group] if all(c in table.scores[group] for table in tables)]
        for criterion in common:
            ranks = np.stack([rankdata(table.scores[group][criterion]) for table in tables])
            same = (ranks == ranks[0]).all()  # constant criteria are perfectly stable, but have no Spearman's rho
            upper = spearman(ranks)[np.triu_indices(len(tables), 1)]
            rho.setdefault(criterion, []).append(1.0 if same else float(upper.mean()))
        shared = [_OneGroup({group: {c: table.scores[group][c] for c in common}}) for table in tables]
        labels = [cluster(t, n_clusters=n_clusters, method=method, seed=seed)[group].labels for t in shared]
        rand[group] = float(np.mean([adjusted_rand_score(a, b) for a, b in combinations(labels, 2)]))
    return Stability({criterion: float(np.mean(values)) for criterion, values in rho.items()}, rand)


@dataclass(frozen=True)
class _OneGroup:
    """A table with one group: group -> criterion -> scores, shape (filters,)."""

    scores: Mapping[str, Mapping[str, np.ndarray]]
