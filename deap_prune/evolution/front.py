"""The Pareto front: its solutions, ready-made choices among them, and its files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deap_prune.arguments import Finite, checked
from deap_prune.blending.budget import Limit
from deap_prune.display import html_table, short, text_table
from deap_prune.errors import BudgetError, ConfigError
from deap_prune.evolution.front_costs import amounts_of, inside
from deap_prune.evolution.front_files import read_front, save_front
from deap_prune.evolution.front_table import as_rows, as_table, rounded
from deap_prune.structure.masks import Masks


@dataclass(frozen=True, eq=False)
class Solution:
    """One pruned network of a front.

    Attributes:
        values: Values by objective.
        masks: The kept filters.
        flops: Multiply-adds of the slimmed network, for one sample.
        params: Number of its parameters.
        individual: The genes.
        latency: Predicted milliseconds, if the search had a latency table.
    """

    values: Mapping[str, float]
    masks: Masks
    flops: int
    params: int
    individual: tuple[float, ...] = ()
    latency: float | None = None

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.4f}" for name, value in self.values.items())
        return f"{values} ({self.flops:,} multiply-adds)"

    def __repr__(self) -> str:
        return f"Solution({self}, {self.params:,} parameters; .masks, .individual)"

    def _repr_html_(self) -> str:
        columns = (*self.values, "multiply-adds", "parameters")
        return html_table("Solution", columns, [[*rounded(self.values), f"{self.flops:,}", f"{self.params:,}"]])


@dataclass(frozen=True, eq=False)
class ParetoFront(Sequence[Solution]):
    """Mutually non-dominated solutions, cheapest first.

    Attributes:
        solutions: The solutions; no two have the same values.
        weights: +1 (maximised) or -1 (minimised) by objective.
        dense: ``flops`` and ``params`` of the dense network, its ``latency`` if there is a table, and its ``values``.
        settings: How the networks were evaluated (compensation, BN statistics, refinement, ...).

    Examples:
        >>> front = dp.search(model, images, **data, population=4, generations=1, progress=False).front
        >>> front.best(max_flops=0.5).flops <= 0.5 * space.flops
        True
    """

    solutions: tuple[Solution, ...]
    weights: Mapping[str, float]
    dense: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        solutions: Iterable[Solution],
        weights: Mapping[str, float],
        dense: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
    ) -> ParetoFront:
        """The front of the given solutions: those that no other dominates, the first of equal values, none with NaN."""
        import moocore

        numbers = [s for s in solutions if not any(math.isnan(value) for value in s.values.values())]
        distinct = list({tuple(s.values.values()): s for s in reversed(numbers)}.values())[::-1]
        kept = moocore.is_nondominated(_minimised(distinct, weights)) if distinct else []
        keep = [s for s, stays in zip(distinct, kept, strict=True) if stays]
        keep.sort(key=lambda s: (s.flops, tuple(s.values.values())))
        return cls(tuple(keep), dict(weights), dict(dense), dict(settings or {}))

    def __len__(self) -> int:
        return len(self.solutions)

    def __getitem__(self, index: Any) -> Any:
        return self.solutions[index]

    def __iter__(self) -> Iterator[Solution]:
        return iter(self.solutions)

    def __str__(self) -> str:
        return "\n".join([self._title(), *text_table(*as_table(self))])

    def __repr__(self) -> str:
        columns, rows = as_table(self)
        return short([f"ParetoFront: {self._title()}", *text_table(columns, [*rows[-1:], *rows[:-1]])], "print(front)")

    def _repr_html_(self) -> str:
        return html_table(f"Pareto front: {self._title()}", *as_table(self))

    def _title(self) -> str:
        return f"{len(self)} solution{'s' * (len(self) != 1)}"

    def to_frame(self) -> Any:
        """A row for each solution: its place, objectives, multiply-adds and parameters with their kept shares.

        Returns:
            A pandas DataFrame if pandas is installed, else a list of dicts.
        """
        rows = as_rows(self)
        return rows if find_spec("pandas") is None else import_module("pandas").DataFrame(rows)

    def plot(self, axes: Any = None, *, points: Mapping[str, Sequence[tuple[float, float]]] | None = None) -> Any:
        """Draw the front's first objective against its second, or against the kept FLOPs if there is one objective.

        Args:
            axes: matplotlib axes to draw on; new ones if left out.
            points: Other results on the same axes: label to pairs of (first, second) objective.

        Returns:
            The matplotlib axes.
        """
        from deap_prune.plot import draw_front, new_axes

        return draw_front(new_axes() if axes is None else axes, self, points=points)

    @checked
    def best(
        self,
        *,
        max_flops: Limit = None,
        max_params: Limit = None,
        max_latency: Limit = None,
        by: str | None = None,
    ) -> Solution:
        """The best solution within all budgets.

        Args:
            max_flops: Largest kept share of the dense network's multiply-adds, or an amount such as "150M".
            max_params: Largest kept share of its parameters, or an amount such as "2M".
            max_latency: Largest kept share of its latency, or an amount such as "4 ms"; predicted if the search had a
                latency table, measured if ``latency`` is an objective.
            by: Objective; the first by default.

        Raises:
            BudgetError: If no solution is that cheap (the message names the cheapest), a limit is illegal, latencies
                are unknown, or the objective is.
        """
        name = self._objective(by)
        limits = {"flops": max_flops, "params": max_params, "latency": max_latency}
        fits = inside(self.solutions, self.weights, self.dense, limits)
        fitting = [s for s, fit in zip(self, fits, strict=True) if fit and not math.isnan(s.values[name])]
        if not fitting:
            raise BudgetError(f"no solution within these budgets has a value of '{name}'")
        return max(fitting, key=lambda s: (self.weights[name] * s.values[name], -s.flops))

    def _objective(self, name: str | None) -> str:
        name = next(iter(self.weights)) if name is None else name
        if name not in self.weights:
            raise BudgetError(f"the front has no objective '{name}'; it has {', '.join(self.weights)}")
        self._check_not_empty()
        return name

    def _check_not_empty(self) -> None:
        if not self.solutions:
            raise BudgetError("the front is empty: no individual has a valid fitness; evaluate the population first")

    def knee(self) -> Solution:
        """The solution with the smallest sum of minimised objectives, each scaled to [0, 1] over the front.

        With two objectives it lies farthest below the line through the front's ends: Das 1999, "On characterizing the
        knee of the Pareto curve".
        """
        self._check_not_empty()
        points = _minimised(self.solutions, self.weights)
        span = points.max(axis=0) - points.min(axis=0)
        scaled = (points - points.min(axis=0)) / np.where(span > 0, span, 1)
        return self.solutions[int(np.argmin(scaled.sum(axis=1)))]

    @checked
    def cheapest(self, *, at_least: Finite, by: str | None = None, cost: str = "flops") -> Solution:
        """The cheapest solution that is good enough.

        Args:
            at_least: Value that the objective must reach, or must not exceed if it is minimised.
            by: Objective; the first by default.
            cost: ``"flops"``, ``"params"``, ``"latency"``, or an objective that is minimised.

        Raises:
            BudgetError: If no solution is that good (the message names the best), or objective or cost are unknown.
        """
        name = self._objective(by)
        weight, amounts = self.weights[name], amounts_of(self.solutions, self.weights, self.dense, cost)[0].tolist()
        good = [
            (amount, s) for amount, s in zip(amounts, self, strict=True) if weight * s.values[name] >= weight * at_least
        ]
        if not good:
            best = self.best(by=name).values[name]
            raise BudgetError(f"no solution reaches {name} {at_least:g}; the best has {best:g}")
        return min(good, key=lambda entry: (entry[0], -weight * entry[1].values[name]))[1]

    def pseudo_weights(self) -> NDArray[np.float64]:
        """Pseudo-weights of the solutions, shape (solutions, objectives); every row sums to 1.

        A solution's relative distance to the front's worst value of each objective: Deb 2001, "Multi-objective
        optimization using evolutionary algorithms".
        """
        points = _minimised(self.solutions, self.weights)
        span = points.max(axis=0, initial=-np.inf) - points.min(axis=0, initial=np.inf)
        distance = (points.max(axis=0, initial=-np.inf) - points) / np.where(span > 0, span, 1)
        total = distance.sum(axis=1, keepdims=True)
        return np.where(total > 0, distance / np.where(total > 0, total, 1), 1 / points.shape[1])

    @checked
    def closest(self, weights: Mapping[str, Finite]) -> Solution:
        """The solution whose pseudo-weights are nearest to the given weights.

        Args:
            weights: Weights by objective, up to scale; missing objectives get 0.

        Raises:
            BudgetError: If an objective is unknown, or no weight is above 0.
        """
        wish = np.array([weights.get(name, 0.0) for name in self.weights], dtype=float)
        unknown = set(weights) - set(self.weights)
        if unknown or (wish < 0).any() or wish.sum() <= 0:
            raise BudgetError(
                f"weights is {dict(weights)!r}; give weights from 0 up, one of them above, to {', '.join(self.weights)}"
            )
        self._check_not_empty()
        return self.solutions[int(np.abs(self.pseudo_weights() - wish / wish.sum()).sum(axis=1).argmin())]

    @property
    def reference(self) -> tuple[float, ...]:
        """Reference point of the hypervolume: 0 if maximised, else 1, or twice a dense value that is above 1."""
        dense = self.dense.get("values", {})
        worst = {name: 1.0 if value <= 1 else 2.0 * value for name, value in dense.items()}
        return tuple(0.0 if w > 0 else worst.get(name, 1.0) for name, w in self.weights.items())

    @checked
    def hypervolume(self, reference: Sequence[Finite] | None = None) -> float:
        """Hypervolume dominated by the front.

        Args:
            reference: One value per objective, in the objective's own unit; by default :attr:`reference`, so that
                (accuracy, flops) gives a value in [0, 1].
        """
        point = self.reference if reference is None else reference
        return hypervolume(_minimised(self.solutions, self.weights), list(self.weights.values()), point)

    @checked
    def save(self, folder: str | Path) -> None:
        """Write masks/, front.csv and front.json into a run folder.

        front.json is replaced in one step; masks are named by their content, so the old front stays whole until then.
        Of the files in masks/, only those that the previous front.json names are removed.

        Raises:
            RunError: If a file can't be written, or ``masks`` is a link.
        """
        save_front(self, Path(folder))

    @classmethod
    @checked
    def load(cls, folder: str | Path) -> ParetoFront:
        """Read the front of a run folder.

        Raises:
            RunError: If there is no front, it can't be read, or its masks were changed.
        """
        read = read_front(Path(folder))
        solutions = (
            Solution(
                *(entry["values"], masks, entry["flops"], entry["params"], tuple(entry["individual"])),
                entry.get("latency"),
            )
            for entry, masks in read.solutions
        )
        return cls(tuple(solutions), read.weights, read.dense, read.settings)


def _minimised(solutions: Sequence[Solution], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """Objectives as minimised values, shape (solutions, objectives)."""
    rows = [[-weights[name] * s.values[name] for name in weights] for s in solutions]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(weights))


def hypervolume(points: NDArray[np.float64], weights: Sequence[float], reference: Sequence[float]) -> float:
    """Hypervolume that minimised values dominate.

    Args:
        points: Shape (points, objectives), maximised objectives negated.
        weights: +1 or -1 per objective.
        reference: Reference point, in the objectives' own units.

    Raises:
        ConfigError: If the reference has another number of values.
    """
    import moocore

    signs = np.asarray(weights, dtype=float)
    worst = np.asarray(reference, dtype=float)
    if worst.shape != signs.shape:
        raise ConfigError(
            f"the hypervolume's reference is {reference!r}; give one value for each of {len(signs)} objectives"
        )
    return float(moocore.hypervolume(points, ref=-signs * worst))


def best_per_bin(evaluate: Any, *, bins: int = 20) -> list[Solution]:
    """The best evaluated network in each bin of FLOPs, cheapest first; bins without a network are left out.

    Unlike a front it also shows networks that a cheaper one dominates; after Mouret and Clune 2015, "Illuminating
    search spaces by mapping elites" (arXiv 1504.04909).

    Args:
        evaluate: The evaluator that compared candidates (``result.compared_by``).
        bins: Number of equal parts of [0, 1], the kept share of the FLOPs.

    Raises:
        BudgetError: If ``bins`` is below 1.
    """
    if bins < 1:
        raise BudgetError(f"bins is {bins}; give 1 or more")
    space, best = evaluate.space, dict[int, tuple[float, Solution]]()
    for masks, values in evaluate.cache.items():
        counts = space.kept_counts(masks)
        flops = int(space.flops_of(counts))
        place = min(bins - 1, flops * bins // space.flops)
        score = evaluate.weights[0] * values[0]
        if place not in best or score > best[place][0]:
            named = dict(zip(evaluate.names, values, strict=True))
            best[place] = score, Solution(named, masks, flops, int(space.params_of(counts)))
    return [best[place][1] for place in sorted(best)]
