"""The file live.json: a run's front after its last generation, for a page that watches the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deap_prune.errors import RunError
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.evolution.generation import Generation
from deap_prune.evolution.problem import BlendProblem
from deap_prune.files import parse_json, read_text, write_text
from deap_prune.search.folder import pack_masks, unpack_bits

LIVE = "live.json"


@dataclass(frozen=True)
class LiveState:
    """The content of live.json.

    Attributes:
        generation: Number of the last generation.
        generations: Number of the last one that the run was started for.
        layers: Group name to its number of filters, in order of execution.
        front: The non-dominated candidates so far, with the values that they are compared by.
    """

    generation: int
    generations: int
    layers: Mapping[str, int]
    front: ParetoFront


def live_writer(folder: Path, problem: BlendProblem, generations: int) -> Callable[[Generation], None]:
    """A callback that writes live.json after each generation."""
    space = problem.genome.space
    layers = {group.name: group.size for group in space.groups}

    def write(state: Generation) -> None:
        front = problem.front(state.archive)
        solutions = [
            {"values": dict(s.values), "flops": s.flops, "params": s.params, "masks": pack_masks(space, s.masks)}
            for s in front
        ]
        fields = {
            "generation": state.number,
            "generations": generations,
            "layers": layers,
            "objectives": dict(front.weights),
            "dense": dict(front.dense),
            "settings": dict(front.settings),
            "solutions": solutions,
        }
        write_text(folder / LIVE, json.dumps(fields, default=str))

    return write


def read_live(folder: Path) -> LiveState:
    """Read live.json.

    Raises:
        RunError: If it can't be read.
    """
    path = folder / LIVE
    try:
        fields: dict[str, Any] = parse_json(read_text(path))
        layers = {str(name): int(size) for name, size in fields["layers"].items()}
        solutions = [
            Solution(entry["values"], unpack_bits(layers, entry["masks"]), int(entry["flops"]), int(entry["params"]))
            for entry in fields["solutions"]
        ]
        front = ParetoFront.of(solutions, fields["objectives"], fields["dense"], fields["settings"])
        return LiveState(int(fields["generation"]), int(fields["generations"]), layers, front)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f"'{path}' can't be read ({error!r}); the run writes it again after its next generation"
        ) from error
