"""One pass of a pruned network in chunks of images; a layer is fitted when all chunks that it needs wait before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.data.batches import Forward, samples_of
from deap_prune.deadline import check_deadline
from deap_prune.randomness import seed_draws
from deap_prune.reconstruction.fit import fit_layer
from deap_prune.reconstruction.flow import Key, Recorder
from deap_prune.reconstruction.matrix import blocks_of, patches_of, positions, rows_at, to_features
from deap_prune.reconstruction.passage import Passage
from deap_prune.reconstruction.selection import Selector
from deap_prune.reconstruction.targets import Aim, Target
from deap_prune.structure.inputs import copied
from deap_prune.structure.layers import spec_of


@dataclass(frozen=True, eq=False)
class Plan:
    """What all passes of one refinement have in common.

    Attributes:
        forward: Function of (model, batch) to (outputs, targets).
        batch: All images.
        chunks: Ranges of images that go through the network together.
        aims: Aims by name of the layers that are fitted.
        targets: Their targets.
        norms: Numbers of images by name of the normalisations whose statistics may be re-estimated.
        alive: Bytes that an image takes while it waits before a layer, by its name.
        memory: Most bytes that all waiting images take.
        seed: Seed of what the network and ``forward`` draw; each chunk adds the number of its first image.
    """

    forward: Forward
    batch: Any
    chunks: Sequence[range]
    aims: Mapping[str, Aim]
    targets: Mapping[str, Target]
    norms: Mapping[str, int]
    alive: Mapping[str, float]
    memory: float
    seed: int = 0

    @cached_property
    def summands(self) -> Mapping[Key, list[str]]:
        """The layers whose target is an addition, by the step of the other summand."""
        layers: dict[Key, list[str]] = {}
        for name, aim in self.aims.items():
            if aim.summand is not None:
                layers.setdefault(aim.summand, []).append(name)
        return layers

    def images(self, name: str) -> int:
        """The number of images that a layer needs."""
        return self.targets[name].sample.images if name in self.targets else self.norms[name]


@dataclass(frozen=True, eq=False)
class _Rows:
    """What a layer reads in one chunk: patches (rows, channels, taps), the other summand (rows, outputs), and where."""

    patches: Tensor
    summand: Tensor | None
    rows: slice


@dataclass(frozen=True, eq=False)
class _Statistics:
    """Count, mean and summed squared deviation of what a normalisation reads, by channel."""

    count: int
    mean: Tensor
    square: Tensor

    @classmethod
    def of(cls, values: Tensor) -> _Statistics:
        """Of values (rows, channels)."""
        variance, mean = torch.var_mean(values, dim=0, correction=0)
        return cls(len(values), mean.double(), variance.double() * len(values))  # half precision would overflow

    def __add__(self, other: _Statistics) -> _Statistics:
        count, gap = self.count + other.count, other.mean - self.mean
        square = self.square + other.square + gap.square() * (self.count * other.count / count)
        return _Statistics(count, self.mean + gap * (other.count / count), square)


class SequentialFit:
    """Fits the layers of one pruned network, in the order of execution.

    The images go through the network in chunks. A chunk runs until it is about to run a layer that is not fitted yet.
    When all chunks that this layer needs wait there, it is fitted, and they go on. Where memory does not suffice for
    the tensors of all that wait, the last chunks are given up; they start anew when a later layer needs them.

    Args:
        network: The pruned network; its layers are changed in place.
        plan: What all passes have in common.
        keep: Channels that the network has, by id.
        selector: Selects filters of groups that are still whole; None if there are none.
    """

    def __init__(self, network: nn.Module, plan: Plan, keep: NDArray[np.bool_], selector: Selector | None) -> None:
        self.network, self.plan, self.selector = network, plan, selector
        norms = {aim.norm for aim in plan.aims.values()}
        self.pending = {*plan.aims, *(name for name in plan.norms if name not in norms)}
        self._keep = keep
        self._chunks = [_Chunk(self, images) for images in plan.chunks]

    def run(self) -> None:
        """Fit all layers; TimeIsUpError if the caller's deadline passes."""
        try:
            while self.pending and (leader := next((c for c in self._chunks if not c.finished), None)) is not None:
                check_deadline()
                leader.advance()
                if (name := leader.at) is not None:
                    self._fit(name) if name in self.plan.aims else self._set_statistics(name)
                    self.pending.discard(name)
                    for chunk in self._chunks:
                        chunk.reads.pop(name, None)
        finally:
            for chunk in self._chunks:
                chunk.give_up()

    def _set_statistics(self, name: str) -> None:
        """Let a normalisation have the statistics of what it reads."""
        parts = self._gather(name, self._needed(name))
        if not parts:  # no chunk reads it
            return
        total = sum(parts[1:], parts[0])
        norm: Any = self.network.get_submodule(name)
        norm.running_mean.copy_(total.mean)
        norm.running_var.copy_(total.square / max(total.count - 1, 1))

    def _fit(self, name: str) -> None:
        """Fit a layer; before that, select what it reads, if that is open."""
        aim, layer = self.plan.aims[name], self.network.get_submodule(name)
        norm = self.network.get_submodule(aim.norm) if aim.norm else None
        if self.selector is not None and self.selector.opens(name):
            self._select(name, self.selector, norm)
        parts: list[_Rows] = self._gather(name, self._needed(name))
        aimed = self._target(name, parts)
        if aimed is None:  # narrow layers take another way through the network: this one stays as it is
            self.pending |= {norm for norm in self.plan.norms if norm == aim.norm}
            return
        patches = torch.cat([part.patches for part in parts])
        fit_layer(layer, norm, to_features(patches, blocks_of(spec_of(layer)), "full"), aimed[0], floor=aimed[1])

    def _select(self, name: str, selector: Selector, norm: nn.Module | None) -> None:
        """Select on the chunks that have passed the group's first layer, and on as many as the selection needs."""
        sample, rows = self.plan.targets[name].sample, selector.rows(name)
        needed = [c for c in self._needed(name) if sample.rows(c.images).start < rows]
        parts: list[_Rows] = self._gather(name, needed)
        for chunk in self._chunks:
            if name in chunk.inside and chunk not in needed:
                self._gather(name, [chunk])
                if chunk.at != name:
                    chunk.give_up()
        aimed = self._target(name, parts)
        if aimed is None:
            return
        patches, target = torch.cat([part.patches for part in parts])[:rows], aimed[0][:rows]
        stays = torch.as_tensor(selector.select(name, self.network, norm, patches, target), device=patches.device)
        for chunk in self._chunks:
            chunk.narrow(name, stays)

    def _needed(self, name: str) -> list[_Chunk]:
        """The chunks that a layer needs."""
        return [chunk for chunk in self._chunks if chunk.images.start < self.plan.images(name)]

    def _gather(self, name: str, chunks: Sequence[_Chunk]) -> list[Any]:
        """What a layer reads in these chunks."""
        for chunk in chunks:
            if name not in chunk.reads:
                chunk.advance()
                self._make_room()
        return [chunk.reads[name] for chunk in chunks if name in chunk.reads]

    def _make_room(self) -> None:
        """Give up the last of the chunks that wait, until the others are within the memory."""
        waiting = [chunk for chunk in self._chunks if chunk.at is not None]
        while len(waiting) > 1 and sum(chunk.nbytes for chunk in waiting) > self.plan.memory:
            waiting.pop().give_up()

    def _target(self, name: str, parts: Sequence[_Rows]) -> tuple[Tensor, Tensor | None] | None:
        """Target and floor at the rows of the chunks, (rows, outputs); None without rows or the other summand."""
        if not parts:
            return None
        aim, target = self.plan.aims[name], self.plan.targets[name]
        stays = torch.as_tensor(self._keep[aim.outputs], device=target.values.device)
        values = torch.cat([target.values[part.rows] for part in parts])[:, stays]
        floor = torch.zeros_like(values) if aim.rectified else None
        if aim.summand is None:
            return values, floor
        summands = [part.summand for part in parts if part.summand is not None]
        if len(summands) < len(parts) or summands[0].shape[1] != values.shape[1]:
            return None
        added = torch.cat(summands)
        return values - added, None if floor is None else floor - added


