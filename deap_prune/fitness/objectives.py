"""The objectives of a search, and their registry, which holds their directions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deap_prune.arguments import Finite, checked
from deap_prune.costs import COSTS, Cost, bound_cost
from deap_prune.data.batches import Loss, check_map, count_samples, cross_entropy, logits_of
from deap_prune.errors import DataError
from deap_prune.registry import Registry
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace

PerSample = Callable[..., Tensor]
Rerun = Callable[[Callable[[Tensor], Tensor]], Any]
EvaluatedBatch = tuple[Any, Any, Any, Rerun]
"""Outputs, targets, the dense network's outputs, and a function that runs the batch again, changed."""
OfMasks = Callable[[PruningSpace, Masks], float]
OfNetwork = Callable[[Callable[[], Any], torch.device], float]


def _mean(total: Tensor, samples: int) -> float:
    return float(total.mean()) / samples  # over positions too, where there are any (segmentation)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A registered objective.

    Attributes:
        maximise: Whether larger values are better.
        worst: Value that NaN and infinity are replaced by.
        batch: Function of (outputs, targets, dense_outputs) to values of shape (samples, ...); None for a cost. With
            ``needs_network`` a fourth argument, ``rerun``, is a function of a change: the network's outputs on the
            same batch with the change (a function of a tensor) applied to each of its tensors.
        finish: Function of (sum over all samples, number of samples) to the value; the mean by default.
        of_masks: For a cost: function of (space, masks).
        of_network: For an objective that is measured on the slimmed network: function of (run, device), where ``run()``
            is one forward pass over a few validation samples.
        needs_dense: Whether ``batch`` needs the dense network's outputs.
        needs_network: Whether ``batch`` runs the pruned network again, on changed inputs.
    """

    name: str
    maximise: bool
    worst: Finite
    summary: str
    reference: str
    batch: PerSample | None = None
    finish: Callable[[Tensor, int], float] = _mean
    of_masks: OfMasks | None = None
    of_network: OfNetwork | None = None
    needs_dense: bool = False
    needs_network: bool = False

    @property
    def weight(self) -> float:
        """DEAP's fitness weight: +1 to maximise, -1 to minimise."""
        return 1.0 if self.maximise else -1.0


def of_cost(cost: Cost) -> Objective | None:
    """The objective that a cost is: its kept share, minimised; None for ``latency``, which may be measured instead."""
    if cost.name == "latency":
        return None
    return Objective(
        name=cost.name,
        maximise=False,
        worst=1.0,
        summary=f"Kept share of the cost: {cost.summary[:1].lower()}{cost.summary[1:]}",
        reference=cost.reference,
        of_masks=partial(_kept_share, cost.name),
    )


def _kept_share(name: str, space: PruningSpace, masks: Masks) -> float:
    return bound_cost(name, space).share(masks)


OBJECTIVES: Registry[Objective] = Registry("objective", "objectives", COSTS, of_cost)


