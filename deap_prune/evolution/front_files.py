"""The files of a front: front.json, front.csv and masks/, written in one step and checked when they are read."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictInt, ValidationError

from deap_prune.errors import RunError
from deap_prune.files import (
    make_folder,
    parse_json,
    read_text,
    remove_file,
    run_of,
    sealed_json,
    unsealed_json,
    write_text,
)
from deap_prune.structure.masks import Masks

MASK_NAME = re.compile(r"masks/\d{4,9}-([0-9a-f]{8})\.json")
PENDING = ".pending.json"
"""Names of the masks that an unfinished save may leave; the next save removes them."""

MOST_MASK_BYTES = 32 * 2**20

Number = StrictInt | FiniteFloat
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


class _File(BaseModel):
    model_config = ConfigDict(strict=True)


class SolutionEntry(_File):
    """A solution in front.json."""

    values: dict[str, Number]
    flops: Count
    params: Count
    masks: Annotated[str, Field(pattern=f"^{MASK_NAME.pattern}$")]
    individual: list[Number]
    latency: Number | None = None


class ObjectiveEntry(_File):
    """An objective in front.json."""

    name: Annotated[str, Field(min_length=1)]
    maximise: bool


class DenseEntry(_File):
    """Costs and values of the dense network in front.json."""

    model_config = ConfigDict(strict=True, extra="allow")
    flops: Annotated[int, Field(strict=True, gt=0, lt=2**63)]
    params: Count
    values: dict[str, Number] = {}


class FrontFile(_File):
    """front.json."""

    objectives: Annotated[list[ObjectiveEntry], Field(min_length=1)]
    dense: DenseEntry
    settings: dict[str, Any]
    solutions: list[SolutionEntry]
    run: str | None = None


@dataclass(frozen=True, eq=False)
class ReadFront:
    """The checked content of front.json.

    Attributes:
        weights: Objective name to +1 (maximised) or -1 (minimised).
        dense: Costs and values of the dense network.
        settings: How the values were evaluated.
        solutions: The entries of front.json, each with its masks.
    """

    weights: dict[str, float]
    dense: dict[str, Any]
    settings: dict[str, Any]
    solutions: list[tuple[dict[str, Any], Masks]]


class Saved(Protocol):
    """The part of a ``Solution`` that files hold."""

    @property
    def values(self) -> Mapping[str, float]: ...  # noqa: D102
    @property
    def masks(self) -> Masks: ...  # noqa: D102
    @property
    def flops(self) -> int: ...  # noqa: D102
    @property
    def params(self) -> int: ...  # noqa: D102
    @property
    def individual(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def latency(self) -> float | None: ...  # noqa: D102


class Front(Protocol):
    """The part of a ``ParetoFront`` that files hold."""

    @property
    def weights(self) -> Mapping[str, float]: ...  # noqa: D102
    @property
    def dense(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def settings(self) -> Mapping[str, Any]: ...  # noqa: D102
    def __iter__(self) -> Iterator[Saved]: ...


def save_front(front: Front, folder: Path) -> None:
    """Write masks/, front.csv and front.json.

    front.json is replaced in one step; masks are named by their content, so the old front stays whole until then.
    Afterwards the masks that only the previous front.json names are removed, and no other file.

    Raises:
        RunError: If a file can't be written, or ``masks`` is a link.
    """
    make_folder(folder, may_be_link=True)
    masks = folder / "masks"
    make_folder(masks)
    texts = [solution.masks.to_json() for solution in front]
    names = [f"masks/{number:04d}-{_short_hash(text)}.json" for number, text in enumerate(texts)]
    earlier = _earlier_names(folder)
    write_text(masks / PENDING, json.dumps(sorted({*earlier, *names})))
    for name, text in zip(names, texts, strict=True):
        write_text(folder / name, text)
    write_text(folder / "front.csv", _table(front, names))
    run = run_of(folder)
    write_text(folder / "front.json", sealed_json(_content(front, names) | ({} if run is None else {"run": run})))
    for name in earlier - set(names):
        remove_file(folder / name)
    remove_file(masks / PENDING)


def _content(front: Front, names: list[str]) -> dict[str, Any]:
    return {
        "objectives": [{"name": name, "maximise": weight > 0} for name, weight in front.weights.items()],
        "dense": dict(front.dense),
        "convention": "1 multiply-add = 1 flop (fvcore), one sample, eval mode",
        "settings": dict(front.settings),
        "solutions": [
            {
                "values": dict(solution.values),
                "flops": solution.flops,
                "params": solution.params,
                "masks": name,
                "individual": list(solution.individual),
                **({} if solution.latency is None else {"latency": solution.latency}),
            }
            for name, solution in zip(names, front, strict=True)
        ],
    }


def _table(front: Front, names: list[str]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    timed = any(solution.latency is not None for solution in front)
    writer.writerow(["masks", *front.weights, "multiply_adds", "parameters", *(["milliseconds"] if timed else [])])
    for name, solution in zip(names, front, strict=True):
        times = [solution.latency] if timed else []
        writer.writerow([name, *solution.values.values(), solution.flops, solution.params, *times])
    return table.getvalue()


def _earlier_names(folder: Path) -> set[str]:
    """Names of masks that the previous save of this folder wrote, or an unfinished one may have written."""
    names: list[Any] = []
    for path in (folder / "front.json", folder / "masks" / PENDING):
        try:
            content = parse_json(read_text(path))
            entries = content if isinstance(content, list) else [entry["masks"] for entry in content["solutions"]]
            names += entries
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {name for name in names if isinstance(name, str) and MASK_NAME.fullmatch(name)}


def read_front(folder: Path) -> ReadFront:
    """Read and check the front of a run folder.

    Raises:
        RunError: If there is none, it can't be read, it is the front of another run than config.yaml (fronts of earlier
            versions do not name their run), its values are not finite numbers of its objectives, or masks are missing,
            outside the folder, or not those that were written.
    """
    path = folder / "front.json"
    if not folder.is_dir():
        raise RunError(f"there is no folder '{folder}'")
    if not path.is_file():
        begun = "a run writes it when it is done (deap-prune resume goes on)"
        advice = begun if (folder / "config.yaml").is_file() else "give the folder of a run"
        raise RunError(f"'{folder}' holds no front.json; {advice}")
    try:
        raw = unsealed_json(parse_json(read_text(path)))
        checked = FrontFile.model_validate(raw)
        if checked.run is not None and (run := run_of(folder)) is not None and run != checked.run:
            raise ValueError(f"it is the front of another run ({checked.run[:8]}, and config.yaml is of {run[:8]})")
        weights = {entry.name: 1.0 if entry.maximise else -1.0 for entry in checked.objectives}
        if len(weights) < len(checked.objectives):
            raise ValueError("two objectives have the same name")
        for number, entry in enumerate(checked.solutions):
            if entry.values.keys() != weights.keys():
                raise ValueError(f"solution {number} has values of {[*entry.values]}, not of {[*weights]}")
        solutions = [(entry, _read_masks(folder, entry["masks"])) for entry in raw["solutions"]]
    except (OSError, ValueError) as error:
        raise RunError(
            f"'{path}' can't be read as a front: {_reason(error)}; deap-prune resume (dp.resume) writes it again"
        ) from error
    return ReadFront(weights, raw["dense"], raw["settings"], solutions)


def _read_masks(folder: Path, name: str) -> Masks:
    """The masks of a name in front.json, whose name carries the hash of the content."""
    path = folder / name
    if path.is_symlink() or path.parent.is_symlink():
        raise ValueError(f"'{name}' is a link, or in a linked folder")
    text = read_text(path, most=MOST_MASK_BYTES)
    match = MASK_NAME.fullmatch(name)
    if match is None or _short_hash(text) != match[1]:
        raise ValueError(f"'{name}' is not the file that the run wrote (its name carries another hash)")
    try:
        return Masks.from_json(text)
    except ValueError as error:
        raise ValueError(f"'{name}': {error}") from error


def _reason(error: Exception) -> str:
    """The cause in one line; of a schema's many errors the first few."""
    if not isinstance(error, ValidationError):
        return f"{error}"[:300] or type(error).__name__
    parts = [f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors(include_input=False)]
    return "; ".join(parts[:3])


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
