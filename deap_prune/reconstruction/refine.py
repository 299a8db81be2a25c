"""Sequential refinement: layer by layer, from what the pruned network hands over to what the dense one made of it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.data.batches import (
    Data,
    Forward,
    count_samples,
    default_forward,
    join,
    samples_of,
    tensors_of,
    to_batches,
)
from deap_prune.errors import ConfigError
from deap_prune.reconstruction.fit import fit_layer
from deap_prune.reconstruction.flow import Flow, Key, Recorder, has_statistics, record
from deap_prune.reconstruction.matrix import blocks_of, patches_of, pick, positions, refittable, to_features
from deap_prune.structure.inputs import evaluating
from deap_prune.structure.layers import spec_of
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import slim, unwrap
from deap_prune.structure.space import PruningSpace


@dataclass(frozen=True, eq=False)
class _Aim:
    """What one layer is fitted to.

    Attributes:
        norm: The batch normalisation that alone reads it, or None.
        step: Whose result in the dense network is aimed at: the layer, the normalisation, or the addition that alone
            reads it.
        other: In the last case, what makes the other summand, before the layer runs; else None.
        outputs: Of the layer, by id.
        rectified: Whether a rectifier alone reads what is aimed at.
    """

    norm: str | None
    step: Key
    other: Key | None
    outputs: NDArray[np.intp]
    rectified: bool


def refine(
    model: nn.Module,
    space: PruningSpace,
    masks: Masks,
    calibration: Data,
    *,
    start: nn.Module | None = None,
    images: int = 1000,
    rows: int = 16_000,
    forward: Forward | None = None,
    seed: int = 0,
) -> nn.Module:
    """A slimmed network whose layers were re-fitted, in order of execution, to do what the dense network's do.

    One pass of the dense network notes what each convolution and linear layer makes, after the batch normalisation
    that follows it and after the addition in which a shortcut meets it, at sampled positions. Then one pass of the
    pruned network: whenever a layer is about to run, it is fitted by ridge regression from what it is about to read
    (all errors made so far included) to the dense outputs, less the other summand as the pruned network has it: so the
    shortcut's error is made up for too. Where a rectifier alone reads the result, no more is asked of what the dense
    network has below 0 than to be below 0 (as Zhang et al., TPAMI 2016, arXiv 1505.06798, look at layers through their
    rectifiers). Images held out from a layer's fit decide on its ridge; a layer that no fit improves there stays as it
    is, and so does one to which the pruned network takes other steps than the dense one. Normalisations take up the
    constant, and end with the statistics of what they read. Labels are not looked at.

    All images go through both networks in one piece; what is noted takes 4 bytes x rows x outputs for each layer.

    Args:
        model: The dense network that was traced, wrapped or not; it comes back unchanged.
        space: Its space.
        masks: What stays.
        calibration: Batches or a pair of tensors.
        start: The slimmed network to begin with, such as ``Evaluator.slim(masks)``; ``slim(model, space, masks)`` if
            left out. It is not changed.
        images: Most samples to use.
        rows: Most output positions of a layer to fit on.
        forward: Function of (model, batch) to (outputs, targets).
        seed: Of the sampling of positions.

    Returns:
        A module of the same classes and shapes as ``start``, in eval mode.

    Raises:
        ConfigError: If images or rows are below 2.
        DataError: If the calibration data is missing or not finite.
        MaskError: If the masks don't fit the space.
    """
    if images < 2 or rows < 2:
        raise ConfigError(f"images={images}, rows={rows}: refinement needs at least 2 of each")
    network = unwrap(model)
    small = slim(network, space, masks) if start is None else start
    return Refiner(network, space, calibration, images=images, rows=rows, forward=forward, seed=seed)(masks, small)


class Refiner:
    """Refines one candidate after the other: the dense network runs once for all. See :func:`refine`.

    Args:
        network: The dense network, unwrapped.
        space: Its space.
        calibration: Batches or a pair of tensors.
        images: Most samples to use.
        rows: Most output positions of a layer.
        forward: Function of (model, batch) to (outputs, targets).
        seed: Of the sampling of positions.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: nn.Module,
        space: PruningSpace,
        calibration: Data,
        *,
        images: int,
        rows: int,
        forward: Forward | None = None,
        seed: int = 0,
    ) -> None:
        device = next(network.parameters()).device
        self._space, self._forward = space, forward or default_forward
        self._batch = join_batches(to_batches(calibration, name="calibration", device=device), images)
        with evaluating(network):
            self._flow = record(network, partial(self._forward, network, samples_of(self._batch, slice(2))))
            self._aims = _aims(network, space, self._flow)
            run = partial(self._forward, network, self._batch)
            self._targets = _dense_targets(network, run, self._aims, rows, seed)

    @property
    def nbytes(self) -> int:
        """Memory of the images and of what was noted of the dense network, in bytes."""
        images = tensors_of(self._batch)
        return sum(t.numel() * t.element_size() for t in (*images, *(t.values for t in self._targets.values())))

    @torch.no_grad()
    def __call__(self, masks: Masks, start: nn.Module) -> nn.Module:
        """A refined copy, in eval mode, of the network slimmed by the masks."""
        small, keep = copy.deepcopy(start).eval(), self._space.kept(masks)
        _Pass(small, self._flow, self._aims, self._targets, keep).run(partial(self._forward, small, self._batch))
        return small


