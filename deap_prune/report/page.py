"""Renders the page: template, style, scripts and the facts as JSON in one file."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from deap_prune.errors import BudgetError
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.files import write_text
from deap_prune.report.comparison import compare_fronts
from deap_prune.report.facts import Facts, Insight
from deap_prune.report.pictures import progress_key

BASELINES = (
    "Open symbols, with uniform widths: single criteria (orange), random filters and the mean rank of all criteria "
    "(Borda, violet)."
)
PARTS = {"style": "page.css", "charts": "charts.js", "script": "page.js"}
FLOPS_NOTE = """<p class="hint">FLOPs: share of the dense network's multiply-adds in the layers that write or read these
      filters; a layer between two pruned ones counts for both.</p>"""
COMPARISON = """<section aria-labelledby="comparison-title">
  <h2 id="comparison-title">Comparison of runs</h2>
  <p class="hint">Dominated: share of a run's solutions that another run's solution beats in every objective.</p>
  {reached}
  <h3>Settings that differ</h3>
  {settings}
</section>"""

LATENCY = """<section aria-labelledby="latency-title">
  <h2 id="latency-title">Latency</h2>
  <p class="hint">Of one batch ({setting}), as the table predicts it and as it was measured at the end of the search.
  Median error {error}.</p>
  {table}
</section>"""


SELECTION = (
    "Refinement selected the filters of these networks (<code>select: sequential</code>); the blend gave their widths, "
    "and a preference."
)


def render(facts: Facts, path: Path) -> Path:
    """Write the page.

    Args:
        facts: Contents of the page.
        path: File to write.

    Returns:
        The path.
    """
    write_text(path, page(facts))
    return path


def page(facts: Facts, *, live: bool = False) -> str:
    """The page as HTML.

    Args:
        facts: Contents of the page.
        live: The page asks for ``facts``, beside it, every two seconds.
    """
    resources = files("deap_prune.report")
    parts = {name: (resources / name).read_text(encoding="utf-8") for name in ("page.html", *PARTS.values())}
    insight = facts.insight
    return Template(parts["page.html"]).substitute(
        {name: parts[file] for name, file in PARTS.items()},
        title=escape(facts.folder.resolve().name),
        connect="; connect-src 'self'" if live else "",
        clusters=_clusters(facts),
        latency=_latency(facts),
        comparison=_comparison(facts),
        symbols=_symbols(facts),
        note="" if insight or live else f'<p class="note">No criteria in this report: {escape(facts.why)}.</p>',
        flops_note=FLOPS_NOTE if insight else "",
        config=escape(facts.config or "no config.yaml in the run folder"),
        versions="".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts.versions.items()),
        as_of="of the run" if facts.run_versions else "of this report; the run stored none",
        refined="Values before refinement; the front was refined after the search."
        if facts.front.settings.get("refine")
        else "",
        selection=_selection(facts),
        settings=escape(in_words(facts.front.settings) or "not stored"),
        facts=content(facts, live=live).replace("<", "\\u003c"),
    )


def _symbols(facts: Facts) -> str:
    """What the chart's other symbols mean, if there are any."""
    parts = [BASELINES] if facts.insight is not None else []
    return " ".join([*parts, *(["Green: other runs."] if facts.beside else [])])


def _selection(facts: Facts) -> str:
    """What selected the filters, if it was not the blend."""
    selects = re.search(r"^  select: sequential$", facts.config, re.MULTILINE)
    if selects is None or not facts.front.settings.get("refine"):
        return ""
    return SELECTION


def in_words(settings: Mapping[str, Any]) -> str:
    """How the values of a front were evaluated; settings that were off are left out."""
    stored = dict(settings)
    refine, select, recover = (stored.pop(name, None) for name in ("refine", "select", "recover"))
    images, rows, memory = (stored.pop(f"refine_{name}", None) for name in ("images", "rows", "memory"))
    compensate, moments, statistics = (stored.pop(n, None) for n in ("compensate", "moment_memory", "recalibrate"))
    parts = []
    if settings:
        kinds = {"full": "full matrices", "channel": "by channel", "auto": "matrices as memory allows"}
        how = f"{kinds.get(compensate, compensate)}, at most {moments} MB" if compensate else ""
        parts.append(f"layers re-fitted in closed form ({how})" if compensate else "layers not re-fitted")
        sources = {"closed_form": "computed from moments", "data": "measured on the calibration images"}
        parts.append(f"BN statistics {sources.get(statistics, 'of the dense network')}")
        parts.append(
            f"refined on at most {images} images, {rows} positions each, in {memory:g} GB" if refine else "not refined"
        )
    parts += ["filters selected while a candidate is refined"] if select else []
    parts += [f"{recover} steps of recovery"] if recover else []
    return ", ".join([*parts, *(f"{name.replace('_', ' ')} {value}" for name, value in stored.items())])


