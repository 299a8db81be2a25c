"""The contents of a report: read from a run folder, and computed from the network if it is available."""

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
from deap_prune.costs import LatencyCheck
from deap_prune.costs.latency import MOST_BYTES
from deap_prune.criteria.table import ScoreTable
from deap_prune.errors import BudgetError, PruneError, RunError
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.files import read_text
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.progress import Shown, track
from deap_prune.report.comparison import config_differences, run_names
from deap_prune.search.fingerprint import versions
from deap_prune.search.finished_run import as_final, open_run

if TYPE_CHECKING:
    from deap_prune.search import Result

Blend = Mapping[str, float]
"""Criterion to its weight in a group's importance; the weights sum to 1."""


@dataclass(frozen=True)
class Single:
    """A single criterion, or a baseline, at a budget, with uniform widths; evaluated like the blends.

    Attributes:
        criterion: Name of the criterion or baseline.
        values: Objective to value.
        flops: Multiply-adds, a whole number.
        params: Number of parameters.
    """

    criterion: str
    values: Mapping[str, float]
    flops: int
    params: int


@dataclass(frozen=True)
class Insight:
    """Facts that are computed from the network.

    Attributes:
        clusters: Clusters of the criteria in every group.
        blends: For each solution a mapping from group to blend; empty if the genome cannot read the individuals.
        singles: Single criteria at several budgets.
        baselines: Random filters, and the mean rank of all criteria (Borda), at several budgets.
        layer_flops: Multiply-adds of the operators that write or read each group's filters: of the dense network (first
            row), then of each solution, shape (1 + solutions, groups).
    """

    clusters: CriteriaClusters
    blends: Sequence[Mapping[str, Blend]]
    singles: Sequence[Single]
    baselines: Sequence[Single]
    layer_flops: NDArray[np.float64]


@dataclass(frozen=True)
class Facts:
    """The contents of a report.

    Attributes:
        folder: The run folder.
        front: The front of the run.
        layers: Group name to its number of filters, in order of execution.
        history: One record per generation: column to number, with ``evaluations``, the number of evaluations so far.
        config: The resolved config as YAML; empty if the folder has none.
        versions: Versions of Python and of the packages.
        insight: Facts from the network; None if it is not available.
        why: The reason why the network is not available.
        run_versions: ``versions`` are those of the run, not of this report.
        beside: Name to the front of another run of the same network.
        latency: Predicted and measured latencies of the front; None if the run had no latency table.
        differences: Config key to its value in this run and in each of ``beside``, where they differ.
        status: What the run is doing, if it goes on; else empty.
        name: The run's name beside those of ``beside``.
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
    latency: LatencyCheck | None = None
    differences: Mapping[str, Sequence[str]] = field(default_factory=dict)
    status: str = ""
    name: str = ""

    def kept(self) -> NDArray[np.float64]:
        """Kept share of each layer's filters, shape (layers, solutions)."""
        return np.array([[mean_kept(s, name) for s in self.front] for name in self.layers]).reshape(
            len(self.layers), -1
        )

    def shares(self) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """Names of the criteria, and their weights in the blends, mean over the front, shape (layers, criteria)."""
        names = self.insight.clusters.correlation()[0] if self.insight else ()
        blends = self.insight.blends if self.insight else ()
        table = [[np.mean([b[g].get(c, 0.0) for b in blends]) for c in names] for g in self.layers] if blends else []
        return names, np.array(table)


def mean_kept(solution: Solution, layer: str) -> float:
    """Kept share of a layer's filters, in [0, 1]; a layer without a mask is dense."""
    return float(solution.masks[layer].mean()) if layer in solution.masks else 1.0


def gather(
    folder: Path,
    *,
    result: Result | None,
    singles: int,
    network: bool,
    progress: Shown,
    beside: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
) -> Facts:
    """Read a run folder, and compute facts from its network.

    Args:
        folder: The run folder.
        result: The run's result, if it is in memory.
        singles: Number of budgets for single criteria and baselines.
        network: Compute facts from the network.
        progress: Show progress; "bar" or "log" choose its form.
        beside: Folders of other runs of the same network.
        overrides: ``key.sub=value`` each, for the run's config.

    Raises:
        RunError: If there is no front, it can't be read, or a run in ``beside`` has another network or objectives.
        PruneError: If there are overrides, and network or data can't be opened with them.
    """
    front = ParetoFront.load(folder)
    folders = [folder, *map(Path, beside)]
    name, *others = run_names(folders)
    other_fronts = _other_fronts(front, dict(zip(others, folders[1:], strict=True)))
    layers = {name: len(keep) for solution in front for name, keep in solution.masks.items()}
    insight, why = None, "the network was not opened (network=False, --no-network)"
    if network:
        try:
            insight, layers = _insight(folder, front, result, singles, progress, overrides)
        except PruneError as error:
            if overrides:
                raise
            why = str(error)
    stored = folder / "versions.json"
    config = folder / "config.yaml"
    return Facts(
        folder,
        front,
        layers,
        read_history(folder / "history.csv"),
        config.read_text(encoding="utf-8") if config.is_file() else "",
        read_versions(stored),
        insight,
        why,
        stored.is_file(),
        other_fronts,
        latency=_latency(folder / "latency.json", front),
        differences=config_differences(folders),
        name=name,
    )


