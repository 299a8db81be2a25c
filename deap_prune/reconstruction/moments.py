"""Collection of second moments: one forward pass of the dense network over the calibration data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from deap_prune.data.batches import Forward, count_samples, default_forward, tensors_of
from deap_prune.errors import ConfigError, DataError
from deap_prune.reconstruction.flow import Flow, Key, Recorder
from deap_prune.reconstruction.grams import Grams, LayerGram
from deap_prune.reconstruction.matrix import Form, pick, pieces, positions, refittable, to_features, to_matrix
from deap_prune.reconstruction.shortcuts import Crossing, find_meetings
from deap_prune.structure.inputs import evaluating, in_order
from deap_prune.structure.layers import describe_layer, spec_of
from deap_prune.structure.slim import check_network
from deap_prune.structure.space import LayerChannels, PruningSpace

log = logging.getLogger("deap_prune")
MODES = ("auto", "full", "channel")
MEMORY = 2 * 1024**3


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
    """Second moments of the input patches of every layer that reads a filter group.

    Output positions are sampled evenly over the images: the patches of all positions would cost several times the
    layer's own forward pass, and ``rows`` positions per feature are enough. A layer whose output is not its patches
    times its weight (a subclass with a forward pass of its own) is left out, with a line in the log.

    Args:
        network: The dense network that was traced, unwrapped; it is not changed.
        space: Its space.
        batches: Calibration batches on the network's device; targets are not used.
        forward: Function of (model, batch) to (outputs, targets).
        mode: ``"full"``: patches as the layer reads them; ``"channel"``: channels alone, memory divided by the square
            of the number of taps; ``"auto"``: full, but by channel for layers with fewer output positions than
            features (a fit would follow the noise), and for the largest layers if memory does not suffice.
        memory: Most bytes that all matrices may take together, for ``"auto"``.
        rows: Sampled positions per input feature of a layer.
        seed: Seed of the sampling.

    Raises:
        ConfigError: If the mode is unknown, or memory or rows are not positive.
        DataError: If there are no batches.
        MaskError: If the space belongs to another network.
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
        sums = {n: _RunningMoments(network.get_submodule(n), n, form, crossings.get(n)) for n, form in forms.items()}
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
    """Whether a layer can be re-fitted, and reads channels of a group or has outputs that meet a shortcut with some."""
    spec = refittable(network.get_submodule(entry.name)) if entry.dim is None else None
    return spec is not None and not spec.coupled and (bool((entry.inputs >= 0).any()) or entry.name in meetings)


def _survey(network: nn.Module, forward: Callable[[], Any]) -> tuple[Flow, Mapping[str, int]]:
    """The flow of a forward pass, and the number of output positions of each layer."""
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
    """The form of each layer: by channel where positions are too few for a fit, and where memory does not suffice."""
    if mode != "auto":
        return dict.fromkeys(positions, cast(Form, mode))
    forms: dict[str, Form] = {}
    sizes: dict[str, dict[Form, int]] = {}
    for name, number in positions.items():
        layer: Any = network.get_submodule(name)
        blocks, n, _, taps = to_matrix(layer.weight, spec_of(layer), "channel").shape
        unit = blocks * layer.weight.element_size()
        sizes[name] = {"full": unit * (n * taps) ** 2, "channel": unit * n**2}
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


class _RunningMoments:
    """Running sums of one layer's features and of their products."""

    def __init__(self, layer: Any, name: str, form: Form, crossing: Crossing | None) -> None:
        self.layer, self.name, self.form, self.spec, self.crossing = layer, name, form, spec_of(layer), crossing
        self.weight = to_matrix(layer.weight.detach(), self.spec, form)
        self.taps = to_matrix(layer.weight.detach(), self.spec, "channel").shape[3]
        blocks, n = self.weight.shape[:2]
        self.first, self.second = self.weight.new_zeros(blocks, n), self.weight.new_zeros(blocks, n, n)
        self.rows = 0
        self.holds = True

    def listen(self, rows: float, generator: torch.Generator) -> Any:
        """Hook that adds the patches of the next call, ``rows`` per feature."""

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
        """Whether the layer's output is patches @ weight + bias, checked at about 64 positions."""
        few = slice(None, None, max(1, len(picks) // 64))
        matrix = to_matrix(self.layer.weight.detach(), self.spec, "full").squeeze(3)
        expected = (to_features(patches[few], len(matrix), "full") @ matrix).transpose(0, 1).flatten(1)
        if self.layer.bias is not None:
            expected = expected + self.layer.bias
        actual = positions(output, self.spec)[picks[few]]
        return bool((expected - actual).abs().max() <= 1e-3 * actual.abs().max().clamp_min(1e-6))

    def gram(self, entry: LayerChannels, network: nn.Module, flow: Flow) -> LayerGram:
        """The moments: the sums divided by the number of rows, centred if there is an intercept."""
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
