"""Label-free recovery: gradient training of a pruned network towards the dense network's features and outputs."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from deap_prune.data.batches import (
    Data,
    Forward,
    are_class_labels,
    count_samples,
    default_forward,
    divergence,
    join,
    logits_of,
    resolve_device,
    samples_of,
    tensors_of,
    to_batches,
)
from deap_prune.data.devices import evaluating_on
from deap_prune.data.draws import full_precision
from deap_prune.data.splits import augment as shift_and_mirror
from deap_prune.errors import ConfigError, DataError, ModelError, did_you_mean
from deap_prune.progress import training_bar
from deap_prune.structure.slim import unwrap

CHECKS = 10
"""How often the held-out loss is measured, spread evenly over the steps."""

PATIENCE = 3
"""Checks without a lower held-out loss after which training stops."""

Features = Mapping[str, Tensor]


@dataclass(frozen=True)
class Recovery:
    """How the held-out loss changed in :func:`recover`.

    Attributes:
        before: Held-out loss of the network as it was given.
        after: Held-out loss of the network as it is now, never above ``before``.
        steps: Gradient steps that led to its weights; 0 if no check was better than the start.
        steps_run: Gradient steps until training ended.
        checks: (step, held-out loss) of every check, in order; the first is the start's.
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


def recover(
    small: nn.Module,
    model: nn.Module,
    calibration: Data,
    *,
    steps: int = 500,
    lr: float = 2e-4,
    batch_size: int = 64,
    held_out: float = 0.1,
    augment: bool = True,
    layers: Sequence[str] | None = None,
    output_weight: float = 1.0,
    forward: Forward | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Recovery:
    """Train a pruned network in place, without labels, to do what the dense network does on calibration images.

    This is gradient training: Adam with a cosine schedule on the calibration images alone. The loss is the sum, over
    some layers, of the relative squared error of their outputs, ||small - dense||^2 / ||dense||^2, plus the divergence
    KL(dense || small) of the classes. Where the targets are not class labels by type and shape, the relative squared
    error of the outputs takes the divergence's place. The values of the targets are never used.

    The held-out loss is measured on calibration images that no step uses, ten times in all. Training stops after three
    checks without improvement, and the network gets the weights of the best check, or its own if none was better.
    It ends in eval mode on its own device. Batch norms use and update batch statistics, unless their weight has
    ``requires_grad=False``; all other layers are in eval mode. On a CPU a seed gives equal weights again.

    Few images with features as targets: Li et al. (FSKD, CVPR 2020, arXiv 1812.01839), Wang et al. (MiR, ECCV 2022,
    arXiv 2103.03467), Wang and Wu (PRACTISE, CVPR 2023, arXiv 2202.07861). Which loss and which rate do best is
    measured in ``benchmarks/recovery.py``.

    Args:
        small: The pruned network, such as ``result.slim(solution)``; it is changed.
        model: The dense network; it comes back unchanged.
        calibration: Batches or a pair of tensors; all are joined in memory.
        steps: Most gradient steps.
        lr: Highest learning rate.
        batch_size: Images a step, at least 2.
        held_out: Share of the images that the loss is checked on, in (0, 1).
        augment: Shift images (N, C, H, W) by up to an eighth of their width, and mirror half of them.
        layers: Qualified names of the layers to compare. None chooses, of the layers whose outputs have one shape in
            both networks, the last of each resolution. ``()`` compares the outputs of the network alone.
        output_weight: Weight of the outputs' part of the loss; 0 compares layers alone.
        forward: Function of (model, batch) to (outputs, targets); default: ``model(inputs)``, batch (inputs, targets).
        device: Where to train; "auto" is CUDA where there is any, else the CPU.
        seed: Of the held-out images, the order and the augmentation.
        progress: Show a bar with the held-out loss.

    Returns:
        The held-out loss before and after, and the steps.

    Examples:
        >>> from deap_prune.reconstruction.recovery import recover
        >>> record = recover(small, model, data["calibration"], steps=20, progress=False)
        >>> record.after <= record.before, small.training
        (True, False)

    Raises:
        ConfigError: If an option is out of range, or nothing is compared.
        DataError: If the calibration data is missing, not finite or too little, or there is no such device.
        ModelError: If the networks do not fit each other, nothing can be trained, or the loss is not finite.
    """
    start = time.perf_counter()
    _check_options(steps, lr, batch_size, held_out, output_weight)
    narrow, dense = unwrap(small), unwrap(model)
    if narrow is dense:
        raise ModelError("small is the dense network itself; give a pruned copy (dp.slim, Evaluator.slim)")
    place = resolve_device(device)
    generator = torch.Generator().manual_seed(seed)
    cuda = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(cuda), full_precision(), evaluating_on(place, dense):
        torch.manual_seed(seed)  # for a forward function that draws
        with evaluating_on(place, narrow, restore_modes=False):
            batch = _joined(calibration, place)
            used, held = _split(batch, held_out, batch_size, generator)
            names = _layers(narrow, dense, forward or default_forward, samples_of(used, slice(2)), layers)
            if not names and not output_weight:
                raise ConfigError("output_weight=0 and no layer to compare; give layers=, or an output_weight above 0")
            match = _Match(narrow, dense, forward or default_forward, names, output_weight)
            draws = _draws(used, batch_size, augment, generator)
            checks, run = _train(match, draws, held, steps, lr, progress)
    best, after = min(checks, key=lambda check: check[1])
    return Recovery(checks[0][1], after, best, run, tuple(checks), names, time.perf_counter() - start)


def _check_options(steps: int, lr: float, batch_size: int, held_out: float, output_weight: float) -> None:
    legal = {
        "steps": (steps, steps >= 1, "at least 1"),
        "lr": (lr, 0 < lr < math.inf, "above 0"),
        "batch_size": (batch_size, batch_size >= 2, "at least 2"),
        "held_out": (held_out, 0 < held_out < 1, "in (0, 1), a share of the calibration images"),
        "output_weight": (output_weight, 0 <= output_weight < math.inf, "at least 0"),
    }
    for name, (value, in_range, rule) in legal.items():
        if not in_range:
            raise ConfigError(f"{name}={value} for the recovery; give a number {rule}")


# ------------------------------------------------------------------ images
def _joined(calibration: Data, place: torch.device) -> Any:
    """All calibration batches as one."""
    batches = to_batches(calibration, name="calibration", device=place)
    try:
        return join(batches)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"the calibration batches can't be joined ({error}); give batches whose tensors differ in length alone"
        ) from error


