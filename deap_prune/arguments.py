"""Arguments of public calls, checked by their annotations: a wrong type or range is one error at the door."""

from __future__ import annotations

import builtins
import inspect
import math
import os
import sys
import types
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import numpy as np

from deap_prune.errors import ConfigError, MaskError, ModelError, PruneError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """Limits of a number, both inclusive; ``Annotated[int, Range(1)]`` is a whole number from 1 on."""

    low: float = -math.inf
    high: float = math.inf

    def __contains__(self, number: Any) -> bool:
        return self.low <= number <= self.high and _is_finite(number)

    def __str__(self) -> str:
        if self == Range():
            return ", finite"
        if self.high == MOST:
            return f" from {self.low:g} up"
        if self.high == math.inf:
            return f" from {self.low:g} up, finite"
        return f" from {self.low:g} to {self.high:g}"


MOST = 2**31 - 1
"""Limit of counts: larger ones are mistakes."""

Count = Annotated[int, Range(1, MOST)]
CountOrZero = Annotated[int, Range(0, MOST)]
Seed = Annotated[int, Range(0, 2**42 - 1)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(1e-12, 1e12)]
Finite = Annotated[float, Range()]
NotNegative = Annotated[float, Range(0, 1e12)]


@dataclass(frozen=True)
class _Kind:
    """The values that an annotation allows.

    Attributes:
        text: What to give, in words.
        accepts: Whether a value is allowed.
        error: Class of the error for others.
    """

    text: str
    accepts: Callable[[Any], bool]
    error: type[PruneError] = ConfigError


def checked(function: F) -> F:
    """Check the arguments of a function by its annotations before it runs.

    A number with a :class:`Range` must be finite and inside it; bools are no numbers. An error class in an
    ``Annotated`` is raised in the place of ``ConfigError``. Sequences and mappings are checked with their elements,
    iterators and ``Iterable[Any]`` are not. Classes that are imported for type checkers only are compared by name.

    Raises:
        ConfigError: From the function, if an argument is not what its annotation says (``ModelError`` for networks,
            ``MaskError`` for masks).
    """
    signature = inspect.signature(function)
    names = inspect.unwrap(function).__globals__
    takes_more = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())

    @cache
    def kinds() -> dict[str, _Kind]:
        parameters = signature.parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        pairs = ((p.name, _kind(_resolved(p.annotation, names))) for p in named)
        return {name: kind for name, kind in pairs if kind is not None}

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        unknown = [name for name in kwargs if name not in signature.parameters]
        if unknown and not takes_more:
            hint = did_you_mean(unknown[0], list(signature.parameters))
            raise ConfigError(f"{function.__qualname__} has no argument '{unknown[0]}'; {hint}")
        bound, expected = signature.bind(*args, **kwargs), kinds()
        for name, value in bound.arguments.items():
            if (kind := expected.get(name)) is not None:
                bound.arguments[name] = _accepted(name, value, kind)
        return function(*bound.args, **bound.kwargs)

    return cast(F, call)


def _accepted(name: str, value: Any, kind: _Kind) -> Any:
    """The value, NumPy's scalars as Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if not kind.accepts(value):
        raise kind.error(f"{name} is {_shown(value)}; give {kind.text}")
    return value


class _Named:
    """Base of the stand-ins for classes that are not imported at run time."""


class _Names(dict[str, Any]):
    """Stand-ins for the names of an annotation that are imported for type checkers only."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        super().__init__()
        self._known = known

    def __missing__(self, name: str) -> Any:
        if name in self._known or hasattr(builtins, name):
            raise KeyError(name)
        return type(name, (_Named,), {})


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    """The annotation as an object; Any if it can't be evaluated."""
    if not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    try:
        return eval(annotation, names, _Names(names))  # source of this package
    except (AttributeError, TypeError):
        return Any


_SIMPLE: dict[Any, _Kind] = {
    type(None): _Kind("None", lambda v: v is None),
    bool: _Kind("True or False", lambda v: isinstance(v, bool)),
    int: _Kind("a whole number", lambda v: isinstance(v, Integral) and not isinstance(v, bool)),
    float: _Kind("a number", lambda v: isinstance(v, Real) and not isinstance(v, bool)),
    str: _Kind("text", lambda v: isinstance(v, str)),
    Path: _Kind("a path", lambda v: isinstance(v, Path) and _is_path(str(v))),
}
_WORDS = {
    "Module": "a network (nn.Module)",
    "Masks": "masks (dp.Masks)",
    "PruningSpace": "a space (dp.trace)",
    "Space": "a space (dp.trace)",
    "Scored": "scores (dp.score)",
    "CriteriaClusters": "clusters (dp.cluster)",
    "Decoder": "a genome (dp.Genome)",
    "Decoding": "a genome (dp.Genome)",
    "Evaluate": "an evaluator (dp.Evaluator)",
    "Tensor": "a tensor",
    "device": "a torch.device",
}
_ERRORS: dict[str, type[PruneError]] = {"Module": ModelError, "Masks": MaskError}


