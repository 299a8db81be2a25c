"""Write RESULTS.md: the text of RESULTS.template.md, with every table and picture made from the JSON files in results/.

A line ``<!-- table: name -->`` of the template becomes the table of that name (see ``TABLES``). Run it with
``make results``; a test compares the committed RESULTS.md with what this script makes.

    python benchmarks/tables.py
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cost_tables
import decision_tables
import evidence_tables
import method_tables

FOLDER = Path(__file__).parent
TABLES: dict[str, Callable[[], str]] = {
    "at_half": method_tables.at_half,
    "selection": method_tables.selection,
    "blend_worth": method_tables.blend_worth,
    "ablation": evidence_tables.ablation,
    "rivals": evidence_tables.rivals,
    "rival_ranges": evidence_tables.rival_ranges,
    "parameter_budgets": evidence_tables.parameter_budgets,
    "published": evidence_tables.published,
    "after_training": evidence_tables.after_training,
    "resnet56": evidence_tables.resnet56,
    "trained_proxies": evidence_tables.trained_proxies,
    "recipes": evidence_tables.recipes,
    "imagenet": evidence_tables.imagenet,
    "imagenet_cost": cost_tables.imagenet_cost,
    "workers": cost_tables.workers,
    "steady_state": cost_tables.steady_state,
    "int8": cost_tables.int8,
    "latency_search": cost_tables.latency_search,
    "candidate_cost": cost_tables.candidate_cost,
    "tracing_and_scoring": cost_tables.tracing_and_scoring,
    "latency": cost_tables.latency,
    "predicted_latency": cost_tables.predicted_latency,
    "coverage": cost_tables.coverage,
    "coverage_totals": cost_tables.coverage_totals,
    "operators": decision_tables.operators,
    "decisions": decision_tables.decisions,
}


def results() -> str:
    """The text of RESULTS.md."""
    template = (FOLDER / "RESULTS.template.md").read_text(encoding="utf-8")
    return re.sub(r"<!-- table: (\w+) -->", lambda match: TABLES[match[1]](), template)


if __name__ == "__main__":
    from pictures import draw_all

    (FOLDER / "RESULTS.md").write_text(results(), encoding="utf-8")
    draw_all()