def _split(batch: Any, share: float, size: int, generator: torch.Generator) -> tuple[Any, list[Any]]:
    """The samples to train on, as one batch, and the held-out samples, in batches."""
    count = count_samples(batch)
    held = max(1, round(share * count))
    if count - held < 2:
        raise DataError(
            f"{count} calibration samples with held_out={share} leave {count - held} to train on; give at least 2 more"
        )
    order = torch.randperm(count, generator=generator)
    pick = partial(_samples, batch)
    return pick(order[held:]), [pick(part) for part in order[:held].split(max(size, 250))]


def _samples(batch: Any, which: Tensor) -> Any:
    """Some samples, in plain memory order: gradients of channels-last tensors are not safe on every CPU."""
    device = next(tensor.device for tensor in tensors_of(batch))
    return tree_map(lambda x: x.contiguous() if isinstance(x, Tensor) else x, samples_of(batch, which.to(device)))


def _draws(batch: Any, size: int, augment: bool, generator: torch.Generator) -> Iterator[Any]:
    """Batches without end: all samples in random order, then all in another, and so on."""
    count = count_samples(batch)
    queue = torch.empty(0, dtype=torch.int64)
    while True:
        while len(queue) < min(size, count):
            queue = torch.cat([queue, torch.randperm(count, generator=generator)])
        chosen, queue = queue[:size], queue[size:]
        drawn = _samples(batch, chosen)
        yield _shift(drawn, generator) if augment else drawn


