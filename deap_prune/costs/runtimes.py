"""Runtimes that latency is measured on, and the clock: interleaved repeats, medians."""

from __future__ import annotations

import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.data.batches import count_samples, tensors_of
from deap_prune.errors import ConfigError, RegistryError, did_you_mean
from deap_prune.onnx_files import without_weights
from deap_prune.structure.inputs import Call, as_call, first_line, on_device

Run = Callable[[], Any]
BURST, MOST_IN_BURST = 3e-4, 10
"""Seconds that one time should take, and most runs in it."""


@dataclass(frozen=True)
class Setting:
    """What a latency depends on, besides the network.

    Attributes:
        runtime: ``"torch"`` (eager), ``"onnxruntime"`` or ``"openvino"``.
        batch: Samples of the batch that is timed.
        threads: Threads on the CPU.
        device: Torch's name of the device; other runtimes than torch run on the CPU.

    Raises:
        RegistryError: If the runtime is unknown.
        ConfigError: If it is not installed, or another value is illegal.
    """

    runtime: str = "torch"
    batch: int = 1
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise RegistryError(f"unknown runtime '{self.runtime}'; {did_you_mean(self.runtime, RUNTIMES)}")
        missing = [name for name in RUNTIMES[self.runtime].packages if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"the runtime '{self.runtime}' needs {', '.join(missing)}: pip install {' '.join(missing)}"
            )
        for name in ("batch", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 1 or more")
        if self.runtime != "torch" and self.device != "cpu":
            raise ConfigError(f"device is '{self.device}'; the runtime '{self.runtime}' is timed on the CPU")

    @property
    def about(self) -> dict[str, Any]:
        """The setting and the version of the runtime, as JSON takes them."""
        return {**asdict(self), "version": version(RUNTIMES[self.runtime].packages[-1])}

    def call(self, example_inputs: Any) -> Call:
        """The example inputs as a batch of the setting's size: copies of the first sample."""
        call = as_call(example_inputs)
        count = count_samples(call)

        def batched(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.dim() or len(leaf) != count:
                return leaf
            return leaf[:1].detach().repeat(self.batch, *(1,) * (leaf.dim() - 1))

        return on_device(tree_map(batched, call), torch.device(self.device))

    def prepare(self, network: nn.Module, call: Call) -> Run:
        """A function that runs the network once on this call."""
        return RUNTIMES[self.runtime].prepare(network, call, self)


class Clock:
    """Times networks relative to an anchor: a small convolution that is timed in every turn.

    The speed of a machine changes by tens of per cent within seconds if other processes share its cores; the ratio to
    the anchor changes much less.

    Args:
        setting: Runtime, batch, threads and device.
        repeats: Timed turns.

    Attributes:
        setting: Runtime, batch, threads and device.
        anchor: Milliseconds of the anchor in the fastest call so far.
    """

    def __init__(self, setting: Setting, repeats: int) -> None:
        self.setting, self.anchor = setting, float("inf")
        self._repeats, self._random = repeats, random.Random(0)
        layers = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        images = torch.zeros(setting.batch, 32, 32, 32, device=setting.device)
        self._anchor = setting.prepare(layers, ((images,), {}))
        alone = setting.threads == 1 and setting.device == "cpu"
        # The time of the only thread does not count what other processes do meanwhile.
        self._now = time.thread_time if alone else time.perf_counter

    def __call__(self, runs: Sequence[Run]) -> list[float]:
        """Median time of each run, in units of the anchor's; the runs are timed in turn, which spreads the noise.

        Args:
            runs: Results of :meth:`Setting.prepare`.
        """
        with _threads(self.setting.threads), torch.inference_mode():
            bursts = [self._burst(run) for run in (self._anchor, *runs)]
            turns = [self._turn(runs, bursts) for _ in range(self._repeats)]
        self.anchor = min(self.anchor, 1e3 * statistics.median(anchor for anchor, _ in turns))
        return [statistics.median(column) for column in zip(*(ratios for _, ratios in turns), strict=True)]

    def _burst(self, run: Run) -> int:
        """How often a run is repeated for one time: a short one several times, after the caches have filled."""
        run()
        return max(1, min(MOST_IN_BURST, round(BURST / max(self._timed(run, 1), 1e-9))))

    def _turn(self, runs: Sequence[Run], bursts: Sequence[int]) -> tuple[float, list[float]]:
        """Seconds of the anchor, and each run's time by that of the anchor before and after it, in random order."""
        anchors, ratios = [self._timed(self._anchor, bursts[0])], [0.0] * len(runs)
        for place in self._random.sample(range(len(runs)), len(runs)):
            seconds = self._timed(runs[place], bursts[place + 1])
            anchors.append(self._timed(self._anchor, bursts[0]))
            ratios[place] = 2 * seconds / (anchors[-2] + anchors[-1])
        return statistics.median(anchors), ratios

    def _timed(self, run: Run, burst: int) -> float:
        """Seconds of one of ``burst`` runs in a row, after one that fills the caches if they are short."""
        if burst > 1:
            run()
        start = self._now()
        for _ in range(burst):
            run()
        return (self._now() - start) / burst


@dataclass(frozen=True)
class Runtime:
    """A way to run networks.

    Attributes:
        prepare: Function of (network, call, setting) to a function that runs the network once.
        packages: Packages that it needs; the last one's version is noted in tables.
    """

    prepare: Callable[[nn.Module, Call, Setting], Run]
    packages: tuple[str, ...]


def _torch(network: nn.Module, call: Call, setting: Setting) -> Run:
    args, kwargs = call
    run = partial(network.to(setting.device).eval(), *args, **kwargs)
    if not setting.device.startswith("cuda"):
        return run

    def synchronised() -> None:
        run()
        torch.cuda.synchronize(setting.device)

    return synchronised


def onnx_bytes(network: nn.Module, call: Call, *, weights: bool = True) -> bytes:
    """A network as an ONNX file, for one batch size.

    Args:
        network: The network.
        call: Arguments of one forward pass.
        weights: Store the weights; otherwise constants of their shapes, which take no space and as much time.

    Raises:
        ConfigError: If torch can't write the network as ONNX.
    """
    args, kwargs = call
    file: Any = BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the older exporter, which takes a tenth of the newer one's time
            torch.onnx.export(network.eval(), (*args, kwargs) if kwargs else args, file, dynamo=False, verbose=False)
    except Exception as error:  # the exporter may raise anything
        raise ConfigError(
            f"a part of the network can't be written as ONNX ({first_line(error)}); use 'torch'"
        ) from error
    return file.getvalue() if weights else without_weights(file.getvalue())


def _onnxruntime(network: nn.Module, call: Call, setting: Setting) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = setting.threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx_bytes(network, call), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    arrays = [tensor.numpy() for tensor in tensors_of(call)]
    return partial(session.run, None, dict(zip(names, arrays, strict=False)))


def _openvino(network: nn.Module, call: Call, setting: Setting) -> Run:
    import openvino

    threads = {"INFERENCE_NUM_THREADS": setting.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    model = core.read_model(BytesIO(onnx_bytes(network, call)))
    request = core.compile_model(model, "CPU", threads).create_infer_request()
    return partial(request.infer, [tensor.numpy() for tensor in tensors_of(call)])


RUNTIMES: dict[str, Runtime] = {
    "torch": Runtime(_torch, ("torch",)),
    "onnxruntime": Runtime(_onnxruntime, ("onnx", "onnxruntime")),
    "openvino": Runtime(_openvino, ("onnx", "openvino")),
}


def installed_runtimes() -> list[str]:
    """The runtimes whose packages are installed."""
    return [name for name, runtime in RUNTIMES.items() if all(find_spec(package) for package in runtime.packages)]


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
