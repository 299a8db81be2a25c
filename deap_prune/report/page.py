"""Renders the page: template, style, scripts and the facts as JSON in one file."""

from __future__ import annotations

import json
import math
import shlex
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from deap_prune.errors import BudgetError, RunError
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.files import write_text
from deap_prune.report.facts import Facts
from deap_prune.report.pictures import progress_key


def plotly_source() -> str:
    """The script from the plotly package.

    Raises:
        RunError: If plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise RunError("the report is drawn with plotly, which is missing: pip install 'deap-prune[report]'") from error
    return str(get_plotlyjs())


def render(facts: Facts, plotly: str, path: Path) -> Path:
    """Write the page.

    Args:
        facts: Contents of the page.
        plotly: Plotly's script.
        path: File to write.

    Returns:
        The path.
    """
    resources = files("deap_prune.report")
    page = Template((resources / "page.html").read_text(encoding="utf-8"))
    text = page.substitute(
        title=escape(facts.folder.resolve().name),
        lead=_lead(facts),
        tiles="".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in _tiles(facts).items()),
        clusters=_clusters(facts),
        note="" if facts.insight else f'<p class="note">No criteria in this report: {escape(facts.why)}.</p>',
        latency=_latency(facts),
        config=escape(facts.config or "no config.yaml in the run folder"),
        versions="".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts.versions.items()),
        as_of="of the run" if facts.run_versions else "of this report; the run stored none",
        refined="Values before refinement; the front was refined after the search."
        if facts.front.settings.get("refine")
        else "",
        settings=escape(", ".join(f"{k}: {v}" for k, v in facts.front.settings.items()) or "not stored"),
        style=(resources / "page.css").read_text(encoding="utf-8"),
        script=(resources / "page.js").read_text(encoding="utf-8"),
        plotly=plotly,
        facts=json.dumps(_content(facts), allow_nan=False).replace("<", "\\u003c"),
    )
    write_text(path, text)
    return path


def _lead(facts: Facts) -> str:
    goals = [f"{name} ({'more' if w > 0 else 'less'} is better)" for name, w in facts.front.weights.items()]
    subject = "A pruned network"
    if len(facts.front) > 1:
        subject = f"{len(facts.front)} pruned networks, none of which is dominated by another"
    caution = "All values come from the validation images that the search optimised; expect lower ones on new images."
    return escape(f"{subject}: {', '.join(goals)}. {caution}")


def _tiles(facts: Facts) -> dict[str, str]:
    front, tiles = facts.front, {"solutions": str(len(facts.front))}
    if facts.history:
        tiles["evaluations"] = f"{facts.history[-1]['evaluations']:,.0f}"
    if facts.history and (key := progress_key(front, facts.history)) == "hypervolume":
        tiles[key] = f"{facts.history[-1][key]:.4f}"
    first = next(iter(front.weights))
    if first in front.dense.get("values", {}):
        tiles[f"dense {first}"] = f"{front.dense['values'][first]:.4f}"
    for share in (0.5, 0.25):
        try:
            tiles[f"{first} at ≤ {share:.0%} FLOPs"] = f"{front.best(max_flops=share).values[first]:.4f}"
        except BudgetError:
            break
    return tiles


def _clusters(facts: Facts) -> str:
    """An HTML table of the clusters of every layer; medoids come first."""
    if facts.insight is None:
        return ""
    rows = []
    for name, group in facts.insight.clusters.groups.items():
        cells = "".join(f"<td><b>{escape(m[0])}</b> {escape(' '.join(m[1:]))}</td>" for m in group.members)
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return "".join(rows)


def _latency(facts: Facts) -> str:
    """An HTML section: predicted and measured latencies; empty without them."""
    check = facts.latency
    if check is None:
        return ""
    head = "".join(f"<th>{escape(name)}, times faster than dense</th>" for name in check.speedups)
    rows = "".join(
        f"<tr><th>{number}</th><td>{guess:.2f}</td><td>{ms:.2f}</td><td>{guess / ms - 1:+.0%}</td>"
        + "".join(f"<td>{times[number]:.2f}</td>" for times in check.speedups.values())
        + "</tr>"
        for number, (guess, ms) in enumerate(zip(check.predicted, check.measured, strict=True))
    )
    return (
        f'<section>\n  <h2>Latency</h2>\n  <p class="hint">Of one batch ({escape(check.setting)}), as the table '
        f"predicts it and as it was measured at the end of the search. Median error {check.median_error:.1%}.</p>\n"
        '  <div class="scroll"><table><tr><th>solution</th><th>predicted, ms</th><th>measured, ms</th><th>error</th>'
        f"{head}</tr>{rows}</table></div>\n</section>"
    )


def _content(facts: Facts) -> dict[str, Any]:
    """The data of the page's script, for JSON: numbers that are not finite become None."""
    front = facts.front
    insight = facts.insight
    names, shares = facts.shares()
    key = progress_key(front, facts.history) if facts.history else ""
    lines = {column: [[r["evaluations"], r[column]] for r in facts.history if column in r] for column in (key, "guard")}
    content = {
        "objectives": [{"name": n, "maximise": w > 0} for n, w in front.weights.items()],
        "dense": {"values": front.dense.get("values", {}), **{k: front.dense[k] for k in ("flops", "params")}},
        "layers": [{"name": name, "size": size} for name, size in facts.layers.items()],
        "solutions": [_solution(facts, number, s) for number, s in enumerate(front)],
        "chosen": _default_solution(front),
        "singles": [vars(s) for s in insight.singles] if insight else [],
        "baselines": [vars(s) for s in insight.baselines] if insight else [],
        "beside": [{"name": name, "solutions": _points(other_front)} for name, other_front in facts.beside.items()],
        "progress": {"name": key, "points": lines[key], "guard": lines["guard"]},
        "agreement": _agreement(facts),
        "shares": {"criteria": list(names), "table": shares.tolist()},
    }
    return dict(_finite(content))


def _default_solution(front: ParetoFront) -> int | None:
    """Number of the solution that is shown first: the best at half the FLOPs, or else the cheapest."""
    try:
        return front.solutions.index(front.best(max_flops=0.5))
    except BudgetError:
        return 0 if len(front) else None


def _solution(facts: Facts, number: int, solution: Solution) -> dict[str, Any]:
    masks = solution.masks
    return {
        "values": dict(solution.values),
        "flops": solution.flops,
        "params": solution.params,
        "kept": [int(masks[name].sum()) if name in masks else size for name, size in facts.layers.items()],
        "blend": facts.insight.blends[number] if facts.insight and facts.insight.blends else {},
        "command": f"deap-prune slim {shlex.quote(str(facts.folder))} --number {number}",
    }


def _points(front: ParetoFront) -> list[dict[str, Any]]:
    return [{"values": dict(s.values), "flops": s.flops, "params": s.params} for s in front]


def _agreement(facts: Facts) -> list[dict[str, Any]]:
    """Spearman's rho between criteria: the mean over the layers, then each layer."""
    if facts.insight is None:
        return []
    clusters = facts.insight.clusters
    names, mean = clusters.correlation()
    mean_table = {"layer": "mean over the layers", "criteria": list(names), "rho": mean.tolist()}
    layers = [
        {"layer": name, "criteria": list(group.criteria), "rho": group.correlation.tolist()}
        for name, group in clusters.groups.items()
    ]
    return [mean_table, *layers]


def _finite(value: Any) -> Any:
    """The value with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
