"""Scores of all filters by all criteria: what clustering and blending work on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.criteria.passes.collect import Statistics, collect
from deap_prune.criteria.registry import CRITERIA, Criterion
from deap_prune.data.batches import Data, Forward, Loss, cross_entropy
from deap_prune.errors import DataError
from deap_prune.structure.space import FilterGroup, PruningSpace

Scores = NDArray[np.float64]

REDUCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda layers: layers.mean(dim=0),
    "sum": lambda layers: layers.sum(dim=0),
    "max": lambda layers: layers.amax(dim=0),
    "first": lambda layers: layers[0],
}


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Group name -> criterion -> scores of shape (filters,), larger = keep.

    A criterion that does not apply to a group (no normalisation, no ReLU) is absent there.
    """

    scores: Mapping[str, Mapping[str, Scores]]

    @property
    def criteria(self) -> tuple[str, ...]:
        """All criteria that apply to at least one group, in the order they were asked for."""
        return tuple(dict.fromkeys(name for group in self.scores.values() for name in group))

    def __getitem__(self, group: str) -> Mapping[str, Scores]:
        return self.scores[group]

    def __str__(self) -> str:
        return f"{len(self.scores)} groups scored by {', '.join(self.criteria)}"

    def save(self, path: str | Path) -> None:
        """Write as .npz (no pickle)."""
        np.savez_compressed(path, **{f"{g}|{c}": s for g, by in self.scores.items() for c, s in by.items()})  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> ScoreTable:
        """Read what :meth:`save` wrote."""
        scores: dict[str, dict[str, Scores]] = {}
        with np.load(path, allow_pickle=False) as stored:
            for key in stored.files:
                group, _, criterion = key.rpartition("|")
                scores.setdefault(group, {})[criterion] = stored[key]
        return cls(scores)


@torch.inference_mode(False)  # a caller's would let no gradient through
def score(
    model: nn.Module,
    space: PruningSpace,
    calibration: Data | Tensor | None = None,
    *,
    criteria: Iterable[str] = ("l1", "fpgm", "bn_scale", "taylor_gate", "mean_activation"),
    reduction: str = "mean",
    forward: Forward | None = None,
    loss: Loss = cross_entropy,
    labels: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> ScoreTable:
    """Score every filter by every criterion: one pass over the calibration data, and those few more that some need.

    Args:
        model: The network that was traced; it comes back unchanged.
        space: Its space.
        calibration: Batches or a pair of tensors; may be None for criteria on weights alone, and inputs alone
            without labels.
        criteria: Registry names (``dp.criteria()`` lists them).
        reduction: How a group's layers are put together: mean, sum, max or first.
        forward: Function of (model, batch) to (outputs, targets).
        loss: Function of (outputs, targets) to the mean over a batch, or to one value a sample, for criteria on the
            loss; cross-entropy if left out.
        labels: False: no targets (self-supervised networks); criteria on the loss ask how far the network's own outputs
            or features move instead.
        seed: Of the random criterion.
        progress: Show a bar.

    Examples:
        >>> scores = dp.score(model, space, criteria=("l1", "l2"))  # of the weights alone: no data
        >>> scores.criteria, scores["3"]["l2"].shape
        (('l1', 'l2'), (6,))

    Raises:
        RegistryError: If a criterion is unknown.
        DataError: If data is needed and missing or unusable, no criteria are given, a score is not finite or of
            another shape, or no layer has all that a criterion needs.
    """
    if isinstance(criteria, str):
        raise DataError(f"criteria is the text {criteria!r}; give several names, such as ({criteria!r},)")
    chosen = [CRITERIA[name] for name in dict.fromkeys(criteria)]
    if not chosen:
        raise DataError("no criteria were chosen; dp.criteria() lists them")
    if reduction not in REDUCTIONS:
        raise DataError(f"unknown reduction '{reduction}'; known: {', '.join(REDUCTIONS)}")
    needs = {need for criterion in chosen for need in criterion.needs}
    statistics = collect(
        model,
        space,
        calibration,
        needs=needs,
        forward=forward,
        loss=loss,
        labels=labels,
        seed=seed,
        progress=progress,
    )
    table: dict[str, dict[str, Scores]] = {}
    for group in space.groups:
        table[group.name] = {}
        for criterion in chosen:
            found = _score_group(criterion, group, statistics, reduction)
            if found is not None:
                table[group.name][criterion.name] = found
    for criterion in chosen:
        _check_needs(criterion, space, statistics, table)
    return ScoreTable(table)


def _check_needs(
    criterion: Criterion, space: PruningSpace, statistics: Statistics, table: dict[str, dict[str, Scores]]
) -> None:
    """A criterion may apply nowhere (norms' scales in a network without norms), but not for asking too much at once."""
    if any(criterion.name in found for found in table.values()):
        return
    if any(all(statistics.of(group, need) for need in criterion.needs) for group in space.groups):
        raise DataError(
            f"criterion '{criterion.name}' applies nowhere: no layer has {' and '.join(criterion.needs)} at once (a "
            "group's filters, norms and readers are layers of their own); needs must be of the same layers"
        )


def _score_group(criterion: Criterion, group: FilterGroup, statistics: Statistics, reduction: str) -> Scores | None:
    """A group's scores: the criterion on each of its layers, reduced; None where it does not apply."""
    found = [criterion.score(*each) for each in statistics.of(group, *criterion.needs)]
    if any(scores is None for scores in found):
        raise DataError(f"criterion '{criterion.name}' gave None for '{group.name}'; it returns one score a filter")
    layers = [torch.as_tensor(scores).double() for scores in found]
    for scores in layers:
        if scores.shape != (group.size,):
            raise DataError(
                f"criterion '{criterion.name}' gave scores of shape {tuple(scores.shape)} for '{group.name}'; one for "
                f"each filter, shape ({group.size},), is needed"
            )
        if not bool(torch.isfinite(scores).all()):
            raise DataError(f"criterion '{criterion.name}' gave scores that are not finite for '{group.name}'")
    return REDUCTIONS[reduction](torch.stack(layers)).cpu().numpy() if layers else None
