"""A front as a table, for printing and for data frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deap_prune.display import FrontFigures

COSTS = {"flops": "multiply-adds", "params": "parameters"}


def as_table(front: FrontFigures) -> tuple[list[str], list[list[str]]]:
    """Columns, and a row of cells for each solution and for the dense network.

    A cost's kept share follows its count, unless the share is an objective, which has a column of its own.
    """
    networks: list[tuple[str, Mapping[str, float], Mapping[str, Any]]] = [
        (str(number), s.values, {"flops": s.flops, "params": s.params}) for number, s in enumerate(front)
    ]
    networks.append(("dense", front.dense.get("values", {}), front.dense))
    rows = []
    for name, values, counts in networks:
        row = [name, *rounded({key: values.get(key) for key in front.weights})]
        for cost in COSTS:
            share = "" if cost in front.weights else f" ({counts[cost] / front.dense[cost]:.1%})"
            row.append(f"{counts[cost]:,}{share}")
        rows.append(row)
    return ["", *front.weights, *COSTS.values()], rows


def as_rows(front: FrontFigures) -> list[dict[str, Any]]:
    """For each solution its objectives, multiply-adds, parameters, and their kept shares."""
    return [
        {
            **s.values,
            "multiply_adds": s.flops,
            "parameters": s.params,
            "kept_flops": s.flops / front.dense["flops"],
            "kept_params": s.params / front.dense["params"],
        }
        for s in front
    ]


def rounded(values: Mapping[str, float | None]) -> list[str]:
    """The values with four decimals; a missing one is empty."""
    return ["" if value is None else f"{value:.4f}" for value in values.values()]
