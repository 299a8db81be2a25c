"""What every consumer of filters reads, in second moments: collected once, on the dense network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.data.batches import Forward, count_samples, default_forward, tensors_of
from deap_prune.errors import ConfigError, DataError
from deap_prune.reconstruction.flow import Flow, Key, Recorder
from deap_prune.reconstruction.matrix import (
    Form,
    features,
    pick,
    pieces,
    positions,
    refittable,
    to_features,
    to_matrix,
)
from deap_prune.reconstruction.shortcuts import Crossing, Shortcut, find_meetings
from deap_prune.structure.inputs import evaluating, in_order
from deap_prune.structure.layers import describe_layer, spec_of
from deap_prune.structure.slim import check_network
from deap_prune.structure.space import LayerChannels, PruningSpace

log = logging.getLogger("deap_prune")
MODES = ("auto", "full", "channel")
MEMORY = 2 * 1024**3


@dataclass(frozen=True, eq=False)
class LayerGram:
    """Moments of what one layer reads (its input patches, with their own stride, padding and dilation).

    Attributes:
        channels: The layer's entry in the space: its name, and the channels it reads and makes.
        form: ``"full"``: a feature is an input at a kernel tap; ``"channel"``: an input, all taps alike.
        taps: Kernel taps.
        mean: Of the features, shape (blocks, n).
        moments: What a fit minimises, (blocks, n, n): the features' covariance where an intercept takes up the mean,
            else raw second moments.
        weight: The dense weights, (blocks, n, outputs of a block, 1 or taps); a view of the layer's where that can be.
        bias: Whether the layer has one.
        norm: The batch normalisation that alone reads the layer's output, with its dense statistics; or None.
        rows: How many rows of features the moments are of, in each block.
        shortcut: What a shortcut that may lose channels adds to the outputs; or None.
    """

    channels: LayerChannels
    form: Form
    taps: int
    mean: Tensor
    moments: Tensor
    weight: Tensor
    bias: bool
    norm: tuple[str, Tensor, Tensor] | None
    rows: int
    shortcut: Shortcut | None = None

    @property
    def scarcity(self) -> float:
        """How many times the usual ridge it takes: 1 from 17 rows for each feature up, 300 where there is just one.

        Moments of few rows fit their own noise. By ResNet-20 on CIFAR-10 (benchmarks/RESULTS.md): with 0.5, 1, 2 and 4
        rows for each feature the loss is smallest at 600, 300, 60 and 10 times, with 20 at 1.
        """
        return max(1.0, 300 * (self.mean.shape[1] / self.rows) ** 2)

    @property
    def intercept(self) -> bool:
        """Whether a constant can be added to the outputs: by the bias, or by the statistics of the normalisation."""
        return self.bias or self.norm is not None

    @cached_property
    def cross(self) -> Tensor:
        """Moments of the features with the dense outputs, in the shape of ``weight``."""
        return (self.moments @ self.weight.flatten(2)).view_as(self.weight)

    @cached_property
    def energy(self) -> Tensor:
        """Variance of each dense output (mean square, without an intercept), shape (blocks, outputs of a block)."""
        return (self.weight * self.cross).sum(dim=(1, 3))

    @cached_property
    def level(self) -> Tensor:
        """Mean of each dense output, without the bias, shape (blocks, outputs of a block)."""
        return torch.einsum("bn,bnot->bo", self.mean, self.weight)


@dataclass(frozen=True, eq=False)
class Grams:
    """The moments of every layer that reads a filter group, or meets a shortcut with one, by layer name."""

    layers: Mapping[str, LayerGram]

    @property
    def nbytes(self) -> int:
        """Memory of the matrices, in bytes."""
        return sum(g.moments.numel() * g.moments.element_size() for g in self.layers.values())

    def tell_variances(self, network: nn.Module, space: PruningSpace) -> bool:
        """Whether BN statistics follow from them: not by channel, and not after depthwise layers, which have none.

        Args:
            network: The dense network.
            space: Its space.
        """
        full = all(gram.form == "full" or gram.taps == 1 for gram in self.layers.values())
        specs = (refittable(network.get_submodule(e.name)) for e in space.layers if e.dim is None)
        return full and not any(spec is not None and spec.coupled for spec in specs)


def places(gram: LayerGram, keep: NDArray[np.bool_]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Numbers of the features kept and gone and of the kept outputs, each (blocks, n); None if nothing is missing.

    Args:
        gram: A layer.
        keep: Channels that stay, by id; see ``PruningSpace.kept``.
    """
    blocks = len(gram.weight)
    stays = keep[gram.channels.inputs].reshape(blocks, -1)
    if stays.all() and (gram.shortcut is None or gram.shortcut.lost(keep) is None):
        return None
    outputs = keep[gram.channels.outputs].reshape(blocks, -1)
    numbers = [np.nonzero(each)[1].reshape(blocks, -1) for each in (stays, ~stays, outputs)]
    read = [features(each, gram.taps, gram.form) for each in numbers[:2]]
    kept, gone, made = (torch.as_tensor(each, device=gram.weight.device) for each in (*read, numbers[2]))
    return kept, gone, made