def _shift(batch: Any, generator: torch.Generator) -> Any:
    """The batch with its images shifted and mirrored, those of one sample alike."""
    count, seed = count_samples(batch), int(torch.randint(2**31, (), generator=generator))

    def shifted(x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.dim() == 4 and len(x) == count and x.is_floating_point()):
            return x
        return shift_and_mirror(x, torch.Generator().manual_seed(seed), padding=max(1, x.shape[-1] // 8))

    return tree_map(shifted, batch)


# ------------------------------------------------------------------ what is compared
@contextmanager
def _outputs_of(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The outputs of some layers by name, in the order in which they ran; None for a layer that ran twice."""
    outputs: dict[str, Any] = {}
    calls: Counter[str] = Counter()

    def keep(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        calls[name] += 1
        outputs[name] = output if calls[name] == 1 else None

    handles = [network.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _layers(
    small: nn.Module, dense: nn.Module, forward: Forward, batch: Any, chosen: Sequence[str] | None
) -> tuple[str, ...]:
    """Names of the layers to compare: the user's choice if it fits, or the last of each resolution."""
    known = [dict(network.named_modules()).keys() - {""} for network in (small, dense)]
    shared = known[0] & known[1]
    for name in chosen or ():
        if name not in shared:
            raise ModelError(f"no layer '{name}' in both networks; {did_you_mean(name, shared)}")
    shapes: list[dict[str, tuple[int, ...]]] = []
    for network in (small, dense):
        with torch.no_grad(), _outputs_of(network, sorted(shared if chosen is None else chosen)) as outputs:
            _run(forward, network, batch)
        shapes.append({name: tuple(x.shape) for name, x in outputs.items() if isinstance(x, Tensor)})
    alike = [name for name, shape in shapes[1].items() if shapes[0].get(name) == shape]
    if chosen is not None:
        if odd := [name for name in chosen if name not in alike]:
            raise ModelError(
                f"the outputs of '{odd[0]}' can't be compared: {shapes[0].get(odd[0])} in the pruned network, "
                f"{shapes[1].get(odd[0])} in the dense one; choose layers that make one tensor of equal shape in both"
            )
        return tuple(chosen)
    maps = {name: shapes[1][name] for name in alike if math.prod(shapes[1][name][2:]) > 1}
    return tuple({shape[2:]: name for name, shape in maps.items()}.values())


def _run(forward: Forward, network: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Forward, with our own error where the network does not take the batch."""
    try:
        return forward(network, batch)
    except Exception as error:
        raise DataError(
            f"the network fails on the calibration data: {type(error).__name__}: {error}; batches are (inputs, "
            "targets), with inputs as the network takes them (else pass forward=)"
        ) from error


@dataclass(frozen=True)
class _Match:
    """The loss of the pruned network: how far it is from the dense network on a batch."""

    small: nn.Module
    dense: nn.Module
    forward: Forward
    layers: tuple[str, ...]
    output_weight: float

    @torch.no_grad()
    def aim(self, batch: Any) -> tuple[Features, Any]:
        """Features and outputs of the dense network."""
        with _outputs_of(self.dense, self.layers) as features:
            outputs, _ = self.forward(self.dense, batch)
        return features, outputs

    def loss(self, batch: Any, aim: tuple[Features, Any]) -> Tensor:
        """The loss on a batch, as a tensor with one element."""
        with _outputs_of(self.small, self.layers) as features:
            outputs, targets = self.forward(self.small, batch)
        parts = [_relative_error(features[name], aim[0][name]) for name in self.layers]
        if self.output_weight:
            parts.append(self.output_weight * _output_distance(outputs, aim[1], targets))
        return torch.stack(parts).sum()


def _relative_error(ours: Tensor, dense: Tensor) -> Tensor:
    return (ours - dense).square().sum() / dense.square().sum().clamp_min(torch.finfo(dense.dtype).tiny)


def _output_distance(outputs: Any, dense_outputs: Any, targets: Any) -> Tensor:
    """KL(dense || small) of logits, else the mean relative squared error of the output tensors."""
    logits, dense_logits = logits_of(outputs), logits_of(dense_outputs)
    if are_class_labels(logits, targets) and logits.shape == dense_logits.shape:
        return divergence(logits, dense_logits)
    ours, theirs = ([x for x in tensors_of(t) if x.is_floating_point()] for t in (outputs, dense_outputs))
    if not ours or [x.shape for x in ours] != [x.shape for x in theirs]:
        raise ModelError(
            f"the pruned network's outputs {[tuple(x.shape) for x in ours]} can't be compared with the dense "
            f"network's {[tuple(x.shape) for x in theirs]}; give tensors of equal shapes by forward="
        )
    return torch.stack([_relative_error(x, y) for x, y in zip(ours, theirs, strict=True)]).mean()


# ------------------------------------------------------------------ training
def _train(
    match: _Match, draws: Iterator[Any], held: Sequence[Any], steps: int, lr: float, progress: bool
) -> tuple[list[tuple[int, float]], int]:
    """Take the steps, and leave the network with the weights of its best check; the checks, and the steps run."""
    small = match.small
    parameters = [p for p in small.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError("no parameter has requires_grad=True; call small.requires_grad_(True) to train it")
    for parameter in parameters:
        parameter.data = parameter.data.contiguous()
    norms = [m for m in small.modules() if isinstance(m, _BatchNorm) and not (m.affine and not m.weight.requires_grad)]
    aims = [match.aim(batch) for batch in held]
    optimizer = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    checks = [(0, _held_out_loss(match, held, aims))]
    if not math.isfinite(checks[0][1]):
        raise ModelError(f"the loss is {checks[0][1]} before the first step; see that inputs and weights are finite")
    state = _copy_of(small)
    due = {round(steps * k / CHECKS) for k in range(1, CHECKS + 1)}
    number = best = 0
    try:
        with training_bar("step", steps, shown=progress) as report:
            for number in range(1, steps + 1):
                _step(match, next(draws), optimizer, norms)
                schedule.step()
                if number in due:
                    checks.append((number, _held_out_loss(match, held, aims)))
                    if checks[-1][1] < checks[best][1]:
                        best, state = len(checks) - 1, _copy_of(small)
                    if len(checks) - 1 - best >= PATIENCE or not math.isfinite(checks[-1][1]):
                        break
                report(completed=number, note=f"held-out loss {checks[0][1]:.4f}, best {checks[best][1]:.4f}")
    finally:
        optimizer.zero_grad()
        with torch.no_grad():
            for tensor, value in zip(_tensors(small), state, strict=True):
                tensor.copy_(value)
    return [check for check in checks if math.isfinite(check[1])], number


def _step(match: _Match, batch: Any, optimizer: torch.optim.Optimizer, norms: Sequence[nn.Module]) -> None:
    """One gradient step, batch norms in train mode meanwhile."""
    aim = match.aim(batch)
    for norm in norms:
        norm.train()
    loss = match.loss(batch, aim)
    for norm in norms:
        norm.eval()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def _held_out_loss(match: _Match, held: Sequence[Any], aims: Sequence[tuple[Features, Any]]) -> float:
    """The mean loss over the held-out samples, in eval mode."""
    sizes = [count_samples(batch) for batch in held]
    losses = [float(match.loss(batch, aim)) * n for batch, aim, n in zip(held, aims, sizes, strict=True)]
    return sum(losses) / sum(sizes)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _copy_of(network: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in _tensors(network)]