def _lead(facts: Facts) -> str:
    goals = [f"{name} ({'more' if w > 0 else 'less'} is better)" for name, w in facts.front.weights.items()]
    subject = "A pruned network" if len(facts.front) == 1 else f"{len(facts.front)} pruned networks"
    if len(facts.front) > 1:
        subject += ", none of which is dominated by another"
    caution = "All values come from the validation images that the search optimised; expect lower ones on new images."
    return f"{subject}: {', '.join(goals)}. {caution}"


def _tiles(facts: Facts) -> dict[str, str]:
    """Figures of the front; all of them follow from front.json, apart from the number of individuals."""
    front, tiles = facts.front, {"solutions": str(len(facts.front))}
    if facts.history:
        tiles["individuals evaluated"] = f"{facts.history[-1]['evaluations']:,.0f}"
    if len(front.weights) > 1 and len(front):
        tiles["hypervolume"] = f"{front.hypervolume():.4f}"
    first = next(iter(front.weights))
    if first in front.dense.get("values", {}):
        tiles[f"dense {first}"] = f"{front.dense['values'][first]:.4f}"
    for share in (0.5, 0.25):
        try:
            tiles[f"{first} at ≤ {share:.0%} FLOPs"] = f"{front.best(max_flops=share).values[first]:.4f}"
        except BudgetError:
            break
    return tiles


def _comparison(facts: Facts) -> str:
    """The HTML section that compares this run with the others."""
    if not facts.beside:
        return ""
    fronts = {facts.name: facts.front, **facts.beside}
    head, *rows = compare_fronts(fronts)
    reached = _html_table(head, rows, "What the runs reach")
    rows = [[key, *values] for key, values in facts.differences.items()]
    settings = _html_table(["setting", *fronts], rows, "Settings that differ")
    return COMPARISON.format(reached=reached, settings=settings if facts.differences else "<p>No setting differs.</p>")


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> str:
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    table = f'<table class="numbers"><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{table}</div>'


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
    """The HTML section of predicted and measured latencies; empty without them."""
    check = facts.latency
    if check is None:
        return ""
    speedups = [f"{name}, times faster than dense" for name in check.speedups]
    head = ["solution", "predicted, ms", "measured, ms", "error", *speedups]
    rows = [
        [str(number), f"{guess:.2f}", f"{ms:.2f}", f"{guess / ms - 1:+.0%}"]
        + [f"{times[number]:.2f}" for times in check.speedups.values()]
        for number, (guess, ms) in enumerate(zip(check.predicted, check.measured, strict=True))
    ]
    return LATENCY.format(
        setting=escape(check.setting),
        error=f"{check.median_error:.1%}",
        table=_html_table(head, rows, "Latencies of the solutions"),
    )


def content(facts: Facts, *, live: bool = False) -> str:
    """The data of the page's script as JSON; numbers that are not finite become null."""
    front, insight = facts.front, facts.insight
    names, shares = facts.shares()
    fields = {
        "live": live,
        "status": facts.status,
        "lead": _lead(facts),
        "tiles": _tiles(facts),
        "objectives": [{"name": n, "maximise": w > 0} for n, w in front.weights.items()],
        "dense": {"values": front.dense.get("values", {}), **{k: front.dense[k] for k in ("flops", "params")}},
        "layers": [{"name": name, "size": size} for name, size in facts.layers.items()],
        "layer_flops": _layer_flops(insight),
        "solutions": [_solution(facts, number, s) for number, s in enumerate(front)],
        "chosen": _default_solution(front),
        "singles": [vars(s) for s in insight.singles] if insight else [],
        "baselines": [vars(s) for s in insight.baselines] if insight else [],
        "beside": [{"name": name, "solutions": _points(other_front)} for name, other_front in facts.beside.items()],
        "progress": _progress(facts),
        "agreement": _agreement(facts),
        "shares": {"criteria": list(names), "table": shares.tolist()},
    }
    return json.dumps(_finite(fields), allow_nan=False)


def _layer_flops(insight: Insight | None) -> dict[str, Any] | None:
    if insight is None:
        return None
    dense, *solutions = insight.layer_flops.tolist()
    return {"dense": dense, "solutions": solutions}


def _progress(facts: Facts) -> dict[str, Any]:
    """The curve of the search, that of held-out images, and the same figure of the front in front.json."""
    front = facts.front
    key = progress_key(front, facts.history) if facts.history else ""
    points, guard = ([[r["evaluations"], r[c]] for r in facts.history if c in r] for c in (key, "guard"))
    final = None
    if not facts.status and points and len(front):
        final = front.hypervolume() if key == "hypervolume" else front.best(by=key).values[key]
    return {"name": key, "points": points, "guard": guard, "final": final}


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
        "command": f"deap-prune slim {shlex.quote(str(facts.folder))} --number {number}{_factory(facts)}",
    }


def _factory(facts: Facts) -> str:
    """What a command needs in addition for a run that Python started without ``factory=``."""
    return " --model MODULE:FUNCTION" if re.search("^model: null$", facts.config, re.MULTILINE) else ""


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
