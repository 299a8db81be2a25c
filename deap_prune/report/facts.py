"""What a report tells: read from a run folder, and computed from the network where it is at hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deap_prune.blending.baselines import Table, borda
from deap_prune.blending.clusters import CriteriaClusters, cluster
from deap_prune.blending.genome import Genome
from deap_prune.criteria.table import ScoreTable
from deap_prune.errors import BudgetError, PruneError, RunError
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.progress import track
from deap_prune.search.folder import versions
from deap_prune.search.reopen import as_final, open_run

if TYPE_CHECKING:
    from deap_prune.search import Result

Blend = Mapping[str, float]
"""Criterion to its share of a group's importance; they sum to 1."""


@dataclass(frozen=True)
class Single:
    """A single criterion, or a baseline, at a budget: uniform widths, judged as the blends were."""

    criterion: str
    values: Mapping[str, float]
    flops: int
    params: int


@dataclass(frozen=True)
class Insight:
    """What only the network can tell.

    Attributes:
        clusters: Of the criteria, group by group.
        blends: For each solution and group its blend; empty where the individuals name none.
        singles: Single criteria.
        baselines: Random filters, and Borda's mean rank of all criteria.
    """

    clusters: CriteriaClusters
    blends: Sequence[Mapping[str, Blend]]
    singles: Sequence[Single]
    baselines: Sequence[Single]


@dataclass(frozen=True)
class Facts:
    """The contents of a report.

    Attributes:
        folder: The run folder.
        front: Its front.
        layers: Group name to its number of filters, in order of execution.
        history: One record a generation, as text, ``evaluations`` (individuals judged so far) added.
        config: The resolved config as YAML; empty where there is none.
        versions: Of Python and the packages; ``written`` tells whether they are the run's or of today.
        insight: None where the network is not at hand.
        why: And why it is not.
        run_versions: Whether ``versions`` are the run's.
        beside: Fronts of other runs of the same network: folder's name to front.
    """

    folder: Path
    front: ParetoFront
    layers: Mapping[str, int]
    history: Sequence[Mapping[str, float]]
    config: str
    versions: Mapping[str, str]
    insight: Insight | None = None
    why: str = ""
    run_versions: bool = False
    beside: Mapping[str, ParetoFront] = field(default_factory=dict)

    def kept(self) -> NDArray[np.float64]:
        """Kept share of each layer's filters, shape (layers, solutions)."""
        return np.array([[mean_kept(s, name) for s in self.front] for name in self.layers]).reshape(
            len(self.layers), -1
        )

    def shares(self) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """Criteria, and their mean share of the blends over the front, shape (layers, criteria)."""
        names = self.insight.clusters.correlation()[0] if self.insight else ()
        blends = self.insight.blends if self.insight else ()
        table = [[np.mean([b[g].get(c, 0.0) for b in blends]) for c in names] for g in self.layers] if blends else []
        return names, np.array(table)


def mean_kept(solution: Solution, layer: str) -> float:
    """Kept share of a layer's filters; a layer that the masks leave out is dense."""
    return float(solution.masks[layer].mean()) if layer in solution.masks else 1.0


def gather(
    folder: Path,
    *,
    result: Result | None,
    singles: int,
    network: bool,
    progress: bool,
    beside: Sequence[str | Path] = (),
) -> Facts:
    """Read a run folder, and look at its network.

    Raises:
        RunError: If there is no front, it can't be read, or a run beside it is of another network or objectives.
    """
    front = ParetoFront.load(folder)
    others = _others(front, beside)
    layers = {name: len(keep) for solution in front for name, keep in solution.masks.items()}
    insight, why = None, "the network was not opened (network=False, --no-network)"
    if network:
        try:
            insight, layers = _look(folder, front, result, singles, progress)
        except PruneError as error:
            why = str(error)
    stored = folder / "versions.json"
    config = folder / "config.yaml"
    return Facts(
        folder,
        front,
        layers,
        _history(folder / "history.csv"),
        config.read_text(encoding="utf-8") if config.is_file() else "",
        _versions(stored),
        insight,
        why,
        stored.is_file(),
        others,
    )


