"""Sequential refinement: every layer is re-fitted, in order of execution, to what the dense network's layer makes."""

from __future__ import annotations

import copy
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deap_prune.arguments import Count, Seed, checked
from deap_prune.data.batches import (
    Data,
    Forward,
    count_samples,
    default_forward,
    join,
    samples_of,
    to_batches,
)
from deap_prune.data.check_batches import errors_name
from deap_prune.data.unchanged import unchanged
from deap_prune.errors import ConfigError
from deap_prune.randomness import same_draws, seed_draws
from deap_prune.reconstruction.flow import has_statistics
from deap_prune.reconstruction.sampling import images_for, split, survey
from deap_prune.reconstruction.selection import PRIOR, Choice, Selector, find_choices
from deap_prune.reconstruction.sequential import Plan, SequentialFit
from deap_prune.reconstruction.targets import dense_targets, draw_samples, find_aims
from deap_prune.structure.inputs import evaluating
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import narrowed_copy, unwrap
from deap_prune.structure.space import PruningSpace

ROWS = 64
"""Output positions of each image by default; with 16, ResNet-20 loses 1.5 points on CIFAR-100 (validation images)."""
MEMORY = 1.0
"""GB that refinement takes by default."""
CHUNKS = 8  # at least so many chunks of images fit into the memory
CHUNK = 2**26  # most bytes of a chunk: larger tensors are mapped anew every time, and miss the caches


@checked
def refine(
    model: nn.Module,
    space: PruningSpace,
    masks: Masks,
    calibration: Data,
    *,
    start: nn.Module | None = None,
    images: Count = 1000,
    rows: Count = 1000 * ROWS,
    refine_memory: float = MEMORY,
    forward: Forward | None = None,
    seed: Seed = 0,
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

    The images go through both networks in chunks, and wait before each layer until it is fitted. A layer with large
    maps or few features is fitted on fewer rows and images than ``rows`` and ``images``: see
    :mod:`deap_prune.reconstruction.sampling`. Where ``refine_memory`` does not suffice for what waits, some chunks
    start anew for later layers, which takes longer and gives the same network.

    Args:
        model: The dense network that was traced, wrapped or not; it is not changed.
        space: Its space.
        masks: What is kept.
        calibration: Batches or a pair of tensors.
        start: The slimmed network to begin with, such as ``Evaluator.slim(masks)``; ``slim(model, space, masks)`` if
            left out. It is not changed.
        images: Most images to use.
        rows: Most output positions of a layer to fit on.
        refine_memory: Most GB (2^30 bytes) that targets and waiting images take together; half of it for each. One
            chunk of images, one layer's fit and the images themselves come on top.
        forward: Function of (model, batch) to (outputs, targets).
        seed: Seed of the sampling of positions.

    Returns:
        A module of the same classes and shapes as ``start``, in eval mode.

    Raises:
        ConfigError: If images or rows are below 2, or the memory is not positive.
        DataError: If the calibration data is missing or not finite.
        MaskError: If the masks don't fit the space.
    """
    network = unwrap(model)
    refiner = Refiner(
        network, space, calibration, images=images, rows=rows, memory=refine_memory, forward=forward, seed=seed
    )
    return refiner(masks, narrowed_copy(network, space, masks) if start is None else start)


@checked
def select_masks(
    model: nn.Module,
    space: PruningSpace,
    masks: Masks,
    calibration: Data,
    *,
    prior: float = PRIOR,
    images: int = 1000,
    rows: int = 1000 * ROWS,
    refine_memory: float = MEMORY,
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
        refine_memory: Most GB (2^30 bytes) that targets and waiting images take together; half of it for each. One
            chunk of images, one layer's fit and the images themselves come on top.
        forward: Function of (model, batch) to (outputs, targets).
        seed: Seed of the sampling of positions.

    Raises:
        ConfigError: If images or rows are below 2, the memory is not positive, or the prior is negative.
        DataError: If the calibration data is missing or not finite.
        MaskError: If the masks don't fit the space.
    """
    refiner = Refiner(
        unwrap(model), space, calibration, images=images, rows=rows, memory=refine_memory, forward=forward, seed=seed
    )
    return refiner.select(masks, prior=prior)


class Refiner:
    """Refines one candidate after the other; the dense network runs once for all. See :func:`refine`.

    Args:
        network: The dense network, unwrapped.
        space: Its space.
        calibration: Batches or a pair of tensors.
        images: Most images to use.
        rows: Most output positions of a layer.
        memory: GB for targets and waiting images.
        forward: Function of (model, batch) to (outputs, targets).
        seed: Seed of the order of the images, and of the sampling of positions.

    Raises:
        ConfigError: If images or rows are below 2, or the memory is not positive.
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
        memory: float = MEMORY,
        forward: Forward | None = None,
        seed: int = 0,
    ) -> None:
        if images < 2 or rows < 2:
            raise ConfigError(f"images={images}, rows={rows}: refinement needs at least 2 of each")
        if not memory > 0:
            raise ConfigError(f"refine_memory={memory}: refinement needs some memory; 1 (GB) is the default")
        device = next(network.parameters()).device
        self._network, self._space, forward = network, space, forward or default_forward
        batch = join_batches(to_batches(calibration, name="calibration", device=device), images)
        count = count_samples(batch)
        # Sorted images would show early layers the first classes alone.
        batch = samples_of(batch, torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(device))
        with evaluating(network), errors_name("calibration"), same_draws(seed):
            first = partial(unchanged, forward, network, samples_of(batch, slice(2)), name="the network (or forward)")
            seen = survey(network, first, min(2, count))
            self._flow, half = seen.flow, memory * 2**30 / 2
            aims = find_aims(network, space, seen.flow)
            chunks = split(count, min(CHUNK, 2 * half / CHUNKS) / max(1.0, *seen.alive.values()))
            samples = draw_samples(network, aims, seen.positions, images=count, rows=rows, memory=half, seed=seed)
            run = partial(_run, forward, network, batch, seed)
            targets = dense_targets(network, run, aims, samples, chunks)
        self._aims = {name: aim for name, aim in aims.items() if name in targets}
        norms = {
            name: images_for(rows, images=count, per_image=int(seen.positions[name]))
            for name, layer in network.named_modules()
            if has_statistics(layer) and seen.flow.call(name) is not None
        }
        self._plan = Plan(forward, batch, chunks, self._aims, targets, norms, seen.alive, half, seed)

    @cached_property
    def _choices(self) -> tuple[Choice, ...]:
        """The groups whose filters can be selected."""
        return find_choices(self._network, self._space, self._flow, self._aims)

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
        with same_draws(self._plan.seed):
            SequentialFit(network, self._plan, keep, selector).run()


def _run(forward: Forward, network: nn.Module, batch: Any, seed: int, images: range) -> None:
    """Run a network on a range of images, with the draws that the pruned network gets there."""
    seed_draws(seed + images.start)
    forward(network, samples_of(batch, slice(images.start, images.stop)))


def join_batches(batches: list[Any], samples: int) -> Any:
    """The first samples of all batches as one batch."""
    chosen: list[Any] = []
    for batch in batches:
        missing = samples - sum(count_samples(c) for c in chosen)
        if missing > 0:
            chosen.append(samples_of(batch, slice(missing)))
    return join(chosen)