@checked
def register_objective(
    name: str,
    *,
    maximise: bool,
    worst: float,
    reference: str = "",
    cost: bool = False,
    measured: bool = False,
    needs_dense: bool = False,
    needs_network: bool = False,
    finish: Callable[[Tensor, int], float] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an objective: decorate ``f(outputs, targets, dense_outputs) -> (samples, ...)``.

    With ``cost=True`` it is ``f(space, masks) -> float``, with ``measured=True`` ``f(run, device) -> float``.

    Args:
        name: Registry name.
        maximise: Whether larger values are better.
        worst: Finite value that replaces NaN and infinity.
        reference: Paper.
        cost: Whether the objective follows from the masks alone.
        measured: Whether the objective is measured on the slimmed network: ``run()`` is one forward pass of a few
            samples.
        needs_dense: Whether the function needs the dense network's outputs (else ``dense_outputs`` is None).
        needs_network: The function takes a fourth argument, ``rerun``: ``rerun(change)`` gives the pruned network's
            outputs on the same batch, each tensor in it changed by ``change`` (shifts, noise, other sizes, ...).
        finish: Function of (sum over samples, number of samples) to the value; the mean if left out.

    Raises:
        RegistryError: If the name is taken.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        summary = (function.__doc__ or "").strip().split("\n")[0]
        OBJECTIVES.add(
            Objective(
                name=name,
                maximise=maximise,
                worst=worst,
                summary=summary,
                reference=reference,
                batch=None if cost or measured else function,
                of_masks=function if cost else None,
                of_network=function if measured else None,
                needs_dense=needs_dense,
                needs_network=needs_network,
                **({"finish": finish} if finish else {}),
            )
        )
        return function

    return decorate


@register_objective("accuracy", maximise=True, worst=0.0)
def accuracy(outputs: Tensor, targets: Tensor, dense_outputs: None) -> Tensor:
    """Share of samples whose largest output is the label (top-1), in [0, 1]."""
    scores = logits_of(outputs)
    _check_shape(scores, targets)
    return _where_finite(scores, (scores.argmax(dim=1) == targets).float())


def _check_shape(scores: Tensor, targets: Tensor) -> None:
    """Refuse labels of another shape or type: labels (N, 1), for example, would be compared with every sample."""
    if targets.shape != (expected := scores.shape[:1] + scores.shape[2:]):
        raise DataError(f"labels have shape {tuple(targets.shape)}; the network's outputs ask for {tuple(expected)}")
    if targets.dtype.is_floating_point or targets.dtype.is_complex or targets.dtype == torch.bool:
        raise DataError(f"labels are {targets.dtype}; class labels are whole numbers (labels.long())")


def _where_finite(outputs: Tensor, values: Tensor) -> Tensor:
    """Values of shape (samples, ...), NaN for samples whose outputs are not finite."""
    finite = outputs.isfinite().flatten(1).all(dim=1)
    return torch.where(finite.view(-1, *[1] * (values.dim() - 1)), values, torch.nan)


@register_objective("loss", maximise=False, worst=1e6)
def loss(outputs: Tensor, targets: Tensor, dense_outputs: None) -> Tensor:
    """Mean cross-entropy, in nats; or a loss of your own (``loss=``)."""
    return cross_entropy(logits_of(outputs).float(), targets, by_sample=True)


def with_loss(objective: Objective, own: Loss | None) -> Objective:
    """The objective, with the user's loss function if it is ``loss``.

    Args:
        objective: Any objective.
        own: Function of (outputs, targets) to the mean over a batch, or to one value a sample; None: cross-entropy.
    """
    if own is None or objective.name != "loss":
        return objective
    return replace(objective, batch=partial(_own_loss, own))


def _own_loss(own: Loss, outputs: Any, targets: Any, dense_outputs: None) -> Tensor:
    losses = own(outputs, targets)
    if not isinstance(losses, Tensor):
        raise DataError(f"the loss gives a {type(losses).__name__}; it gives a tensor: a mean, or one value a sample")
    return losses if losses.dim() else losses.expand(count_samples((targets, outputs)))


@register_objective(
    "agreement", maximise=False, worst=1e6, needs_dense=True, reference="Hinton et al. 2015, arXiv 1503.02531"
)
def agreement(outputs: Tensor, targets: Tensor, dense_outputs: Tensor) -> Tensor:
    """Mean KL divergence from the dense network's outputs to the pruned one's, in nats; needs no labels."""
    dense, pruned = (logits_of(x).float().log_softmax(dim=1) for x in (dense_outputs, outputs))
    return F.kl_div(pruned, dense, log_target=True, reduction="none").sum(dim=1)


def _mean_iou(total: Tensor, samples: int) -> float:
    """Mean of intersection / union over the classes that occur, with equal weights."""
    intersection, union = total
    return float((intersection / union)[union != 0].mean())


@register_objective("miou", maximise=True, worst=0.0, finish=_mean_iou, reference="Everingham et al. 2010, PASCAL VOC")
def miou(outputs: Tensor | Mapping[str, Tensor], targets: Tensor, dense_outputs: None) -> Tensor:
    """Mean intersection over union of the classes, in [0, 1]; labels below 0, and 255, are ignored.

    Args:
        outputs: Shape (N, classes, ...), or a dict with that under "out" (torchvision's segmentation networks).
        targets: Labels, shape (N, ...).
        dense_outputs: Not needed.

    Returns:
        Intersections and unions of each sample, in positions, shape (N, 2, classes); the areas are summed over all
        samples before the ratio is taken.

    Raises:
        DataError: If a label is outside the classes, or labels have another shape than the outputs' maps.
    """
    scores = logits_of(outputs)
    _check_shape(scores, targets)
    n, classes = scores.shape[:2]
    counted = check_map(scores, targets)
    first = (torch.arange(n, device=targets.device) * (classes + 1)).view(-1, *[1] * (targets.dim() - 1))

    def areas(labels: Tensor, where: Tensor) -> Tensor:
        index = labels.where(where, classes) + first  # one more bin for ignored positions
        return torch.bincount(index.flatten(), minlength=n * (classes + 1)).view(n, -1)[:, :classes]

    predicted = scores.argmax(dim=1)
    hits = areas(targets, counted & (predicted == targets))
    unions = areas(targets, counted) + areas(predicted, counted) - hits
    return _where_finite(scores, torch.stack([hits, unions], dim=1).double())


SHIFTS = ((0, 1), (1, 0), (1, 1), (2, 3), (3, 2))
"""Shifts of ``shift_consistency`` in (rows, columns): every offset of a grid of stride 2, and some of stride 4."""


@register_objective(
    "shift_consistency",
    maximise=True,
    worst=0.0,
    needs_network=True,
    reference="Chaman and Dokmanic 2021, arXiv 2011.14214",
)
def shift_consistency(outputs: Tensor, targets: Any, dense_outputs: None, rerun: Rerun) -> Tensor:
    """Share of images whose label (largest output) stays the same under five circular shifts, in [0, 1].

    Every tensor (N, C, H, W) of the batch is shifted. Whether the label is right does not count.

    Raises:
        DataError: If the network does not give one label for an image, or the batch holds no images.
    """
    labels, images = outputs.argmax(dim=1), []

    def moved(by: tuple[int, int], x: Tensor) -> Tensor:
        if x.dim() != 4:
            return x
        images.append(x)
        return x.roll(by, dims=(2, 3))

    same = torch.ones_like(labels, dtype=torch.bool)
    for shift in SHIFTS:
        same &= rerun(partial(moved, shift)).argmax(dim=1) == labels
    if labels.dim() != 1 or not images:
        raise DataError(
            "shift_consistency compares one label for each image: it takes outputs (N, classes) and batches with "
            f"images (N, C, H, W), not outputs {tuple(outputs.shape)} of {len(images)} image tensors"
        )
    return _where_finite(outputs, same.float())


REPEATS = 15
TIMED = 16
"""Samples in the forward pass that ``latency`` times."""


@register_objective("latency", maximise=False, worst=1e6, measured=True)
def latency(run: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds of one forward pass of the slimmed network: predicted from a latency table, or else measured.

    Measured on 16 samples (or all there are), on the network's device.
    The median of 15 passes after 3 to warm up. A search measures each candidate once and stores the value; two runs
    differ by the noise of the machine.
    """
    times = []
    for _ in range(3 + REPEATS):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def on_space(objective: Objective, space: PruningSpace) -> Objective:
    """The objective for the networks of a space: ``latency`` is predicted if a latency table is attached to it."""
    if objective.name != "latency" or space.latency_of is None:
        return objective
    return replace(objective, of_network=None, of_masks=_predicted_latency)


def _predicted_latency(space: PruningSpace, masks: Masks) -> float:
    return float(bound_cost("latency", space)(space.kept_counts(masks)))


def synchronise(device: torch.device) -> None:
    """Wait for the work that was started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def batch_values(objective: Objective, batch: EvaluatedBatch) -> Tensor:
    """A data objective's values for one batch, shape (samples, ...).

    Raises:
        DataError: If the objective returns anything else.
    """
    if objective.batch is None:
        return torch.zeros(1)
    values = objective.batch(*(batch if objective.needs_network else batch[:3]))
    if isinstance(values, Tensor) and values.dim() and not values.is_complex():
        return values
    of_tensor = "a tensor without dimensions, or of complex numbers"
    kind = of_tensor if isinstance(values, Tensor) else f"a {type(values).__name__}"
    raise DataError(
        f"objective '{objective.name}' gave {kind}; it gives one value a sample, a tensor of shape (samples, ...)"
    )


def reduced(objective: Objective, batches: Iterable[Tensor]) -> float:
    """Value of a data objective over all batches.

    Args:
        objective: The objective.
        batches: Result of :func:`batch_values` for each batch.
    """
    total, samples = torch.zeros(()), 0
    for values in batches:
        total = total.to(values.device) + values.double().sum(dim=0)
        samples += len(values)
    return objective.finish(total, samples)