def _versions(stored: Path) -> Mapping[str, str]:
    """Those that the run was made with; of today, if it does not say."""
    if not stored.is_file():
        return versions()
    try:
        found: dict[str, str] = json.loads(stored.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(
            f"'{stored}' can't be read ({error}); remove it, and the report names today's versions"
        ) from error
    return found


def _others(front: ParetoFront, folders: Sequence[str | Path]) -> dict[str, ParetoFront]:
    """Fronts to draw beside this one."""
    found: dict[str, ParetoFront] = {}
    for folder in map(Path, folders):
        other = ParetoFront.load(folder)
        if not front.weights.items() <= other.weights.items():
            raise RunError(f"'{folder}' has the objectives {', '.join(other.weights)}, not {', '.join(front.weights)}")
        if other.dense["flops"] != front.dense["flops"]:
            raise RunError(
                f"'{folder}' is of a network of {other.dense['flops']:,} multiply-adds, this run of one of "
                f"{front.dense['flops']:,}; give runs of one network"
            )
        name = folder.resolve().name
        found[name if name not in found else str(folder)] = other
    return found


def _history(path: Path) -> list[dict[str, float]]:
    """The records of history.csv, numbers alone; none where there is no such file."""
    if not path.is_file():
        return []
    records, evaluations = [], 0.0
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            record = {name: number for name, text in row.items() if (number := _number(text)) is not None}
            evaluations += record.get("nevals", 0.0)
            records.append({**record, "evaluations": evaluations})
    return records


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _look(
    folder: Path, front: ParetoFront, result: Result | None, singles: int, progress: bool
) -> tuple[Insight, dict[str, int]]:
    """Clusters, blends and single criteria, and the layers in order of execution."""
    from deap_prune.search import prepare

    if result is not None:
        genome, evaluator, scores = result.genome, result.evaluator, result.scores
    else:
        opened = open_run(folder)
        options = opened.config.search
        prepared = prepare(opened.task, options, progress=progress)
        genome, scores = prepared.genome, prepared.scores
        evaluator = as_final(prepared.evaluator, front, options)
    space, clusters = evaluator.space, genome.clusters
    for solution in front:
        space.kept(solution.masks)  # the front is this network's, or an error that says what differs
    legible = all(len(s.individual) == len(genome.layout) for s in front)
    blends = [genome.blend(s.individual) for s in front] if legible else []
    known = clusters if set(genome.criteria) <= set(scores.criteria) else cluster(scores, n_clusters=1)  # mean ranks
    single, baselines = _beside(front, evaluator, scores, known, singles, progress)
    insight = Insight(clusters, blends, single, baselines)
    return insight, {g.name: g.size for g in space.groups}


def _beside(
    front: ParetoFront,
    evaluator: Evaluator,
    scores: ScoreTable,
    clusters: CriteriaClusters,
    budgets: int,
    progress: bool,
) -> tuple[list[Single], list[Single]]:
    """Every criterion, and the baselines, at budgets that the front spans; one that can't be reached is left out."""
    shares = sorted({s.flops / front.dense["flops"] for s in front})
    chosen = sorted({shares[round(i)] for i in np.linspace(0, len(shares) - 1, budgets)}) if shares else []
    random = np.random.default_rng(0)
    noise = Table({g.name: {"random filters": random.random(g.size)} for g in evaluator.space.groups})
    singles, baselines = list[Single](), list[Single]()
    for share in track(chosen, "single criteria", shown=progress):
        options: dict[str, Any] = {"allocation": "uniform", "max_flops": share}
        try:
            genome = Genome(evaluator.space, scores, clusters, **options)
        except BudgetError:
            continue
        singles += [_judged(evaluator, genome, name) for name in scores.criteria]
        by_chance = Genome(evaluator.space, noise, cluster(noise, n_clusters=1), **options)
        mean_rank = borda(evaluator.space, scores, clusters, **options)
        baselines += [_judged(evaluator, g, name) for g in (by_chance, mean_rank) for name in g.criteria]
    return singles, baselines


def _judged(evaluator: Evaluator, genome: Genome, criterion: str) -> Single:
    masks = genome.decode(genome.single(criterion))
    values = dict(zip(evaluator.names, evaluator(masks), strict=True))
    counts = evaluator.space.kept_counts(masks)
    return Single(criterion, values, int(evaluator.space.flops_of(counts)), int(evaluator.space.params_of(counts)))