class _Chunk:
    """A range of images on its way through the pruned network.

    The chunk runs a view of the network that shares all tensors: networks may note things about the images that they
    see now in attributes.

    Attributes:
        images: The images.
        reads: What layers that are not fitted yet read, by name.
        inside: Readers of groups that were whole when the chunk ran the layers that make them.
    """

    def __init__(self, fit: SequentialFit, images: range) -> None:
        self.images = images
        self.reads: dict[str, _Rows | _Statistics] = {}
        self.inside: set[str] = set()
        self._fit, self._summands = fit, dict[str, Tensor]()
        self._passage: Passage | None = None

    @cached_property
    def _view(self) -> nn.Module:
        network = self._fit.network
        return copied(network, {id(t): t for t in (*network.parameters(), *network.buffers())}).eval()

    @property
    def at(self) -> str | None:
        """The layer before which the chunk waits, or None."""
        return None if self._passage is None else self._passage.at

    @property
    def finished(self) -> bool:
        """Whether it has come to the end."""
        return self._passage is not None and self._passage.finished

    @property
    def nbytes(self) -> float:
        """Bytes of the tensors between layers, while the chunk waits."""
        return self._fit.plan.alive.get(self.at or "", 0.0) * len(self.images)

    def advance(self) -> None:
        """Run up to the next layer that is not fitted yet, if the chunk does not wait before it."""
        if self._passage is None:
            self._passage = Passage(self._run, next(self._fit.network.parameters()).device)
        if self.at not in self._fit.pending:
            self._passage.advance()

    def give_up(self) -> None:
        """Free what the chunk holds; it can start anew."""
        if self._passage is not None:
            self._passage.close()
        self._passage = None
        self._summands.clear()
        self.inside.clear()

    def narrow(self, reader: str, stays: Tensor) -> None:
        """Follow a selection: of what the reader has read, only the channels in these places stay."""
        if isinstance(read := self.reads.get(reader), _Rows):
            self.reads[reader] = replace(read, patches=read.patches.index_select(1, stays))
        self.inside.discard(reader)
        if self._fit.selector is not None:
            self._fit.selector.rewrite(self._view)

    def _run(self) -> None:
        plan, images = self._fit.plan, slice(self.images.start, self.images.stop)
        recorder = Recorder(self._view, before=self._before, after=self._after)

        def forward() -> None:
            # The recorder's hooks come first: they see the whole input, and the selector's then narrow it.
            handles = [] if self._fit.selector is None else self._fit.selector.narrowing(self._view)
            try:
                seed_draws(plan.seed + images.start)
                plan.forward(self._view, samples_of(plan.batch, images))
            finally:
                for handle in handles:
                    handle.remove()

        recorder.run(forward)

    def _before(self, name: str, layer: nn.Module, source: Tensor) -> None:
        if name in self._fit.pending and self._passage is not None:
            if self.images.start < self._fit.plan.images(name):
                self.reads[name] = self._read(name, layer, source)
            self._passage.wait(name)
        fitted = vars(self._fit.network.get_submodule(name))
        vars(layer).update({key: value for key, value in fitted.items() if "hook" not in key})
        if self._fit.selector is not None:
            self.inside.update(self._fit.selector.makers(name))

    def _read(self, name: str, layer: nn.Module, source: Tensor) -> _Rows | _Statistics:
        plan = self._fit.plan
        if name not in plan.aims:
            used = min(self.images.stop, plan.images(name)) - self.images.start
            return _Statistics.of(positions(source[: len(source) * used // len(self.images)], spec_of(layer)))
        sample = plan.targets[name].sample
        patches = patches_of(layer, source, sample.of(self.images).to(source.device))
        return _Rows(patches, self._summands.pop(name, None), sample.rows(self.images))

    def _after(self, key: Key, result: Tensor) -> None:
        for name in self._fit.plan.summands.get(key, ()):
            if name in self._fit.pending:
                sample, spec = self._fit.plan.targets[name].sample, spec_of(self._fit.network.get_submodule(name))
                if result.numel() == sample.per_image * len(self.images) * result.shape[spec.channel_dim]:
                    self._summands[name] = rows_at(result, spec, sample.of(self.images))
