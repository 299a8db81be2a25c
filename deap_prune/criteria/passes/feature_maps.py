"""Passes over whole feature maps, image by image: they cost much an image, so they take the first images only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.criteria.passes.context import Calibration, Found, add, channel_maps, gathers, index_of, unhooked
from deap_prune.progress import track
from deap_prune.structure.inputs import Call, in_order
from deap_prune.structure.layers import spec_of
from deap_prune.structure.space import Member

IMAGES = 128  # for ranks and independence
FEW = 16  # images at once, and images for the contributions
DRAWN = 2048  # outputs of a layer for the contributions

Look = Callable[[nn.Module, Call, Member], Tensor | None]

CHIP_VALUES = 2**24  # of copies of an image's maps at a time


@gathers("map_rank", "independence")
def feature_maps(calibration: Calibration, needs: frozenset[str]) -> Found:
    """Rank and independence of the maps that every next layer reads, mean over the images."""
    looks: dict[str, Look] = {"map_rank": _ranks, "independence": _independence}
    return _look(calibration, {need: looks[need] for need in sorted(needs)}, IMAGES, "feature maps")


@gathers("contribution")
def contributions(calibration: Calibration, needs: frozenset[str]) -> Found:
    """What each filter alone adds to outputs of a next layer, drawn at random; the layer is linear in what it reads."""

    def look(layer: nn.Module, call: Call, member: Member) -> Tensor:
        (x, *others), named = call
        clean, dim = unhooked(layer), spec_of(layer).channel_dim
        nothing = torch.zeros_like(x)
        bias = clean(nothing, *others, **named).flatten()
        generator = torch.Generator().manual_seed(calibration.seed)
        drawn = torch.randperm(len(bias), generator=generator)[:DRAWN].to(x.device)
        rows = []
        for positions in index_of(member, x):
            alone = nothing.index_copy(dim, positions, x.index_select(dim, positions))
            rows.append((clean(alone, *others, **named).flatten() - bias)[drawn])
        return torch.stack(rows)

    return _look(calibration, {"contribution": look}, FEW, "contributions of filters")


@torch.no_grad()
def _look(calibration: Calibration, looks: dict[str, Look], images: int, title: str) -> Found:
    """Show what every next layer reads to each look, while it is at hand, and join what they say."""
    values: dict[tuple[int, int, str], list[Tensor]] = {}
    readers: dict[str, list[tuple[int, int, Member]]] = {}
    for number, group in enumerate(calibration.space.groups):
        for k, member in enumerate(group.layers("reader")):
            readers.setdefault(member.layer, []).append((number, k, member))

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, name: str) -> None:
        call = in_order(layer, args, kwargs)
        for number, k, member in readers[name]:
            for need, look in looks.items():
                value = look(layer, call, member)
                if value is not None:
                    values.setdefault((number, k, need), []).append(value)

    layers = {name: calibration.network.get_submodule(name) for name in readers}
    handles = [
        layer.register_forward_pre_hook(partial(hook, name=name), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        for batch in track(calibration.first(images, FEW), title, shown=calibration.progress):
            calibration.run(batch)
    finally:
        for handle in handles:
            handle.remove()
    found: Found = {}
    for (number, k, need), parts in sorted(values.items()):
        group, joined = calibration.space.groups[number], torch.cat(parts, dim=1)
        value = joined if need == "contribution" else joined.mean(dim=1)
        add(found, group, need, value, group.layers("reader")[k])
    return found


def _ranks(layer: nn.Module, call: Call, member: Member) -> Tensor | None:
    """Rank of every filter's maps, (filters, images); None where they are not two-dimensional."""
    maps = call[0][0].movedim(spec_of(layer).channel_dim, 1)
    if maps.dim() < 4 or min(maps.shape[-2:]) < 2:
        return None
    chosen = maps[:, index_of(member, maps)]  # (images, filters, uses, ..., height, width)
    ranks = torch.linalg.matrix_rank(chosen).double()
    return ranks.flatten(2).mean(dim=2).T


def _independence(layer: nn.Module, call: Call, member: Member) -> Tensor:
    """Nuclear norm of (filters, positions) less that without row i, (filters, images)."""
    maps = channel_maps(layer, call[0][0])
    found = []
    for image in maps[:, index_of(member, maps)].flatten(2):
        rows = torch.linalg.qr(image.T).R.T  # the same singular values, in no more columns than rows
        one_out = 1 - torch.eye(len(rows), device=rows.device, dtype=rows.dtype)
        parts = one_out.split(max(1, CHIP_VALUES // rows.numel()))  # bounded memory
        without = torch.cat([torch.linalg.svdvals(rows * part.unsqueeze(2)).sum(dim=1) for part in parts])
        found.append(torch.linalg.svdvals(rows).sum() - without)
    return torch.stack(found, dim=1).double()
