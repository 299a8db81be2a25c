"""Scores of all filters by all criteria: the input of clustering and blending."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.arguments import Seed, check_fields, checked
from deap_prune.criteria.passes.collect import Statistics, collect
from deap_prune.criteria.registry import CRITERIA, Criterion
from deap_prune.data.batches import Data, Forward, Loss, cross_entropy
from deap_prune.data.unchanged import unchanged
from deap_prune.display import html_table, short
from deap_prune.errors import DataError, PruneError, did_you_mean
from deap_prune.files import MOST_BYTES, read_bytes, write_bytes
from deap_prune.progress import Shown
from deap_prune.randomness import same_draws
from deap_prune.structure.slim import check_network, unwrap
from deap_prune.structure.space import FilterGroup, PruningSpace

Scores = NDArray[np.float64]


def _as_npz(path: str | Path) -> Path:
    """The path with the suffix that NumPy's files have."""
    return Path(path) if str(path).endswith(".npz") else Path(f"{path}.npz")


REDUCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda layers: layers.mean(dim=0),
    "sum": lambda layers: layers.sum(dim=0),
    "max": lambda layers: layers.amax(dim=0),
    "first": lambda layers: layers[0],
}


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of every group.

    A criterion that does not apply to a group (no normalisation, no ReLU) is absent there.

    Attributes:
        scores: Group name -> criterion -> scores, shape (filters,), larger = keep.

    Raises:
        DataError: If scores are not finite numbers of such shapes.
    """

    scores: Mapping[str, Mapping[str, Scores]]

    def __post_init__(self) -> None:
        check_fields(self)
        for group, by_criterion in self.scores.items():
            arrays = [scores for scores in by_criterion.values() if isinstance(scores, np.ndarray)]
            sizes = {len(scores) if scores.ndim == 1 else -1 for scores in arrays}
            numbers = all(scores.dtype.kind in "fiu" and np.isfinite(scores).all() for scores in arrays)
            if len(arrays) < len(by_criterion) or len(sizes) > 1 or sizes & {-1, 0} or not numbers:
                raise DataError(
                    f"the scores of group '{group}' are damaged: give arrays of finite numbers of shape (filters,), "
                    "equally many for every criterion"
                )

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criteria that apply to at least one group, in the order in which they were chosen."""
        return tuple(dict.fromkeys(name for group in self.scores.values() for name in group))

    def __getitem__(self, group: str) -> Mapping[str, Scores]:
        return self.scores[group]

    def __str__(self) -> str:
        return f"{len(self.scores)} groups scored by {', '.join(self.criteria)}"

    def __repr__(self) -> str:
        groups = [f"  {name}: {', '.join(by_criterion)}" for name, by_criterion in self.scores.items()]
        return short([f"ScoreTable: {self}", *groups], "scores[GROUP][CRITERION] are the scores")

    def _repr_html_(self) -> str:
        names = self.criteria
        rows = [
            [group, str(max(map(len, by.values()), default=0)), *("yes" if name in by else "" for name in names)]
            for group, by in self.scores.items()
        ]
        return html_table(f"Scores: {self}", ("group", "filters", *names), rows)

    @checked
    def plot(self, group: str | None = None, axes: Any = None) -> Any:
        """Draw how each criterion ranks the filters of a group; columns are ordered by the mean rank.

        Args:
            group: Name of the group; default: the one with the most criteria, and of these with the most filters.
            axes: matplotlib axes to draw on; new ones if left out.

        Returns:
            The matplotlib axes.

        Raises:
            DataError: If there is no such group, or no criterion applies to it.
        """
        from deap_prune.plot import draw_ranks, new_axes

        if group is None:
            group = max(self.scores, key=lambda name: (len(self[name]), *map(len, list(self[name].values())[:1])))
        if not self.scores.get(group):
            raise DataError(f"no criterion applies to a group '{group}'; {did_you_mean(group, self.scores)}")
        return draw_ranks(new_axes() if axes is None else axes, self[group], title=group)

    @checked
    def save(self, path: str | Path) -> None:
        """Write the table to an .npz file (no pickle), atomically; the suffix is added if it is missing.

        Raises:
            RunError: If the file can't be written.
        """
        data = io.BytesIO()
        np.savez_compressed(data, **{f"{g}|{c}": s for g, by in self.scores.items() for c, s in by.items()})  # type: ignore[arg-type]
        write_bytes(_as_npz(path), data.getvalue())

    @classmethod
    @checked
    def load(cls, path: str | Path) -> ScoreTable:
        """Read a table that :meth:`save` wrote.

        Raises:
            DataError: If there is no such file, or it is damaged (zip files carry checksums) or no table of scores.
        """
        path = _as_npz(path)
        scores: dict[str, dict[str, Scores]] = {}
        try:
            with zipfile.ZipFile(io.BytesIO(read_bytes(path))) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                    raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
                for entry in archive.infolist():
                    group, _, criterion = entry.filename.removesuffix(".npy").rpartition("|")
                    if criterion in scores.setdefault(group, {}):
                        raise ValueError(f"it holds the scores of '{group}' by '{criterion}' twice")
                    with archive.open(entry) as file:
                        scores[group][criterion] = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds
            raise DataError(f"'{path}' can't be read as scores: {error}; write it again with scores.save") from error
        return cls(scores)