def _kind(hint: Any) -> _Kind | None:
    """The values of a type hint; None if all are."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return None
    if origin is Annotated:
        kind = _within(_kind(args[0]), [limit for limit in args[1:] if isinstance(limit, Range)])
        errors = [error for error in args[1:] if isinstance(error, type) and issubclass(error, PruneError)]
        return replace(kind, error=errors[0]) if kind and errors else kind
    if origin in (Union, types.UnionType):
        return _any_of(args)
    if origin is Literal:
        return _Kind(" or ".join(map(repr, args)), lambda v: isinstance(v, str) and v in args)
    if origin is cast(Any, Callable):
        return _Kind("a function", callable)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(*map(_kind, args))
    if isinstance(origin, type) and issubclass(origin, Iterable) and not issubclass(origin, np.ndarray):
        return _sequence(origin, args)
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    return _instance(hint) if isinstance(hint, type) else None


def _within(kind: _Kind | None, limits: list[Range]) -> _Kind | None:
    if kind is None or not limits:
        return kind
    (limit,), accepts = limits, kind.accepts
    return _Kind(f"{kind.text}{limit}", lambda v: accepts(v) and v in limit, kind.error)


def _any_of(hints: Sequence[Any]) -> _Kind | None:
    """Any of several kinds; text is a path if a path is allowed."""
    paths = Path in hints
    kinds = [_kind(hint) for hint in hints if not (paths and hint is str)]
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds):
        return None
    if paths:
        known.append(_Kind("its text", lambda v: isinstance(v, str) and _is_path(v)))
    error = next((kind.error for kind in known if kind.error is not ConfigError), ConfigError)
    texts = dict.fromkeys(kind.text for kind in sorted(known, key=lambda kind: kind is _SIMPLE[type(None)]))
    text = ", or ".join(texts)
    return _Kind(text, lambda v: any(kind.accepts(v) for kind in known), error)


def _mapping(key: _Kind | None, value: _Kind | None) -> _Kind:
    def accepts(v: Any) -> bool:
        if not isinstance(v, Mapping):
            return False
        return _all(key, v) and _all(value, v.values())

    return _Kind(f"a dict of {value.text if value else 'values'} by {key.text if key else 'keys'}", accepts)


def _sequence(origin: type, args: tuple[Any, ...]) -> _Kind | None:
    """Several values of a kind, or a tuple of given kinds."""
    if args == (Any,) and not issubclass(origin, Collection):
        return None
    if issubclass(origin, tuple) and args[-1:] != (...,):
        kinds = [_kind(arg) for arg in args]
        texts = " and ".join(kind.text if kind else "a value" for kind in kinds)
        return _Kind(
            f"a tuple of {texts}",
            lambda v: isinstance(v, tuple) and len(v) == len(kinds) and all(map(_one, kinds, v)),
        )
    element = _kind(args[0])
    container = (list, tuple) if issubclass(origin, (list, tuple)) else (origin, np.ndarray)

    def accepts(v: Any) -> bool:
        if not isinstance(v, container) or isinstance(v, (str, bytes)) or getattr(v, "ndim", 1) == 0:
            return False
        return not isinstance(v, Collection) or _all(element, v)

    return _Kind(f"several values, each {element.text}" if element else "several values", accepts)


def _instance(hint: type) -> _Kind:
    """Objects of a class, or with the attributes of a protocol."""
    name = hint.__name__
    if issubclass(hint, _Named):
        test: Callable[[Any], bool] = lambda v: any(base.__name__ == name for base in type(v).__mro__)  # noqa: E731
    elif getattr(hint, "_is_protocol", False):
        missing = object()
        own = {*vars(hint), *getattr(hint, "__annotations__", ())} - set(dir(_Empty))
        parts = [part for part in own if not part.startswith("_") or part == "__call__"]
        test = lambda v: all(inspect.getattr_static(v, part, missing) is not missing for part in parts)  # noqa: E731
    else:
        test = lambda v: isinstance(v, hint)  # noqa: E731
    return _Kind(_WORDS.get(name, f"a{'n' * (name[0] in 'AEIOU')} {name}"), test, _ERRORS.get(name, ConfigError))


class _Empty:
    """Attributes that every class has."""


def _one(kind: _Kind | None, value: Any) -> bool:
    return kind is None or kind.accepts(value)


def _all(kind: _Kind | None, values: Iterable[Any]) -> bool:
    return kind is None or all(kind.accepts(value) for value in values)


def _is_path(text: str) -> bool:
    """Whether an operating system takes the text as a path."""
    try:
        parts = os.fsencode(text).split(b"/")
    except UnicodeEncodeError:
        return False
    return bool(text) and "\0" not in text and len(text) < 4096 and max(map(len, parts)) < 256


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond the range of floats
        return False


def _shown(value: Any) -> str:
    """The value in a message: short, and safe whatever its repr does."""
    try:
        text = repr(value)
    except Exception:
        text = ""
    if not text or len(text) > 60 or "\n" in text:
        return f"a {type(value).__name__}"
    return text


def check_fields(instance: Any) -> None:
    """Check the fields of a dataclass by their annotations, as :func:`checked` does arguments.

    Raises:
        ConfigError: If a field is not what its annotation says.
    """
    for name, kind in _kinds_of_fields(cast(Hashable, type(instance))).items():
        object.__setattr__(instance, name, _accepted(name, getattr(instance, name), kind))


@cache
def _kinds_of_fields(cls: type) -> dict[str, _Kind]:
    names = vars(sys.modules[cls.__module__])
    pairs = ((field.name, _kind(_resolved(field.type, names))) for field in fields(cls) if field.init)
    return {name: kind for name, kind in pairs if kind is not None}
