"""Stable descriptions of functions and values: the same in another process, without pickle, another if code differs."""

from __future__ import annotations

import dis
import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deap_prune.structure.slim import unwrap

MOST_DEPTH = 12
_SIMPLE = (type(None), bool, int, float, complex, str, bytes)
_MODULE_STATE = frozenset(vars(nn.Module())) | {"training"}
_PACKAGES = ("deap_prune.", "torch.", "torchvision.", "numpy.", "builtins.", "abc.", "typing.", "collections.")


def python_version() -> str:
    """Version that bytecode belongs to; code of another one can't be compared."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def code_of(function: Any, *more: Any) -> str:
    """Name and hash of a function with what it closes over, its defaults and the functions of its module that it calls.

    Of functions of this package, torch and NumPy the name only: their versions are compared.

    Args:
        function: The function, or an object that can be called; None gives "none".
        *more: Values to hash with it.
    """
    if function is None:
        return "none"
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{name} [python {python_version()}, {hash_of([function, *more])[:16]}]"


def hash_of(value: Any) -> str:
    """Hash of nested data: tensors and arrays by shape, type and bytes; objects by class and attributes."""
    digest = hashlib.sha256()
    for part in _parts(value, set(), MOST_DEPTH):
        digest.update(part)
    return digest.hexdigest()


def hash_of_state(model: nn.Module) -> str:
    """Hash of a network's parameters and buffers."""
    digest, state = hashlib.sha256(), unwrap(model).state_dict()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(_bytes(tensor) if isinstance(tensor, Tensor) else repr(tensor).encode())
    for name, buffer in sorted(unwrap(model).named_buffers()):
        if name not in state:  # not persistent
            digest.update(name.encode() + _bytes(buffer))
    return digest.hexdigest()


def modules_of(model: nn.Module) -> dict[str, str]:
    """For each module its class, settings (stride, eps, ...) and, if it is not torch's own, a hash of its code."""
    return {name or "the network": _module(module) for name, module in unwrap(model).named_modules()}


def _module(module: nn.Module) -> str:
    kind = type(module)
    settings = {key: value for key, value in vars(module).items() if key not in _MODULE_STATE and _is_setting(value)}
    code = [function for base in kind.__mro__ if not _is_packaged(base) for function in _functions(base)]
    return f"{kind.__qualname__}({module.extra_repr()}) [python {python_version()}, {hash_of([settings, code])[:12]}]"


def _functions(kind: type) -> list[FunctionType]:
    """Functions that a class itself defines, properties and static methods too."""
    functions = []
    for _, value in sorted(vars(kind).items(), key=lambda item: item[0]):
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        functions += [function] if isinstance(function, FunctionType) else []
    return functions


def _is_packaged(value: Any) -> bool:
    """Whether a class or function comes from this package, torch, NumPy or Python, whose versions are compared."""
    return f"{value.__module__}.".startswith(_PACKAGES)


def _is_setting(value: Any, depth: int = MOST_DEPTH) -> bool:
    """Whether an attribute is a setting of a module: plain values and functions, not tensors or objects."""
    if isinstance(value, (tuple, list)):
        return depth > 0 and all(_is_setting(part, depth - 1) for part in value)
    plain = (*_SIMPLE, torch.dtype, FunctionType, BuiltinFunctionType, functools.partial)
    return isinstance(value, plain)


def _parts(value: Any, seen: set[int], depth: int) -> Iterator[bytes]:
    """The bytes that describe a value, containers and objects part by part."""
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)} {value.layout}".encode()
        yield _bytes(value)
    elif isinstance(value, np.ndarray):
        yield f"array {value.dtype} {value.shape}".encode()
        yield from _parts(value.tolist(), seen, depth) if value.dtype.hasobject else [value.tobytes()]
    elif isinstance(value, _SIMPLE):
        yield f"{type(value).__name__} {value!r};".encode()
    elif hasattr(type(value), "__array__") or hasattr(type(value), "__array_interface__"):  # images, tables
        yield from _parts(np.asarray(value), seen, depth - 1)
    elif depth <= 0 or id(value) in seen:
        yield type(value).__qualname__.encode()
    else:
        yield from _compound(value, {*seen, id(value)}, depth - 1)


def _compound(value: Any, seen: set[int], depth: int) -> Iterator[bytes]:
    if isinstance(value, Mapping):
        yield b"{"
        for key, part in value.items():
            yield from _parts(key, seen, depth)
            yield from _parts(part, seen, depth)
        yield b"}"
    elif isinstance(value, (tuple, list)):
        yield b"("
        for part in value:
            yield from _parts(part, seen, depth)
        yield b")"
    elif isinstance(value, (set, frozenset)):
        yield "".join(sorted(hash_of(part) for part in value)).encode()
    elif isinstance(value, functools.partial):
        yield from _parts(["partial", value.func, value.args, value.keywords], seen, depth)
    elif isinstance(value, MethodType):
        yield from _parts(["method", value.__func__, value.__self__], seen, depth)
    elif isinstance(value, FunctionType):
        yield from _function(value, seen, depth)
    elif isinstance(value, CodeType):
        yield from _code(value)
    elif isinstance(value, (type, ModuleType)) or not hasattr(value, "__dict__"):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}".encode()
    elif isinstance(value, nn.Module):
        yield from _parts([modules_of(value), hash_of_state(value)], seen, depth)
    else:
        yield from _object(value, seen, depth)


def _object(value: Any, seen: set[int], depth: int) -> Iterator[bytes]:
    kind = type(value)
    yield f"object {kind.__module__}.{kind.__qualname__}".encode()
    if callable(value) and isinstance(call := vars(kind).get("__call__"), FunctionType):
        yield from _parts(call, seen, depth)
    yield from _parts(vars(value), seen, depth)


def _function(function: FunctionType, seen: set[int], depth: int) -> Iterator[bytes]:
    """Code, defaults, what is closed over, and the functions and constants of its module that it names."""
    yield f"{function.__module__}.{function.__qualname__}".encode()
    if _is_packaged(function):
        return
    yield from _code(function.__code__)
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not set yet
            cells.append(None)
    yield from _parts([function.__defaults__, function.__kwdefaults__, cells], seen, depth)
    for name in _globals(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, (*_SIMPLE, FunctionType)):
            yield from _parts(value, seen, depth)


def _globals(code: CodeType) -> list[str]:
    """Names of the globals that code reads."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = {name for const in code.co_consts if isinstance(const, CodeType) for name in _globals(const)}
    return sorted({*names, *inner})


def _code(code: CodeType) -> Iterator[bytes]:
    """Bytecode, names and constants; not where it stands, nor docstrings."""
    yield code.co_code
    yield repr((code.co_names, code.co_varnames, code.co_argcount)).encode()
    for place, const in enumerate(code.co_consts):
        if isinstance(const, CodeType):
            yield from _code(const)
        elif isinstance(const, frozenset):
            yield repr(sorted(map(repr, const))).encode()
        elif place or not isinstance(const, str):  # the first text is the docstring
            yield repr(const).encode()


def _bytes(tensor: Tensor) -> bytes:
    tensor = tensor.detach()
    if tensor.is_meta:
        return b"meta"
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        return repr((tensor.qscheme(), tensor.dequantize().tolist())).encode()
    return tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
