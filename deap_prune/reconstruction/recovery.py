"""Label-free recovery: gradient training of a pruned network towards the dense network's features and outputs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.arguments import Count, CountOrZero, Seed, Share, checked
from deap_prune.data.batches import (
    Data,
    Forward,
    count_samples,
    default_forward,
    join,
    resolve_device,
    samples_of,
    tensors_of,
    to_batches,
)
from deap_prune.data.check_batches import errors_name
from deap_prune.data.devices import evaluating_on
from deap_prune.data.splits import augment as shift_and_mirror
from deap_prune.deadline import check_deadline
from deap_prune.errors import ConfigError, DataError, ModelError
from deap_prune.precision import full_precision
from deap_prune.progress import Shown, training_bar
from deap_prune.reconstruction.dense_targets import DenseTargets, DistanceToDense, layers_to_compare
from deap_prune.structure.slim import unwrap

CHECKS = 10
"""Number of held-out checks, at equal distances over the steps."""

HELD_OUT = 0.1
"""Share of the images that are held out by default."""

PATIENCE = 3
"""Number of checks without a lower held-out loss after which training stops; the loss of step 0 does not count."""


@dataclass(frozen=True)
class Recovery:
    """Held-out loss before and after :func:`recover`, and how it was reached.

    Attributes:
        before: Held-out loss before the first step.
        after: Held-out loss of the final weights, never above ``before``.
        steps: Number of gradient steps behind the final weights; 0 if no check was below ``before``.
        steps_run: Number of gradient steps until training ended.
        checks: (step, held-out loss) of every check, in order, from step 0.
        layers: Qualified names of the layers whose outputs are in the loss.
        seconds: Wall-clock time.
    """

    before: float
    after: float
    steps: int
    steps_run: int
    checks: tuple[tuple[int, float], ...]
    layers: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        return f"held-out loss {self.before:.4f} -> {self.after:.4f} in {self.steps} steps, {self.seconds:.0f} s"


@checked
def recover(
    small: nn.Module,
    model: nn.Module,
    calibration: Data,
    *,
    steps: CountOrZero = 500,
    lr: float = 2e-4,
    batch_size: Count = 64,
    held_out: Share = HELD_OUT,
    validation: Data | None = None,
    augment: bool = True,
    layers: Sequence[str] | None = None,
    output_weight: float = 1.0,
    forward: Forward | None = None,
    device: str | torch.device = "auto",
    seed: Seed = 0,
    progress: Shown = True,
) -> Recovery:
    """Train a pruned network in place, without labels, to do what the dense network does on calibration images.

    This is gradient training: Adam with a cosine schedule, on the calibration images alone. The loss is a sum over some
    layers of the relative squared error of their outputs, ||small - dense||^2 / ||dense||^2, plus KL(dense || small) of
    the logits. If the targets are not class labels by type and shape, the relative squared error of the outputs
    replaces the KL divergence. The values of the targets are never used.

    The loss on images held out is measured before the first step and ten times during training, which stops if the last
    three are not below the earlier ones. The network gets the weights with the lowest held-out loss, which may be its
    first ones. Held-out images that the network was refined on make its first loss too small: give others as
    ``validation``. All layers are in eval mode, batch norms too: with the statistics of a batch a refined network would
    first be another function than it was. The network ends on its own device. On a CPU, equal seeds give equal weights.

    Features of few images as targets: Li et al. (FSKD, CVPR 2020, arXiv 1812.01839), Wang et al. (MiR, CVPR 2022,
    arXiv 2201.02620), Wang and Wu (PRACTISE, CVPR 2023, arXiv 2202.07861). ``benchmarks/recovery.py`` measures which
    loss and which rate are best.

    Args:
        small: The pruned network, such as ``result.slim(solution)``; it is changed in place.
        model: The dense network, wrapped or not; it does not change.
        calibration: Two tensors or batches; all are joined in memory. Without labels, give int64 zeros as targets.
        steps: Most gradient steps, at least 1.
        lr: Highest learning rate.
        batch_size: Images a step, at least 2.
        held_out: Share of the calibration images to hold out, in (0, 1); without effect if ``validation`` is given.
        validation: Images to hold out instead, two tensors or batches; their labels are not used either.
        augment: Shift the images (N, C, H, W) of a step by up to an eighth of their width, mirror half of them, and
            blend each with another one, s * x1 + (1 - s) * x2 with a random share s of its own. What the dense network
            makes of the blends is the target (Beyer et al., CVPR 2022, arXiv 2106.05237).
        layers: Qualified names of the layers to compare. None chooses the last layer of each resolution, among those
            whose outputs have the same shape in both networks. ``()`` compares no layers.
        output_weight: Weight of the network's outputs in the loss, at least 0.
        forward: Function of (model, batch) to (outputs, targets); default: ``model(inputs)``, batch (inputs, targets).
        device: Where to train; "auto" is CUDA if it is available, else the CPU.
        seed: Of the held-out images, the order and the augmentation.
        progress: Show a bar with the held-out loss.

    Returns:
        The held-out losses, the steps and the compared layers.

    Examples:
        >>> from deap_prune.reconstruction.recovery import recover
        >>> record = recover(small, model, data["calibration"], steps=20, progress=False)
        >>> record.after <= record.before, small.training
        (True, False)

    Raises:
        ConfigError: If an option is out of range, or nothing is compared.
        DataError: If the calibration data is missing, not finite or too small, or the device does not exist.
        ModelError: If the networks do not fit each other, no parameter can be trained, or the loss is not finite.
    """
    start = time.perf_counter()
    _check_options(steps, lr, batch_size, held_out, output_weight)
    narrow, dense = unwrap(small), unwrap(model)
    if {id(p) for p in narrow.parameters()} & {id(p) for p in dense.parameters()}:
        raise ModelError("small shares parameters with the dense network; give a copy (dp.slim, Evaluator.slim)")
    device, forward = resolve_device(device), forward or default_forward
    generator = torch.Generator().manual_seed(seed)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda), full_precision(), evaluating_on(device, dense):
        torch.manual_seed(seed)  # for a forward function that draws
        with evaluating_on(device, narrow, restore_modes=False):
            used, held = _images(calibration, validation, held_out, batch_size, device, generator)
            names = layers_to_compare(narrow, dense, forward, samples_of(used, slice(2)), layers)
            if not names and not output_weight:
                raise ConfigError("output_weight=0 and no layer to compare; give layers=, or an output_weight above 0")
            distance = DistanceToDense(narrow, dense, forward, names, output_weight)
            draws = _draws(used, batch_size, augment, generator)
            checks, run = _train(distance, draws, held, steps, lr, progress)
    best, after = min(checks, key=lambda check: check[1])
    return Recovery(checks[0][1], after, best, run, tuple(checks), names, time.perf_counter() - start)


def _check_options(steps: int, lr: float, batch_size: int, held_out: float, output_weight: float) -> None:
    legal = {
        "steps": (steps, steps >= 1, "at least 1"),
        "lr": (lr, 0 < lr < math.inf, "above 0"),
        "batch_size": (batch_size, batch_size >= 2, "at least 2"),
        "held_out": (held_out, 0 < held_out < 1, "in (0, 1), a share of the images"),
        "output_weight": (output_weight, 0 <= output_weight < math.inf, "at least 0"),
    }
    for name, (value, in_range, rule) in legal.items():
        if not in_range:
            raise ConfigError(f"{name}={value} for the recovery; give a number {rule}")


# ------------------------------------------------------------------ images
def _images(
    calibration: Data,
    validation: Data | None,
    share: float,
    size: int,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[Any, list[Any]]:
    """The samples to train on, as one batch, and the held-out samples, as batches."""
    used = _joined(calibration, device, "calibration")
    if validation is not None:
        held = _joined(validation, device, "validation")
        return used, _in_batches(held, torch.arange(count_samples(held)), size)
    fit, held_out = held_out_of(count_samples(used), share, generator)
    return _take(used, fit), _in_batches(used, held_out, size)


def _joined(data: Data, device: torch.device, name: str) -> Any:
    """All samples as one batch on the device."""
    batches = to_batches(data, name=name, device=device)
    try:
        return join(batches)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"the {name} batches can't be joined ({error}); give batches whose tensors differ in length alone"
        ) from error


def held_out_of(count: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places of the samples to train on and of those held out, drawn at random.

    Raises:
        DataError: If fewer than two samples are left to train on.
    """
    held = max(1, round(share * count))
    if count - held < 2:
        raise DataError(
            f"{count} calibration samples with held_out={share} leave {count - held} to train on; give at least 2"
        )
    order = torch.randperm(count, generator=generator)
    return order[held:], order[:held]