@torch.no_grad()
def collect_grams(
    network: nn.Module,
    space: PruningSpace,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    mode: Literal["auto", "full", "channel"] = "auto",
    memory: int = MEMORY,
    rows: float = 20.0,
    seed: int = 0,
) -> Grams:
    """Second moments of what each layer that reads a filter group sees, in one forward pass of the dense network.

    Output positions are sampled, evenly over the images: the patches of all positions would cost several times the
    layer itself, and ``rows`` positions for each unknown weight of an output tell as much. A layer whose output is
    not its patches times its weight (a subclass with a forward pass of its own) is left out, with a line in the log.

    Args:
        network: The network that was traced, unwrapped; it comes back unchanged.
        space: Its space.
        batches: Calibration batches on its device; targets are not looked at.
        forward: Function of (model, batch) to (outputs, targets).
        mode: ``"full"``: patches as the layer reads them; ``"channel"``: channels alone, memory divided by the
            square of the kernel's taps; ``"auto"``: full; by channel where there are fewer output positions than
            features (a fit would follow the noise), and the largest layers where memory would not suffice.
        memory: For ``"auto"``: most bytes that all matrices may take.
        rows: Sampled positions for each input feature of a layer.
        seed: Of the sampling.

    Raises:
        ConfigError: If the mode is unknown, or memory or rows are not positive.
        DataError: If there are no batches.
        MaskError: If the space is another network's.
    """
    if mode not in MODES or memory <= 0 or rows <= 0:
        raise ConfigError(f"mode={mode!r}, memory={memory}, rows={rows}: a mode of {MODES}, and positive numbers")
    check_network(network, space)
    batches, forward = list(batches), forward or default_forward
    if not batches:
        raise DataError("no calibration batches to collect from; give at least one")
    samples = np.array([count_samples(batch) for batch in batches], dtype=np.float64)
    with evaluating(network):
        flow, made = _survey(network, partial(forward, network, batches[0]))
        meetings = find_meetings(network, flow, space.layers)
        entries = {e.name: e for e in space.layers if _can_refit(network, e, meetings)}
        positions = {name: made.get(name, 0) * samples.sum() / samples[0] for name in entries}
        forms = _forms(network, positions, mode, memory)
        crossings = {name: Crossing(network, meeting) for name, meeting in meetings.items()}
        sums = {n: _Sums(network.get_submodule(n), n, form, crossings.get(n)) for n, form in forms.items()}
        for number, batch in enumerate(batches):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            handles = [s.listen(rows * samples[number] / samples.sum(), generator) for s in sums.values()]
            handles += [crossing.listen() for crossing in crossings.values()]
            try:
                forward(network, batch)
            finally:
                for handle in handles:
                    handle.remove()
    return Grams({name: s.gram(entries[name], network, flow) for name, s in sums.items() if s.rows})


def _can_refit(network: nn.Module, entry: LayerChannels, meetings: Container[str]) -> bool:
    """Whether a layer that can be re-fitted mixes channels of a group, or makes what a shortcut with some meets."""
    spec = refittable(network.get_submodule(entry.name)) if entry.dim is None else None
    return spec is not None and not spec.coupled and (bool((entry.inputs >= 0).any()) or entry.name in meetings)


def _survey(network: nn.Module, forward: Callable[[], Any]) -> tuple[Flow, Mapping[str, int]]:
    """The flow of a forward pass, and how many output positions each layer made."""
    made: dict[str, int] = {}

    def after(key: Key, result: Tensor) -> None:
        name, spec = key[0], specs.get(key[0])
        if spec is not None:
            made[name] = made.get(name, 0) + result.numel() // spec.out_channels

    specs = {name: describe_layer(layer) for name, layer in network.named_modules()}
    recorder = Recorder(network, after=after)
    recorder.run(forward)
    return Flow(tuple(recorder.steps)), made


