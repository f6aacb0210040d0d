"""A comparison as Markdown (tables) and as one HTML file (tables, plots, turntables side by side)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from psd_gs import report as html
from psd_gs.evaluation.budget import Budget
from psd_gs.evaluation.compare import (
    Measure,
    Results,
    compare,
    cost_of,
    headline,
    judges,
    mean,
    pairs,
    score_of,
)
from psd_gs.evaluation.scores import azimuths
from psd_gs.evaluation.statistics import Paired
from psd_gs.files import printable, read_json, write_atomic, writing

Cells = Sequence[Sequence[str]]
"""Rows of text, the header first."""

LEGEND = (
    "Differences are first minus second, prompt by prompt, seeds averaged first; intervals are 95 %: bootstrap over "
    "prompts for the mean, Wilson's for the share of prompts won (a tie is half a win). d: Cohen's d of the paired "
    "differences; delta: Cliff's. Seconds are those of the optimization loop alone."
)


def write_report(folder: Path, found: Results, against: Sequence[str] = (), command: str = "") -> Path:
    """``report.md``, ``report.html`` and ``results.jsonl`` in ``folder``, each replaced in one step.

    Args:
        folder: of the evaluation.
        found: what is compared.
        against: arms that all others are compared with, see :func:`psd_gs.evaluation.compare.pairs`.
        command: that made it, for the record.

    Returns:
        The path of ``report.html``.

    Raises:
        FormatError: a damaged budget.
        OutputError: the folder cannot be written.
    """
    budget_file = folder / "budget.json"
    budget = read_json(budget_file, Budget).to_dict() if budget_file.exists() else {}
    rows = [found.rows[arm, p, s] for arm in found.arms for p, seeds in found.seeds.items() for s in seeds]
    lines = (json.dumps({name: v for name, v in row.items() if name != "folder"}) + "\n" for row in rows)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "results.jsonl", "".join(lines))
    write_atomic(folder / "report.md", markdown(found, against, budget, command))
    write_atomic(folder / "report.html", page(found, against, budget, command))
    return folder / "report.html"


# --- tables ----------------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """``+0.123``, or a dash where there is none."""
    return f"{value:{'+' if sign else ''}.{digits}f}" if math.isfinite(value) else "-"


def share(value: float) -> str:
    return f"{100 * value:.0f} %" if math.isfinite(value) else "-"


def arms_table(found: Results) -> Cells:
    """One column per arm, one line per cost and measure."""
    row = next(iter(found.rows.values()))
    lines = [["mean over prompts", *found.arms]]
    for name, digits in {"steps": 0, "seconds": 1, "gaussians": 0, "memory": 2}.items():
        cost = Measure(name, cost_of(name))
        label = "memory, GB" if name == "memory" else name
        lines.append([label, *(number(found.mean(arm, cost), digits) for arm in found.arms)])
    for measure in headline(row):
        lines.append([measure.name + direction(measure), *(number(found.mean(arm, measure)) for arm in found.arms)])
    for name in judges(row)[:1]:
        right = Measure("right caption", score_of(name, "right"))
        lines.append([f"{name}, right caption", *(share(found.mean(arm, right)) for arm in found.arms)])
    failed = [[bool(r["error"]) for prompt in found.seeds for r in found.of(arm, prompt)] for arm in found.arms]
    return [*lines, ["vanished assets", *(str(sum(some)) for some in failed)]]


def comparison_table(found: Results, measure: Measure, against: Sequence[str]) -> Cells:
    """Pairs of arms by one measure."""
    lines = [["comparison", "difference", "95 %", "prompts won", "95 %", "d", "delta"]]
    for first, second in pairs(found.arms, against):
        if (p := compare(found, first, second, measure)) is not None:
            lines.append([f"{first} against {second}", *_cells(p)])
    return lines


def _cells(p: Paired) -> list[str]:
    low, high = p.interval
    return [
        number(p.mean, sign=True),
        f"[{number(low, sign=True)}, {number(high, sign=True)}]",
        share(p.wins),
        f"[{share(p.wins_interval[0])}, {share(p.wins_interval[1])}]",
        number(p.d, 2, sign=True),
        number(p.delta, 2, sign=True),
    ]


def groups_table(found: Results, against: Sequence[str]) -> Cells:
    """The first measure by groups of the suite: means, and shares of prompts won; empty if there is one group."""
    measure = headline(next(iter(found.rows.values())))[0]
    if len(found.groups) < 2:
        return []
    compared = pairs(found.arms, against)
    lines = [["group", "prompts", *found.arms, *(f"{first} against {second}, won" for first, second in compared)]]
    for group, prompts in found.groups.items():
        part = found.only(prompts)
        means = (number(part.mean(arm, measure)) for arm in found.arms)
        wins = (share(p.wins) if (p := compare(part, *pair, measure)) else "-" for pair in compared)
        lines.append([group or "-", str(len(prompts)), *means, *wins])
    return lines


def prompts_table(found: Results) -> Cells:
    """The first measure of every prompt in every arm."""
    measure = headline(next(iter(found.rows.values())))[0]
    values = [found.by_prompt(arm, measure) for arm in found.arms]
    lines = [["prompt", *found.arms]]
    for i, prompt in enumerate(found.seeds):
        lines.append([prompt, *(number(value[i], sign=True) for value in values)])
    return lines


def budget_lines(budget: Mapping[str, Any]) -> list[str]:
    """What every arm could spend, in words."""
    if not budget:
        return []
    steps = ", ".join(f"{arm} {count}" for arm, count in budget["steps"].items())
    if budget["kind"] == "equal-steps":
        return [f"budget: equal steps; per run: {steps}"]
    costs = ", ".join(f"{arm} {1000 * cost:.0f} ms" for arm, cost in budget["seconds_per_step"].items())
    time = f"the {budget['seconds']:.1f} s that {budget['time_of']} takes for the preset's steps"
    return [f"budget: equal time, {time}; a step takes {costs}; steps per run: {steps}"]


def provenance(found: Results, budget: Mapping[str, Any], command: str) -> list[str]:
    """Command, date, models and machines."""
    rows = list(found.rows.values())

    def distinct(texts: Sequence[Any]) -> str:
        return ", ".join(sorted({str(text) for text in texts if text is not None})) or "none"

    machines = [row["machine"] for row in rows]
    weights = {f"{name} {digest}" for row in rows for name, digest in row["weights"].items()}
    lines = [f"command: {command}"] if command else []
    lines += [f"date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; psd-gs {distinct([row['version'] for row in rows])}"]
    lines += [
        f"suite {distinct([row['suite'] for row in rows])}: {len(found.seeds)} prompts, "
        f"{sum(map(len, found.seeds.values()))} prompts and seeds; preset {distinct([row['preset'] for row in rows])}",
        f"prior {distinct([row['prior'] for row in rows])}; optimized reward "
        f"{distinct([row['optimized'] for row in rows])}; held-out judges {', '.join(judges(rows[0])) or 'none'}",
        *budget_lines(budget),
        "machine: " + "; ".join(f"{name} {distinct([m.get(name) for m in machines])}" for name in machines[0]),
    ]
    lines += [f"weights (SHA-256): {', '.join(sorted(weights))}"] if weights else []
    lines += [f"{found.left_out} finished runs lack a partner in another arm and are left out"] * bool(found.left_out)
    return lines


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown_table(cells: Cells) -> str:
    """The first column is text, the others are numbers."""
    header, *rows = cells
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown(found: Results, against: Sequence[str], budget: Mapping[str, Any], command: str) -> str:
    """The whole Markdown page."""
    row = next(iter(found.rows.values()))
    parts = ["# " + title(found)]
    parts.append("\n".join(f"- {line}" for line in provenance(found, budget, command)))
    parts += [markdown_table(arms_table(found)), "## Comparisons", LEGEND]
    for measure in headline(row):
        cells = comparison_table(found, measure, against)
        if len(cells) > 1:
            parts += [f"### {measure.name}{direction(measure)}", markdown_table(cells)]
    if groups := groups_table(found, against):
        parts += [f"## {headline(row)[0].name}, by group", markdown_table(groups)]
    parts += [f"## {headline(row)[0].name}, by prompt", markdown_table(prompts_table(found))]
    return "\n".join(map(printable, "\n\n".join(parts).split("\n"))) + "\n"


def title(found: Results) -> str:
    return f"{', '.join(found.arms)} on {next(iter(found.rows.values()))['suite']}"


def direction(measure: Measure) -> str:
    return "" if measure.better > 0 else " (lower is better)"


# --- HTML ------------------------------------------------------------------------------------------------------------


def page(found: Results, against: Sequence[str], budget: Mapping[str, Any], command: str) -> str:
    """The whole HTML page; pictures and plots are inside."""
    measures = headline(next(iter(found.rows.values())))
    sections = {
        "Arms": html.table(arms_table(found)[1:], arms_table(found)[0]),
        "Differences": html.paragraph(LEGEND) + html.grid(*difference_charts(found, measures, against)),
        "Around the asset": html.grid(*azimuth_charts(found)),
        "Prompt by prompt": html.grid(*scatter_charts(found, measures[0], against)),
    }
    tables = (
        html.details(m.name + direction(m), html.table(cells[1:], cells[0]))
        for m in measures
        if len(cells := comparison_table(found, m, against)) > 1
    )
    sections["Comparisons"] = "".join(tables)
    if groups := groups_table(found, against):
        sections[f"{measures[0].name}, by group"] = html.table(groups[1:], groups[0])
    prompts = prompts_table(found)
    sections[f"{measures[0].name}, by prompt"] = html.table(prompts[1:], prompts[0])
    sections["Turntables"] = turntables(found, measures[0])
    intro = "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in provenance(found, budget, command)) + "</ul>"
    return html.page(title(found), sections, intro=intro)


def difference_charts(found: Results, measures: Sequence[Measure], against: Sequence[str]) -> list[str]:
    """Bars with intervals, one chart per measure."""
    charts = []
    for measure in measures:
        compared = [(a, b, compare(found, a, b, measure)) for a, b in pairs(found.arms, against)]
        bars = [html.Bar(f"{a} − {b}", p.mean, *p.interval) for a, b, p in compared if p is not None]  # noqa: RUF001
        if bars:
            charts.append(html.bar_chart(bars, title=measure.name + direction(measure)))
    return charts


def azimuth_charts(found: Results) -> list[str]:
    """Means over assets by azimuth: the judges' scores, and how likely a front each view is."""
    row = next(iter(found.rows.values()))
    order = sorted(range(len(row["janus"]["front"])), key=lambda i: azimuths(len(row["janus"]["front"]))[i])
    places = [azimuths(len(order))[i] for i in order]

    def curve(arm: str, read: Any) -> list[float]:
        rows = [row for prompt in found.seeds for row in found.of(arm, prompt)]
        values = [[math.nan if v is None else v for v in read(row)] for row in rows]
        values = [some for some in values if len(some) == len(order)]
        return [mean([some[i] for some in values]) for i in order]

    charts = []
    for name in judges(row):
        series = {
            arm: curve(arm, lambda r, name=name: r["scores"].get(name, {}).get("views", [])) for arm in found.arms
        }
        charts.append(html.line_chart(series, places, title=f"{name}, view by view", x_label="azimuth, degrees"))
    series = {arm: curve(arm, lambda r: r["janus"]["front"]) for arm in found.arms}
    name = f"looks like a front ({row['janus']['front_by']})"
    return [*charts, html.line_chart(series, places, title=name, x_label="azimuth, degrees")]


