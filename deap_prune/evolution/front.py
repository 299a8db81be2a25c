"""The Pareto front: its solutions, ready-made choices among them, and its files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deap_prune.errors import BudgetError, RunError
from deap_prune.files import write_text
from deap_prune.structure.masks import Masks


@dataclass(frozen=True, eq=False)
class Solution:
    """One pruned network of a front.

    Attributes:
        values: Objective name to value.
        masks: The filters that stay.
        flops: Multiply-adds of the slimmed network, one sample.
        params: Its parameters.
        individual: The genes.
    """

    values: Mapping[str, float]
    masks: Masks
    flops: int
    params: int
    individual: tuple[float, ...] = ()

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.4f}" for name, value in self.values.items())
        return f"{values} ({self.flops:,} multiply-adds)"


@dataclass(frozen=True, eq=False)
class ParetoFront(Sequence[Solution]):
    """Mutually non-dominated solutions, cheapest first.

    Attributes:
        solutions: No two have the same values.
        weights: Objective name to +1 (maximised) or -1 (minimised).
        dense: ``flops`` and ``params`` of the dense network, and its ``values``.
        settings: How the figures were judged (BN re-estimation, ...).
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
        """The non-dominated ones of the given solutions; of equal values the first stays."""
        found = list({tuple(s.values.values()): s for s in reversed(list(solutions))}.values())[::-1]
        points = _minimised(found, weights)
        keep = [s for s, p in zip(found, points, strict=True) if not _dominated(p, points)]
        keep.sort(key=lambda s: (s.flops, tuple(s.values.values())))
        return cls(tuple(keep), dict(weights), dict(dense), dict(settings or {}))

    def __len__(self) -> int:
        return len(self.solutions)

    def __getitem__(self, index: Any) -> Any:
        return self.solutions[index]

    def __iter__(self) -> Iterator[Solution]:
        return iter(self.solutions)

    def __str__(self) -> str:
        return "\n".join(
            [f"{len(self)} solutions"] + [f"  {s.flops / self.dense['flops']:.3f} of the flops: {s}" for s in self]
        )

    def best(
        self, *, max_flops: float | None = None, max_params: float | None = None, by: str | None = None
    ) -> Solution:
        """The best solution under a cost.

        Args:
            max_flops: Kept share of the dense network's multiply-adds.
            max_params: Kept share of its parameters.
            by: Objective; the first if left out.

        Raises:
            BudgetError: If no solution is that cheap (the message names the cheapest), or the objective unknown.
        """
        name = next(iter(self.weights)) if by is None else by
        if name not in self.weights:
            raise BudgetError(f"the front has no objective '{name}'; it has {', '.join(self.weights)}")
        self._check_not_empty()
        limits = {"flops": max_flops, "params": max_params}
        inside = [
            s
            for s in self
            if all(limit is None or getattr(s, cost) <= limit * self.dense[cost] for cost, limit in limits.items())
        ]
        if not inside:
            cheapest = min(self, key=lambda s: s.flops)
            raise BudgetError(
                f"no solution keeps at most {max_flops if max_flops is not None else max_params} of the cost; the "
                f"cheapest keeps {cheapest.flops / self.dense['flops']:.4f} of the flops and "
                f"{cheapest.params / self.dense['params']:.4f} of the parameters"
            )
        return max(inside, key=lambda s: (self.weights[name] * s.values[name], -s.flops))

    def _check_not_empty(self) -> None:
        if not self.solutions:
            raise BudgetError("the front is empty: no individual has a valid fitness; evaluate the population first")

    def knee(self) -> Solution:
        """The solution farthest below the line (plane) through the front's ends, objectives scaled to [0, 1].

        Das 1999, "On characterizing the knee of the Pareto curve"; the nearest to the ideal point where there is none.
        """
        self._check_not_empty()
        points = _minimised(self.solutions, self.weights)
        span = points.max(axis=0) - points.min(axis=0)
        scaled = (points - points.min(axis=0)) / np.where(span > 0, span, 1)
        return self.solutions[int(np.argmin(scaled.sum(axis=1)))]

    def hypervolume(self, reference: Sequence[float] | None = None) -> float:
        """Hypervolume dominated by the front.

        Args:
            reference: One value an objective, in the objective's own units; by default 0 for what is maximised and 1
                for what is minimised, so (accuracy, flops) gives a figure in [0, 1].
        """
        import moocore

        signs = np.array(list(self.weights.values()))
        worst = np.where(signs > 0, 0.0, 1.0) if reference is None else np.asarray(reference, dtype=float)
        return float(moocore.hypervolume(_minimised(self.solutions, self.weights), ref=-signs * worst))

    def save(self, folder: str | Path) -> None:
        """Write masks/, front.csv and front.json into a run folder.

        front.json is replaced in one step; masks are named by their content, so the old front stays whole until then.
        """
        folder = Path(folder)
        (folder / "masks").mkdir(parents=True, exist_ok=True)
        entries = []
        for number, solution in enumerate(self):
            text = solution.masks.to_json()
            path = f"masks/{number:04d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
            write_text(folder / path, text)
            entries.append(
                {
                    "values": dict(solution.values),
                    "flops": solution.flops,
                    "params": solution.params,
                    "masks": path,
                    "individual": list(solution.individual),
                }
            )
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["masks", *self.weights, "multiply_adds", "parameters"])
        for e, solution in zip(entries, self, strict=True):
            writer.writerow([e["masks"], *solution.values.values(), solution.flops, solution.params])
        write_text(folder / "front.csv", table.getvalue())
        content = {
            "objectives": [{"name": n, "maximise": w > 0} for n, w in self.weights.items()],
            "dense": dict(self.dense),
            "convention": "1 multiply-add = 1 flop (fvcore), one sample, eval mode",
            "settings": dict(self.settings),
            "solutions": entries,
        }
        write_text(folder / "front.json", json.dumps(content, indent=1))
        for old in {p.name for p in (folder / "masks").iterdir()} - {Path(str(e["masks"])).name for e in entries}:
            (folder / "masks" / old).unlink()

    @classmethod
    def load(cls, folder: str | Path) -> ParetoFront:
        """Read the front of a run folder.

        Raises:
            RunError: If there is none, or it can't be read.
        """
        path = Path(folder) / "front.json"
        if not path.is_file():
            raise RunError(
                f"'{folder}' holds no front.json; a run writes it when it is done (deap-prune resume goes on)"
            )
        try:
            content = json.loads(path.read_text())
            solutions = tuple(
                Solution(
                    entry["values"],
                    Masks.from_json((path.parent / entry["masks"]).read_text()),
                    entry["flops"],
                    entry["params"],
                    tuple(entry["individual"]),
                )
                for entry in content["solutions"]
            )
            weights = {o["name"]: 1.0 if o["maximise"] else -1.0 for o in content["objectives"]}
            return cls(solutions, weights, content["dense"], content["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"'{path}' can't be read as a front: {error!r}") from error


def _minimised(solutions: Sequence[Solution], weights: Mapping[str, float]) -> NDArray[np.float64]:
    """Objectives as minimised values, shape (solutions, objectives)."""
    rows = [[-weights[name] * s.values[name] for name in weights] for s in solutions]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(weights))


def _dominated(point: NDArray[np.float64], points: NDArray[np.float64]) -> bool:
    return bool(((points <= point).all(axis=1) & (points < point).any(axis=1)).any())