def _forms(network: nn.Module, positions: Mapping[str, float], mode: str, memory: int) -> dict[str, Form]:
    """Full or by channel, layer by layer, so that the fits are sound and all matrices stay in memory."""
    if mode != "auto":
        return dict.fromkeys(positions, cast(Form, mode))
    forms: dict[str, Form] = {}
    sizes: dict[str, dict[Form, int]] = {}
    for name, number in positions.items():
        layer: Any = network.get_submodule(name)
        blocks, n, _, taps = to_matrix(layer.weight, spec_of(layer), "channel").shape
        each = blocks * layer.weight.element_size()
        sizes[name] = {"full": each * (n * taps) ** 2, "channel": each * n**2}
        forms[name] = "full" if taps == 1 or number >= n * taps else "channel"
    few = [name for name, form in forms.items() if form == "channel"]
    for name in sorted(sizes, key=lambda name: -sizes[name][forms[name]]):
        if sum(sizes[n][form] for n, form in forms.items()) <= memory:
            break
        forms[name] = "channel"
    wide = [name for name, form in forms.items() if form == "channel" and name not in few]
    for names, why in ((few, "fewer positions than features"), (wide, f"memory {memory // 2**20} MB")):
        if names:
            log.info("compensation by channel (%s) for %s", why, ", ".join(names))
    return forms


class _Sums:
    """Running sums of one layer's features and their products."""

    def __init__(self, layer: Any, name: str, form: Form, crossing: Crossing | None) -> None:
        self.layer, self.name, self.form, self.spec, self.crossing = layer, name, form, spec_of(layer), crossing
        self.weight = to_matrix(layer.weight.detach(), self.spec, form)
        self.taps = to_matrix(layer.weight.detach(), self.spec, "channel").shape[3]
        blocks, n = self.weight.shape[:2]
        self.first, self.second = self.weight.new_zeros(blocks, n), self.weight.new_zeros(blocks, n, n)
        self.rows = 0
        self.holds = True

    def listen(self, rows: float, generator: torch.Generator) -> Any:
        """Add the next call's patches: ``rows`` for each feature."""

        def hook(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            if self.holds:
                source = tensors_of(in_order(layer, args, kwargs))[0]
                total = output.numel() // self.spec.out_channels
                picks = pick(total, int(rows * self.weight.shape[1]) + 1, generator).to(source.device)
                for some, patches in pieces(layer, source, picks):
                    self._add(patches, output, some)
                if self.holds and self.crossing is not None:
                    self.crossing.read(source, picks)

        return self.layer.register_forward_hook(hook, with_kwargs=True)

    def _add(self, patches: Tensor, output: Tensor, picks: Tensor) -> None:
        if not self.rows and not self._reproduces(patches, output, picks):
            log.info("'%s' is not its patches times its weight; it is not compensated", self.name)
            self.holds = False
            return
        rows = to_features(patches, len(self.weight), self.form)
        self.first += rows.sum(dim=1)
        self.second += rows.transpose(1, 2) @ rows
        self.rows += rows.shape[1]

    def _reproduces(self, patches: Tensor, output: Tensor, picks: Tensor) -> bool:
        """Whether the layer's output really is patches @ weight + bias, on a few positions."""
        few = slice(None, None, max(1, len(picks) // 64))
        matrix = to_matrix(self.layer.weight.detach(), self.spec, "full").squeeze(3)
        expected = (to_features(patches[few], len(matrix), "full") @ matrix).transpose(0, 1).flatten(1)
        if self.layer.bias is not None:
            expected = expected + self.layer.bias
        found = positions(output, self.spec)[picks[few]]
        return bool((expected - found).abs().max() <= 1e-3 * found.abs().max().clamp_min(1e-6))

    def gram(self, entry: LayerChannels, network: nn.Module, flow: Flow) -> LayerGram:
        """The moments, divided by the number of rows."""
        has_bias = self.layer.bias is not None
        name = None if has_bias else flow.norm_after(network, self.name)
        norm = None
        if name is not None:
            after: Any = network.get_submodule(name)
            norm = (name, after.running_mean.detach().clone(), after.running_var.detach().clone())
        mean, moments = self.first / self.rows, self.second / self.rows
        if has_bias or norm is not None:
            moments -= mean.unsqueeze(2) * mean.unsqueeze(1)
        gram = LayerGram(entry, self.form, self.taps, mean, moments, self.weight, has_bias, norm, self.rows)
        if self.crossing is None:
            return gram
        return replace(gram, shortcut=self.crossing.moments(gram))
