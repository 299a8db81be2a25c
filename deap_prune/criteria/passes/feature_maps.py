"""Statistics of whole feature maps. They are expensive per image, so the first images are used only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.criteria.passes.context import (
    Calibration,
    StatisticsTable,
    add_statistic,
    channel_maps,
    gathers,
    positions_of,
    without_hooks,
)
from deap_prune.progress import track
from deap_prune.structure.inputs import Call, in_order
from deap_prune.structure.layers import spec_of
from deap_prune.structure.space import Member

MAP_IMAGES = 128  # images for rank and independence
CONTRIBUTION_IMAGES = 16  # images for contributions
CONTRIBUTION_OUTPUTS = 2048  # values of a layer's output, at random places, for contributions
BATCH_SIZE = 16  # images at once
COPIED_VALUES = 2**24  # values of copies of an image's maps in memory at once

Measure = Callable[[nn.Module, Call, Member], Tensor | None]
"""Function of a layer, its call and a member of a group to values of shape (filters, n), or None."""


@gathers("map_rank", "independence")
def feature_maps(calibration: Calibration, needs: frozenset[str]) -> StatisticsTable:
    """Rank and independence of the maps in every next layer's input, mean over the images."""
    measures: dict[str, Measure] = {"map_rank": _ranks, "independence": _independence}
    return _measure_inputs(calibration, {need: measures[need] for need in sorted(needs)}, MAP_IMAGES, "feature maps")


@gathers("contribution")
def contributions(calibration: Calibration, needs: frozenset[str]) -> StatisticsTable:
    """The part of each filter in outputs of a next layer, which is linear in its input, at random places."""

    def measure(layer: nn.Module, call: Call, member: Member) -> Tensor:
        (x, *more_inputs), keywords = call
        clean, dim = without_hooks(layer), spec_of(layer).channel_dim
        zeros = torch.zeros_like(x)
        bias = clean(zeros, *more_inputs, **keywords).flatten()
        generator = torch.Generator().manual_seed(calibration.seed)
        places = torch.randperm(len(bias), generator=generator)[:CONTRIBUTION_OUTPUTS].to(x.device)
        rows = []
        for channels in positions_of(member, x):
            alone = zeros.index_copy(dim, channels, x.index_select(dim, channels))
            rows.append((clean(alone, *more_inputs, **keywords).flatten() - bias)[places])
        return torch.stack(rows)

    return _measure_inputs(calibration, {"contribution": measure}, CONTRIBUTION_IMAGES, "contributions of filters")


@torch.no_grad()
def _measure_inputs(calibration: Calibration, measures: dict[str, Measure], images: int, title: str) -> StatisticsTable:
    """Run the network, and apply each measure to every next layer's input.

    Args:
        calibration: Network and data.
        measures: Statistic to the function that computes it.
        images: Number of images.
        title: Title of the progress bar.

    Returns:
        Contributions as (filters, samples), other statistics as (filters,), the mean over the images.
    """
    values: dict[tuple[int, int, str], list[Tensor]] = {}  # (group, reader, statistic) -> (filters, n) per batch
    readers: dict[str, list[tuple[int, int, Member]]] = {}
    for number, group in enumerate(calibration.space.groups):
        for k, member in enumerate(group.layers("reader")):
            readers.setdefault(member.layer, []).append((number, k, member))

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, name: str) -> None:
        call = in_order(layer, args, kwargs)
        for number, k, member in readers[name]:
            for statistic, measure in measures.items():
                value = measure(layer, call, member)
                if value is not None:
                    values.setdefault((number, k, statistic), []).append(value)

    layers = {name: calibration.network.get_submodule(name) for name in readers}
    handles = [
        layer.register_forward_pre_hook(partial(hook, name=name), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        for batch in track(calibration.first_batches(images, BATCH_SIZE), title, shown=calibration.progress):
            calibration.run(batch)
    finally:
        for handle in handles:
            handle.remove()
    table: StatisticsTable = {}
    for (number, k, statistic), parts in sorted(values.items()):
        group, joined = calibration.space.groups[number], torch.cat(parts, dim=1)
        value = joined if statistic == "contribution" else joined.mean(dim=1)
        add_statistic(table, group, statistic, value, group.layers("reader")[k])
    return table


def _ranks(layer: nn.Module, call: Call, member: Member) -> Tensor | None:
    """Rank of every filter's maps, shape (filters, images); None if the input has no two-dimensional maps."""
    maps = call[0][0].movedim(spec_of(layer).channel_dim, 1)
    if maps.dim() < 4 or min(maps.shape[-2:]) < 2:
        return None
    chosen = maps[:, positions_of(member, maps)]  # (images, filters, uses, ..., height, width)
    ranks = torch.linalg.matrix_rank(chosen).double()
    return ranks.flatten(2).mean(dim=2).T


def _independence(layer: nn.Module, call: Call, member: Member) -> Tensor:
    """Nuclear norm of the (filters, positions) matrix minus that without row i, shape (filters, images)."""
    maps = channel_maps(layer, call[0][0])
    columns = []
    for image in maps[:, positions_of(member, maps)].flatten(2):
        rows = torch.linalg.qr(image.T).R.T  # the same singular values, with at most as many columns as rows
        one_out = 1 - torch.eye(len(rows), device=rows.device, dtype=rows.dtype)
        parts = one_out.split(max(1, COPIED_VALUES // rows.numel()))  # bounds the memory
        without = torch.cat([torch.linalg.svdvals(rows * part.unsqueeze(2)).sum(dim=1) for part in parts])
        columns.append(torch.linalg.svdvals(rows).sum() - without)
    return torch.stack(columns, dim=1).double()
