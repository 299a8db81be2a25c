"""Sequential refinement: every layer is re-fitted, in order of execution, to what the dense network's layer makes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cached_property, partial
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
from deap_prune.reconstruction.matrix import blocks_of, patches_of, positions, to_features
from deap_prune.reconstruction.selection import PRIOR, Choice, Selector, find_choices
from deap_prune.reconstruction.targets import Aim, Target, dense_targets, find_aims
from deap_prune.structure.inputs import evaluating
from deap_prune.structure.layers import spec_of
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import narrowed_copy, unwrap
from deap_prune.structure.space import PruningSpace


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
    """Re-fit the layers of a slimmed network, in order of execution, to what the dense network's layers make.

    One pass of the dense network stores the targets: at sampled positions, what each convolution and linear layer
    makes, after the batch normalisation that follows it and after the addition in which a shortcut meets it. Then one
    pass of the pruned network: when a layer is about to run, it is fitted by ridge regression from what it is about to
    read, all errors made so far included, to its target less the other summand as the pruned network has it. So the
    shortcut's error is compensated too. Where a rectifier alone reads the result, values below 0 in the dense network
    only have to be below 0 (see :func:`fit_layer`). Images held out from a layer's fit decide on its ridge. A layer
    that no fit improves there stays as it is, and so does one that the pruned network reaches by other steps than the
    dense one. Normalisations take up the constant, and end with the statistics of what they read. Labels are not used.

    All images go through both networks in one batch; the targets take 4 bytes x rows x outputs for each layer.

    Args:
        model: The dense network that was traced, wrapped or not; it is not changed.
        space: Its space.
        masks: What is kept.
        calibration: Batches or a pair of tensors.
        start: The slimmed network to begin with, such as ``Evaluator.slim(masks)``; ``slim(model, space, masks)`` if
            left out. It is not changed.
        images: Most images to use.
        rows: Most output positions of a layer to fit on.
        forward: Function of (model, batch) to (outputs, targets).
        seed: Seed of the sampling of positions.

    Returns:
        A module of the same classes and shapes as ``start``, in eval mode.

    Raises:
        ConfigError: If images or rows are below 2.
        DataError: If the calibration data is missing or not finite.
        MaskError: If the masks don't fit the space.
    """
    network = unwrap(model)
    refiner = Refiner(network, space, calibration, images=images, rows=rows, forward=forward, seed=seed)
    return refiner(masks, narrowed_copy(network, space, masks) if start is None else start)


def select_masks(
    model: nn.Module,
    space: PruningSpace,
    masks: Masks,
    calibration: Data,
    *,
    prior: float = PRIOR,
    images: int = 1000,
    rows: int = 16_000,
    forward: Forward | None = None,
    seed: int = 0,
) -> Masks:
    """Masks of the same widths whose filters are selected inside a refinement, when their reader's turn comes.

    A filter's cost is the error that its removal leaves in the reader's target, the kept filters re-fitted, on what the
    pruned network gives the reader. Groups with several readers, and groups that the pruned network cannot hold open
    until then, keep their masks; they are named in the log.

    Args:
        model: The dense network that was traced, wrapped or not; it is not changed.
        space: Its space.
        masks: How many filters of each group stay, and which are preferred.
        calibration: Batches or a pair of tensors.
        prior: A filter that the masks keep counts as (1 + prior) times its cost: 0 for the live cost alone; a large
            number keeps the masks.
        images: Most images to use.
        rows: Most output positions of a layer to fit on.
        forward: Function of (model, batch) to (outputs, targets).
        seed: Seed of the sampling of positions.

    Raises:
        ConfigError: If images or rows are below 2, or the prior is negative.
        DataError: If the calibration data is missing or not finite.
        MaskError: If the masks don't fit the space.
    """
    refiner = Refiner(unwrap(model), space, calibration, images=images, rows=rows, forward=forward, seed=seed)
    return refiner.select(masks, prior=prior)


class Refiner:
    """Refines one candidate after the other; the dense network runs once for all. See :func:`refine`.

    Args:
        network: The dense network, unwrapped.
        space: Its space.
        calibration: Batches or a pair of tensors.
        images: Most images to use.
        rows: Most output positions of a layer.
        forward: Function of (model, batch) to (outputs, targets).
        seed: Seed of the sampling of positions.

    Raises:
        ConfigError: If images or rows are below 2.
        DataError: If the calibration data is missing or not finite.
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
        if images < 2 or rows < 2:
            raise ConfigError(f"images={images}, rows={rows}: refinement needs at least 2 of each")
        device = next(network.parameters()).device
        self._network, self._space, self._forward = network, space, forward or default_forward
        self._batch = join_batches(to_batches(calibration, name="calibration", device=device), images)
        with evaluating(network):
            self._flow = record(network, partial(self._forward, network, samples_of(self._batch, slice(2))))
            self._aims = find_aims(network, space, self._flow)
            run = partial(self._forward, network, self._batch)
            self._targets = dense_targets(network, run, self._aims, rows=rows, seed=seed)

    @cached_property
    def _choices(self) -> tuple[Choice, ...]:
        """The groups whose filters can be selected."""
        return find_choices(self._network, self._space, self._flow, self._aims)

    @property
    def nbytes(self) -> int:
        """Memory of the images and of the targets, in bytes."""
        images = tensors_of(self._batch)
        return sum(t.numel() * t.element_size() for t in (*images, *(t.values for t in self._targets.values())))

    def __call__(self, masks: Masks, start: nn.Module) -> nn.Module:
        """A refined copy, in eval mode, of the network slimmed by the masks."""
        return self.refine(masks, start)[0]

    @torch.no_grad()
    def refine(
        self, masks: Masks, start: nn.Module, *, select: bool = False, prior: float = PRIOR
    ) -> tuple[nn.Module, Masks]:
        """Refine, and on the way select the filters; see :func:`select_masks`.

        Args:
            masks: What is kept; with ``select``, how many filters of each group, and which are preferred.
            start: The network slimmed by the masks; it is not changed.
            select: Whether to select filters.
            prior: Preference for the masks' filters, from 0 up.

        Returns:
            The refined network in eval mode, and its masks.

        Raises:
            ConfigError: If the prior is negative.
            MaskError: If the masks don't fit the space.
        """
        if not prior >= 0:
            raise ConfigError(f"prior={prior}: the preference for the masks' filters is a number from 0 up")
        if not select:
            small, keep = copy.deepcopy(start).eval(), self._space.kept(masks)
            self._pass(small, keep, None)
            return small, masks
        selector = Selector(self._network, self._space, self._choices, masks, prior=prior)
        small = selector.begin(start, self._aims)
        self._pass(small, selector.wide, selector)
        selector.finish(small)
        return small, selector.masks

    def select(self, masks: Masks, *, prior: float = PRIOR) -> Masks:
        """Masks of the same widths with selected filters; see :func:`select_masks`.

        Args:
            masks: How many filters of each group stay, and which are preferred.
            prior: Preference for the masks' filters, from 0 up.
        """
        return self.refine(masks, narrowed_copy(self._network, self._space, masks), select=True, prior=prior)[1]

    def _pass(self, network: nn.Module, keep: NDArray[np.bool_], selector: Selector | None) -> None:
        """Run the pruned network once; its layers are fitted when their turn comes."""
        pass_ = _Pass(network, self._flow, self._aims, self._targets, keep, selector)
        pass_.run(partial(self._forward, network, self._batch))


