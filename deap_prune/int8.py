"""Pruned networks in eight bits: static quantisation with calibration images, compared with the dense network's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.arguments import Count, checked
from deap_prune.data.batches import Data, Forward, default_forward, stream, tensors_of
from deap_prune.errors import ExportError, ModelError
from deap_prune.export import ONNX, milliseconds_of, plain_copy, program_of, run_session, several_samples
from deap_prune.onnx_files import onnx_session, write_onnx
from deap_prune.structure.inputs import Inputs, first_line
from deap_prune.training.evaluation import accuracy

INT8 = "network.int8.onnx"
CALIBRATION_BATCH = 50


@dataclass(frozen=True)
class Variant:
    """A network in one precision.

    Attributes:
        name: "dense fp32", "dense int8", "slim fp32" or "slim int8".
        accuracy: Top-1 accuracy in [0, 1]; None without test data, or if the network does not classify.
        size: Bytes of the ONNX file.
        milliseconds: Median time of one sample in ONNX Runtime on the CPU, with torch's number of threads.
    """

    name: str
    accuracy: float | None
    size: int
    milliseconds: float


@dataclass(frozen=True)
class Int8Export:
    """The result of an export to eight bits.

    Attributes:
        file: The slim network in eight bits.
        variants: Its comparison with the network in fp32 and, if it was given, with the dense network in both.
    """

    file: Path
    variants: tuple[Variant, ...]

    def __str__(self) -> str:
        rows = [
            f"{v.name:<11}{'-' if v.accuracy is None else f'{v.accuracy:.2%}':>9}{v.size / 1e6:>10.3f}"
            f"{v.milliseconds:>10.2f}"
            for v in self.variants
        ]
        return "\n".join([f"wrote {self.file}", f"{'':<11}{'accuracy':>9}{'MB':>10}{'ms':>10}", *rows])


@checked
def export_int8(
    network: nn.Module,
    example_inputs: Inputs,
    folder: str | Path,
    *,
    calibration: Data,
    test: Data | None = None,
    dense: nn.Module | None = None,
    forward: Forward | None = None,
    repeats: Count = 30,
) -> Int8Export:
    """Write a slimmed network as ONNX in eight bits, and compare it with the same in fp32, and with the dense network.

    Weights get a scale per filter, activations one per tensor, from their ranges on the calibration images (ONNX
    Runtime's static quantisation, nodes QuantizeLinear and DequantizeLinear). Batch norms are folded into convolutions
    before. How a network with pruned channels is quantised does not differ from any other.

    Args:
        network: A network from ``result.slim``, fine-tuned or not; it is not changed.
        example_inputs: Samples to write and time the networks with, as for ``dp.export``.
        folder: Folder to write to; it is created.
        calibration: Images for the ranges; a few hundred are enough.
        test: Images for the accuracies.
        dense: The unpruned network, for the comparison.
        forward: As for ``dp.search``.
        repeats: Number of timed runs.

    Raises:
        ExportError: If a package is missing, or ONNX Runtime can't quantise the network.
        DataError: If the calibration data is empty.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ExportError(f"ONNX needs {', '.join(missing)}: pip install 'deap-prune[onnx]'")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    networks = {"slim": network} if dense is None else {"dense": dense, "slim": network}
    call, files = several_samples(example_inputs), dict[str, Path]()
    with TemporaryDirectory() as temporary:
        for name, one in networks.items():
            plain = plain_copy(one)
            files[f"{name} fp32"] = Path(temporary) / f"{name}-{ONNX}"
            files[f"{name} int8"] = folder / INT8 if name == "slim" else Path(temporary) / INT8
            write_onnx(program_of(plain, call), files[f"{name} fp32"])
            ranges = recorded(plain, calibration, forward or default_forward)
            quantise(files[f"{name} fp32"], files[f"{name} int8"], ranges)
        sessions = {name: onnx_session(path) for name, path in files.items()}
        sizes = {name: path.stat().st_size for name, path in files.items()}
    times = milliseconds_of(sessions, call, repeats)
    accuracies = {name: None if test is None else _accuracy(one, test, forward) for name, one in sessions.items()}
    variants = tuple(Variant(name, accuracies[name], sizes[name], times[name]) for name in sessions)
    return Int8Export(folder / INT8, variants)


def quantise(source: Path, target: Path, batches: Sequence[Sequence[NDArray[Any]]]) -> None:
    """Write an ONNX file in eight bits.

    Args:
        source: The file in fp32.
        target: The file to write.
        batches: Inputs for the ranges of the activations, one array for each input of the network.

    Raises:
        ExportError: If ONNX Runtime can't.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, names: Sequence[str]) -> None:
            self._feeds: Iterator[Mapping[str, NDArray[Any]]] = (
                dict(zip(names, arrays, strict=True)) for arrays in batches
            )

        def get_next(self) -> Any:
            return next(self._feeds, None)

    names = [entry.name for entry in onnx_session(source).get_inputs()]
    kinds = {"activation_type": quantization.QuantType.QUInt8, "weight_type": quantization.QuantType.QInt8}
    root, level = logging.getLogger(), logging.getLogger().level
    try:
        root.setLevel(logging.ERROR)  # it advises its own preprocessing, which has been done
        with TemporaryDirectory() as temporary:
            folded = Path(temporary) / "folded.onnx"
            quant_pre_process(source, folded, skip_symbolic_shape=True)
            quantization.quantize_static(folded, target, Reader(names), per_channel=True, **kinds)
    except Exception as error:  # the quantiser may raise anything
        target.unlink(missing_ok=True)
        raise ExportError(
            f"ONNX Runtime can't quantise this network ({first_line(error)}); export it in fp32 (format 'onnx')"
        ) from error
    finally:
        root.setLevel(level)


class _Recorder(nn.Module):
    """Runs a network, and keeps its inputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.inputs = network, list[list[NDArray[Any]]]()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.inputs.append([tensor.numpy() for tensor in tensors_of((args, kwargs))])
        return self.network(*args, **kwargs)


def recorded(network: nn.Module, data: Data, forward: Forward) -> list[list[NDArray[Any]]]:
    """What a network gets as inputs, batch by batch: one array for each of its input tensors."""
    recorder = _Recorder(network).eval()
    with torch.no_grad():
        for batch in stream(data, name="calibration", batch_size=CALIBRATION_BATCH, device=torch.device("cpu")):
            forward(recorder, batch)
    return recorder.inputs


class OnnxNetwork(nn.Module):
    """A session of ONNX Runtime as a network that gives its first output."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the session; arguments as for the network that was exported."""
        return torch.from_numpy(run_session(self.session, (args, kwargs))[0])


def _accuracy(session: Any, data: Data, forward: Forward | None) -> float | None:
    try:
        return accuracy(OnnxNetwork(session), data, device="cpu", forward=forward)
    except ModelError:
        return None