def _latency(path: Path, front: ParetoFront) -> LatencyCheck | None:
    """The comparison in a run folder; None if there is none, or it is of an earlier front."""
    check = LatencyCheck.from_json(read_text(path, most=MOST_BYTES)) if path.is_file() else None
    return check if check is not None and len(check.predicted) == len(front) else None


def read_versions(stored: Path) -> Mapping[str, str]:
    """The versions stored in the run folder; without such a file, those installed now."""
    if not stored.is_file():
        return versions()
    try:
        run_versions: dict[str, str] = json.loads(stored.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(
            f"'{stored}' can't be read ({error}); remove it, and the report shows the installed versions"
        ) from error
    return run_versions


def _other_fronts(front: ParetoFront, folders: Mapping[str, Path]) -> dict[str, ParetoFront]:
    """Fronts of other runs, by the names of their folders."""
    fronts: dict[str, ParetoFront] = {}
    for name, folder in folders.items():
        other = ParetoFront.load(folder)
        if not front.weights.items() <= other.weights.items():
            raise RunError(f"'{folder}' has the objectives {', '.join(other.weights)}, not {', '.join(front.weights)}")
        if other.dense["flops"] != front.dense["flops"]:
            raise RunError(
                f"the network of '{folder}' has {other.dense['flops']:,} multiply-adds, that of this run "
                f"{front.dense['flops']:,}; give runs of one network"
            )
        fronts[name] = other
    return fronts


def read_history(path: Path) -> list[dict[str, float]]:
    """The records of history.csv, numeric columns only; empty if there is no such file."""
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


def _insight(
    folder: Path,
    front: ParetoFront,
    result: Result | None,
    singles: int,
    progress: Shown,
    overrides: Sequence[str],
) -> tuple[Insight, dict[str, int]]:
    """Facts from the network, and its layers (name to number of filters) in order of execution."""
    from deap_prune.search import prepare

    if result is not None:
        genome, evaluator, scores = result.genome, result.evaluator, result.scores
    else:
        opened = open_run(folder, overrides)
        options = opened.config.search
        prepared = prepare(opened.task, options, progress=progress)
        genome, scores = prepared.genome, prepared.scores
        evaluator = as_final(prepared.evaluator, front, options)
    space, clusters = evaluator.space, genome.clusters
    counts = [space.sizes, *(space.kept_counts(s.masks) for s in front)]  # an error if it is another network's front
    readable = all(len(s.individual) == len(genome.layout) for s in front)
    blends = [genome.blend(s.individual) for s in front] if readable else []
    borda_run = not set(genome.criteria) <= set(scores.criteria)
    score_clusters = cluster(scores, n_clusters=1) if borda_run else clusters
    single, baselines = _evaluate_singles(front, evaluator, scores, score_clusters, singles, progress)
    insight = Insight(clusters, blends, single, baselines, space.flops_of.by_group(np.array(counts)))
    return insight, {g.name: g.size for g in space.groups}


def _evaluate_singles(
    front: ParetoFront,
    evaluator: Evaluator,
    scores: ScoreTable,
    clusters: CriteriaClusters,
    budgets: int,
    progress: Shown,
) -> tuple[list[Single], list[Single]]:
    """Every criterion, and the baselines, at budgets between those of the front; unreachable ones are skipped."""
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
        singles += [_evaluate_single(evaluator, genome, name) for name in scores.criteria]
        random_genome = Genome(evaluator.space, noise, cluster(noise, n_clusters=1), **options)
        mean_rank = borda(evaluator.space, scores, clusters, **options)
        baselines += [_evaluate_single(evaluator, g, name) for g in (random_genome, mean_rank) for name in g.criteria]
    return singles, baselines


def _evaluate_single(evaluator: Evaluator, genome: Genome, criterion: str) -> Single:
    """The value of a genome's masks with filters ranked by one criterion."""
    masks = genome.decode(genome.single(criterion))
    values = dict(zip(evaluator.names, evaluator(masks), strict=True))
    counts = evaluator.space.kept_counts(masks)
    return Single(criterion, values, int(evaluator.space.flops_of(counts)), int(evaluator.space.params_of(counts)))