def join_batches(batches: list[Any], samples: int) -> Any:
    """The first samples of all batches as one batch."""
    chosen: list[Any] = []
    for batch in batches:
        missing = samples - sum(count_samples(c) for c in chosen)
        if missing > 0:
            chosen.append(samples_of(batch, slice(missing)))
    return join(chosen)


class _Pass:
    """One pass of the pruned network; a layer is fitted when its turn comes, and runs fitted.

    Args:
        network: The pruned network; its layers are changed in place.
        flow: Flow of the dense network.
        aims: Aims by layer name.
        targets: Targets by layer name.
        keep: Channels that the network has, by id.
        selector: Selects filters of groups that are still whole; None if there are none.
    """

    def __init__(
        self,
        network: nn.Module,
        flow: Flow,
        aims: Mapping[str, Aim],
        targets: Mapping[str, Target],
        keep: NDArray[np.bool_],
        selector: Selector | None,
    ) -> None:
        self.network, self.flow, self.aims, self.targets, self.keep = network, flow, aims, targets, keep
        self.selector = selector
        self.fitted = {aim.norm for aim in aims.values()}  # norms whose statistics come from the fits
        self.meeting = {aim.summand for aim in aims.values()}
        self.summands: dict[Key, Tensor] = {}

    def run(self, forward: Callable[[], Any]) -> None:
        """Run and fit."""

        def narrowing() -> Any:
            handles = [] if self.selector is None else self.selector.narrowing(self.network)
            try:
                return forward()
            finally:
                for handle in handles:
                    handle.remove()

        # Its hooks come first: they see the whole input, and the selector's hooks then narrow it.
        Recorder(self.network, before=self._before, after=self._after).run(narrowing)

    def _before(self, name: str, layer: Any, source: Tensor) -> None:
        if name in self.aims and name in self.targets:
            self._fit(name, self.aims[name], self.targets[name], layer, source)
        elif name not in self.fitted and self.flow.call(name) is not None and has_statistics(layer):
            dim = spec_of(layer).channel_dim % source.dim()
            variance, mean = torch.var_mean(source, [d for d in range(source.dim()) if d != dim])
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)

    def _after(self, key: Key, result: Tensor) -> None:
        if key in self.meeting:
            self.summands[key] = result

    def _fit(self, name: str, aim: Aim, target: Target, layer: Any, source: Tensor) -> None:
        stays = torch.as_tensor(self.keep[aim.outputs], device=target.values.device)
        spec, values = spec_of(layer), target.values[:, stays]
        floor = torch.zeros_like(values) if aim.rectified else None
        if aim.summand is not None:
            summand = self.summands.pop(aim.summand, None)
            if summand is None or summand.shape[spec.channel_dim] != values.shape[1]:
                self.fitted.discard(aim.norm)
                return  # narrow layers take another way through the network: this one stays as it is
            added = positions(summand, spec)[target.picks]
            values, floor = values - added, None if floor is None else floor - added
        norm = self.network.get_submodule(aim.norm) if aim.norm else None
        if self.selector is None or not self.selector.opens(name):
            patches = to_features(patches_of(layer, source, target.picks), blocks_of(spec), "full")
            fit_layer(layer, norm, patches, values, floor=floor)
            return
        places = self.selector.select(name, layer, norm, source, target.picks, values)
        read = source.index_select(spec.channel_dim, torch.as_tensor(places, device=source.device))
        patches = to_features(patches_of(layer, read, target.picks), blocks_of(spec_of(layer)), "full")
        fit_layer(layer, norm, patches, values, floor=floor)