def scatter_charts(found: Results, measure: Measure, against: Sequence[str]) -> list[str]:
    """One dot per prompt: the first arm over the second."""
    charts = []
    for a, b in pairs(found.arms, against):
        points = list(zip(found.by_prompt(b, measure), found.by_prompt(a, measure), strict=True))
        dots = {a: [(float(x), float(y)) for x, y in points if np.isfinite([x, y]).all()]}
        name = f"{measure.name}: {a} over {b}"
        charts.append(html.scatter_chart(dots, title=name, x_label=b, y_label=a, diagonal=True))
    return charts


def turntables(found: Results, measure: Measure) -> str:
    """The first seed of every prompt in every arm, side by side."""
    blocks = []
    for prompt in found.seeds:
        figures = []
        for arm in found.arms:
            row = found.of(arm, prompt)[0]
            place = Path(row["folder"])
            film = place / row.get("files", "") / "views.webp"
            there = film.is_file() and film.resolve().is_relative_to(place.resolve())
            picture = html.image_or_reason(film, f"{prompt}, {arm}") if there else html.paragraph("nothing is left")
            figures.append(html.figure(picture, f"{arm}: {number(measure.of(row), sign=True)}"))
        width = f"repeat({len(figures)},minmax(0,1fr))"
        row_of = f'<div style="display:grid;gap:.5rem;grid-template-columns:{width}">{"".join(figures)}</div>'
        blocks.append(html.figure(row_of, prompt))
    return "".join(blocks)
