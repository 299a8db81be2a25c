"""ONNX files: written by torch, run by ONNX Runtime."""

from __future__ import annotations

import math
import re
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deap_prune.errors import ExportError
from deap_prune.structure.inputs import first_line

SMALL = 64
"""Numbers of a constant that is stored even in files without weights: shapes, bounds of activations."""


def write_onnx(program: Any, path: Path) -> None:
    """Write a program of torch.export as ONNX, with a named batch axis.

    Raises:
        ExportError: If torch can't.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(program, (), str(path), dynamo=True, external_data=False, verbose=False)
        _name_batch_axes(path)
    except Exception as error:
        raise ExportError(
            f"the network can't be written as ONNX ({first_line(error)}); leave 'onnx' out of formats"
        ) from error


def _name_batch_axes(path: Path) -> None:
    """Give the dynamic axis of each input the name ``batch``, and likewise where it occurs in other shapes."""
    onnx = import_module("onnx")
    model = onnx.load(str(path))
    graph = model.graph
    shapes = [value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output, *graph.value_info)]
    symbols = dict.fromkeys(dims[0].dim_param for dims in shapes[: len(graph.input)] if dims and dims[0].dim_param)
    for number, symbol in enumerate(symbols):
        name = f"batch_{number}" if number else "batch"
        for dim in (dim for dims in shapes for dim in dims if dim.dim_param):
            dim.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", name, dim.dim_param)
    onnx.save(model, str(path))


def without_weights(model: bytes) -> bytes:
    """An ONNX file whose large constants are filled with one value when a runtime loads it.

    Args:
        model: Content of an ONNX file.
    """
    onnx = import_module("onnx")
    graph = (loaded := onnx.load_model_from_string(model)).graph
    for tensor in [t for t in graph.initializer if math.prod(t.dims) > SMALL and t.data_type == onnx.TensorProto.FLOAT]:
        graph.initializer.remove(tensor)
        shape = onnx.numpy_helper.from_array(np.array(tensor.dims, dtype=np.int64))
        fill = onnx.numpy_helper.from_array(np.array([0.01], dtype=np.float32))
        name = f"{tensor.name}_shape"
        nodes = [
            onnx.helper.make_node("Constant", [], [name], value=shape),
            onnx.helper.make_node("ConstantOfShape", [name], [tensor.name], value=fill),
        ]
        for node in reversed(nodes):
            graph.node.insert(0, node)
    return bytes(loaded.SerializeToString())


def onnx_session(path: Path) -> Any:
    """A session of ONNX Runtime on the CPU, with torch's number of threads.

    Raises:
        ExportError: If ONNX Runtime can't run the file, which is removed then.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        path.unlink()
        raise ExportError(
            f"ONNX Runtime can't run this network ({first_line(error)}); export network.float() with float inputs, or "
            "leave 'onnx' out of formats"
        ) from error