@checked
@torch.inference_mode(False)  # gradients are needed even if the caller is in inference mode
def score(
    model: nn.Module,
    space: PruningSpace,
    calibration: Data | None = None,
    *,
    criteria: Iterable[str] = ("l1", "fpgm", "bn_scale", "taylor_gate", "mean_activation"),
    reduction: str = "mean",
    forward: Forward | None = None,
    loss: Loss = cross_entropy,
    labels: bool = True,
    seed: Seed = 0,
    progress: Shown = False,
) -> ScoreTable:
    """Score every filter by every criterion, in one pass over the calibration data; some criteria need more passes.

    Args:
        model: The network that was traced; it is not changed.
        space: Its pruning space.
        calibration: Batches, or a pair of tensors (inputs, targets). May be None if all criteria need weights alone,
            and a tensor of inputs if ``labels`` is False.
        criteria: Registry names (``dp.criteria()`` lists them).
        reduction: How the scores of a group's layers are combined: ``"mean"``, ``"sum"``, ``"max"`` or ``"first"``.
        forward: Function of (model, batch) to (outputs, targets).
        loss: Function of (outputs, targets) to the mean over a batch, or to one value per sample, for criteria on the
            loss. Default: cross-entropy.
        labels: If False, targets are ignored (self-supervised networks): criteria on the loss measure the change of the
            network's own outputs instead.
        seed: Seed of noise and random places.
        progress: Show progress; "bar" or "log" choose its form.

    Examples:
        >>> scores = dp.score(model, space, criteria=("l1", "l2"))  # criteria on weights need no data
        >>> scores.criteria, scores["3"]["l2"].shape
        (('l1', 'l2'), (6,))

    Raises:
        RegistryError: If a criterion is unknown.
        MaskError: If the space was traced on another network.
        DataError: If data is needed and missing or unusable, no criteria are given, scores are not finite or have a
            wrong shape, or no layer has all statistics that a criterion needs.
    """
    if isinstance(criteria, str):
        raise DataError(f"criteria is the text {criteria!r}; give several names, such as ({criteria!r},)")
    chosen = [CRITERIA[name] for name in dict.fromkeys(criteria)]
    if not chosen:
        raise DataError("no criteria were chosen; dp.criteria() lists them")
    if reduction not in REDUCTIONS:
        raise DataError(f"unknown reduction '{reduction}'; known: {', '.join(REDUCTIONS)}")
    check_network(unwrap(model), space)
    needs = {need for criterion in chosen for need in criterion.needs}
    with same_draws(seed):
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
            scores = _score_group(criterion, group, statistics, reduction)
            if scores is not None:
                table[group.name][criterion.name] = scores
    for criterion in chosen:
        _check_needs(criterion, space, statistics, table)
    return ScoreTable(table)


def _check_needs(
    criterion: Criterion, space: PruningSpace, statistics: Statistics, table: dict[str, dict[str, Scores]]
) -> None:
    """Check that a criterion that applies to no group does not combine statistics of different layers.

    A criterion may apply to no group, such as ``bn_scale`` in a network without normalisation.

    Raises:
        DataError: If a group has each of its statistics, but no layer has all of them.
    """
    if any(criterion.name in scores for scores in table.values()):
        return
    if any(all(statistics.of(group, need) for need in criterion.needs) for group in space.groups):
        raise DataError(
            f"criterion '{criterion.name}' applies to no group: no single layer has {' and '.join(criterion.needs)}; "
            "all statistics of a criterion must belong to the same layers (filter layers, norms or readers)"
        )


def _own_score(criterion: Criterion, *tensors: Tensor) -> Any:
    """The scores of a criterion that is not of this package.

    Raises:
        DataError: If it fails, changes its arguments, or gives complex numbers.
    """
    try:
        scores = unchanged(criterion.score, *tensors, name=f"criterion '{criterion.name}'")
    except PruneError:
        raise
    except Exception as error:
        raise DataError(f"criterion '{criterion.name}' fails: {type(error).__name__}: {error}") from error
    if isinstance(scores, Tensor) and scores.is_complex():
        raise DataError(f"criterion '{criterion.name}' gave complex numbers; return real ones")
    return scores


def _score_group(criterion: Criterion, group: FilterGroup, statistics: Statistics, reduction: str) -> Scores | None:
    """Scores of a group, shape (filters,): those of its layers, reduced; None if the criterion does not apply."""
    own = not str(getattr(criterion.score, "__module__", "")).startswith("deap_prune.")
    run = partial(_own_score, criterion) if own else criterion.score
    by_layer = [run(*tensors) for tensors in statistics.of(group, *criterion.needs)]
    if any(scores is None for scores in by_layer):
        raise DataError(f"criterion '{criterion.name}' gave None for '{group.name}'; return one score per filter")
    if others := [scores for scores in by_layer if not isinstance(scores, (Tensor, np.ndarray, list, tuple))]:
        raise DataError(f"criterion '{criterion.name}' gave a {type(others[0]).__name__}; return one score per filter")
    layers = [torch.as_tensor(scores).detach().double() for scores in by_layer]
    for scores in layers:
        if scores.shape != (group.size,):
            raise DataError(
                f"criterion '{criterion.name}' gave scores of shape {tuple(scores.shape)} for '{group.name}'; one for "
                f"each filter, shape ({group.size},), is needed"
            )
        if not bool(torch.isfinite(scores).all()):
            raise DataError(f"criterion '{criterion.name}' gave scores that are not finite for '{group.name}'")
    return REDUCTIONS[reduction](torch.stack(layers)).cpu().numpy() if layers else None