def _in_batches(batch: Any, places: Tensor, size: int) -> list[Any]:
    return [_take(batch, part) for part in places.split(max(size, 250))]


def _take(batch: Any, indices: Tensor) -> Any:
    """Samples of a batch, in contiguous memory: torch 2.15's oneDNN corrupts some channels-last gradients."""
    device = next(tensor.device for tensor in tensors_of(batch))
    return tree_map(lambda x: x.contiguous() if isinstance(x, Tensor) else x, samples_of(batch, indices.to(device)))


def _draws(batch: Any, size: int, augment: bool, generator: torch.Generator) -> Iterator[Any]:
    """Yield batches without end: all samples in one random order, then all in another."""
    count = count_samples(batch)
    queue = torch.empty(0, dtype=torch.int64)
    while True:
        while len(queue) < min(size, count):
            queue = torch.cat([queue, torch.randperm(count, generator=generator)])
        indices, queue = queue[:size], queue[size:]
        samples = _take(batch, indices)
        yield _augmented(samples, generator) if augment else samples


def _augmented(batch: Any, generator: torch.Generator) -> Any:
    """The batch with shifted, mirrored and blended images; all images of a sample are treated alike."""
    count, seed = count_samples(batch), int(torch.randint(2**31, (), generator=generator))
    others, shares = torch.randperm(count, generator=generator), torch.rand(count, 1, 1, 1, generator=generator)

    def moved(x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.dim() == 4 and len(x) == count and x.is_floating_point()):
            return x
        x = shift_and_mirror(x, torch.Generator().manual_seed(seed), padding=max(1, x.shape[-1] // 8))
        return torch.lerp(x[others.to(x.device)], x, shares.to(x))

    return tree_map(moved, batch)


# ------------------------------------------------------------------ training
def _train(
    distance: DistanceToDense, draws: Iterator[Any], held: Sequence[Any], steps: int, lr: float, progress: Shown
) -> tuple[list[tuple[int, float]], int]:
    """Train, and give the network the weights of its best check. Returns the checks and the steps run."""
    small = distance.small
    parameters = [p for p in small.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError("no parameter has requires_grad=True; call small.requires_grad_(True) to train it")
    for parameter in parameters:
        parameter.data = parameter.data.contiguous()
    with errors_name("calibration"):
        targets = [distance.targets(batch) for batch in held]
    optimizer = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    checks = [(0, _held_out_loss(distance, held, targets))]
    if not math.isfinite(checks[0][1]):
        raise ModelError(f"the loss is {checks[0][1]} before the first step; check that inputs and weights are finite")
    weights = _copy_of(small)
    due = {round(steps * k / CHECKS) for k in range(1, CHECKS + 1)}
    step = best = 0
    try:
        with training_bar("step", steps, shown=progress) as report:
            for step in range(1, steps + 1):
                check_deadline()
                _take_step(distance, next(draws), optimizer)
                schedule.step()
                if step in due:
                    checks.append((step, _held_out_loss(distance, held, targets)))
                    if checks[-1][1] < checks[best][1]:
                        best, weights = len(checks) - 1, _copy_of(small)
                    if patience_exhausted(checks):
                        break
                report(completed=step, note=f"held-out loss {checks[0][1]:.4f}, best {checks[best][1]:.4f}")
    finally:
        optimizer.zero_grad()
        with torch.no_grad():
            for tensor, value in zip(_tensors(small), weights, strict=True):
                tensor.copy_(value)
    return [check for check in checks if math.isfinite(check[1])], step


def patience_exhausted(checks: Sequence[tuple[int, float]]) -> bool:
    """Whether the newest held-out loss is not finite, or the last PATIENCE ones are not below those before them.

    The loss of step 0 does not count: the first steps of Adam often raise the loss, and later ones lower it again.
    """
    losses = [loss for _, loss in checks[1:]]
    exhausted = len(losses) > PATIENCE and min(losses[-PATIENCE:]) >= min(losses[:-PATIENCE])
    return exhausted or not math.isfinite(losses[-1])


def _take_step(distance: DistanceToDense, batch: Any, optimizer: torch.optim.Optimizer) -> None:
    """One gradient step."""
    with errors_name("calibration"):
        loss = distance(batch, distance.targets(batch))
    if not loss.requires_grad:
        raise ModelError("the outputs carry no gradient (no_grad, detach or labels in forward), which recovery needs")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def _held_out_loss(distance: DistanceToDense, held: Sequence[Any], targets: Sequence[DenseTargets]) -> float:
    """The mean loss over the held-out samples, in eval mode."""
    sizes = [count_samples(batch) for batch in held]
    losses = [float(distance(batch, t)) * n for batch, t, n in zip(held, targets, sizes, strict=True)]
    return sum(losses) / sum(sizes)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _copy_of(network: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in _tensors(network)]