def join_batches(batches: list[Any], samples: int) -> Any:
    """The first samples of all batches as one batch."""
    chosen: list[Any] = []
    for batch in batches:
        missing = samples - sum(count_samples(c) for c in chosen)
        if missing > 0:
            chosen.append(samples_of(batch, slice(missing)))
    return join(chosen)


def _aims(network: nn.Module, space: PruningSpace, flow: Flow) -> dict[str, _Aim]:
    """For each layer that can be re-fitted: what to."""
    shares = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
    found: dict[str, _Aim] = {}
    for entry in space.layers:
        number = flow.call(entry.name) if entry.dim is None else None
        if number is None:
            continue
        layer: Any = network.get_submodule(entry.name)
        if refittable(layer) is None or shares[id(layer.weight)] > 1:
            continue
        norm = flow.norm_after(network, entry.name)
        step = flow.call(norm) if norm else number
        if step is None:
            continue
        meeting = flow.meeting(step)
        other: Key | None = None
        if meeting is not None and meeting[1] < number:  # the other summand is there already
            step, other = meeting[0], flow.steps[meeting[1]].key
        found[entry.name] = _Aim(norm, flow.steps[step].key, other, entry.outputs, flow.rectified(step))
    return found


@dataclass(frozen=True, eq=False)
class _Target:
    """Positions of a layer's output, and what the dense network has there: (picks,), (picks, outputs)."""

    picks: Tensor
    values: Tensor


def _dense_targets(
    network: nn.Module, forward: Callable[[], Any], aims: Mapping[str, _Aim], rows: int, seed: int
) -> dict[str, _Target]:
    """One pass of the dense network, noting what the aims look at."""
    by_step: dict[Key, list[str]] = {}
    for name, aim in aims.items():
        by_step.setdefault(aim.step, []).append(name)
    order = {name: number for number, name in enumerate(aims)}
    found: dict[str, _Target] = {}

    def after(key: Key, result: Tensor) -> None:
        for name in by_step.get(key, ()):
            values = positions(result, spec_of(network.get_submodule(name)))
            generator = torch.Generator().manual_seed(seed * 1_000_003 + order[name])
            picks = pick(len(values), rows, generator).to(values.device)
            found[name] = _Target(picks, values[picks])

    Recorder(network, after=after).run(forward)
    return found


class _Pass:
    """One pass of the pruned network; a layer is fitted when its turn comes, and runs fitted."""

    def __init__(
        self,
        network: nn.Module,
        flow: Flow,
        aims: Mapping[str, _Aim],
        targets: Mapping[str, _Target],
        keep: NDArray[np.bool_],
    ) -> None:
        self.network, self.flow, self.aims, self.targets, self.keep = network, flow, aims, targets, keep
        self.fitted = {aim.norm for aim in aims.values()}  # norms whose statistics come from the fits
        self.others = {aim.other for aim in aims.values()}
        self.summands: dict[Key, Tensor] = {}

    def run(self, forward: Callable[[], Any]) -> None:
        """Run and fit."""
        Recorder(self.network, before=self._before, after=self._after).run(forward)

    def _before(self, name: str, layer: Any, source: Tensor) -> None:
        if name in self.aims and name in self.targets:
            self._fit(name, self.aims[name], self.targets[name], layer, source)
        elif name not in self.fitted and self.flow.call(name) is not None and has_statistics(layer):
            dim = spec_of(layer).channel_dim % source.dim()
            variance, mean = torch.var_mean(source, [d for d in range(source.dim()) if d != dim])
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)

    def _after(self, key: Key, result: Tensor) -> None:
        if key in self.others:
            self.summands[key] = result

    def _fit(self, name: str, aim: _Aim, target: _Target, layer: nn.Module, source: Tensor) -> None:
        stays = torch.as_tensor(self.keep[aim.outputs], device=target.values.device)
        spec, wanted = spec_of(layer), target.values[:, stays]
        floor = torch.zeros_like(wanted) if aim.rectified else None
        if aim.other is not None:
            other = self.summands.pop(aim.other, None)
            if other is None or other.shape[spec.channel_dim] != wanted.shape[1]:
                self.fitted.discard(aim.norm)
                return  # narrow layers take another way through the network: this one stays as it is
            given = positions(other, spec)[target.picks]
            wanted, floor = wanted - given, None if floor is None else floor - given
        patches = to_features(patches_of(layer, source, target.picks), blocks_of(spec), "full")
        norm = self.network.get_submodule(aim.norm) if aim.norm else None
        fit_layer(layer, norm, patches, wanted, floor=floor)
