"""``report.html`` of a run: scores, pictures, curves, options and where everything comes from, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psd_gs import report, runs
from psd_gs.errors import InputError
from psd_gs.files import YAML_BYTES, read_bounded, write_atomic
from psd_gs.runs import Record

Rows = Sequence[Mapping[str, float | None]]

CURVES: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("Reward of the winning and the losing estimate", {"reward_win": "win", "reward_lose": "lose"}, False),
    ("Reward gap", {"gap": "gap"}, False),
    ("κ, the weight of the pair", {"kappa": "kappa"}, False),
    ("Norms of the base score B and the pair δ", {"base_norm": "|B|", "pair_norm": "|δ|"}, True),
    ("Share of the pair in the gradient", {"pair_share": "share"}, False),
    ("|Δn|, how far the negative embedding moved", {"negative_shift": "|Δn|"}, False),
    ("PSNR of the views that pictures show, dB", {"image_psnr": "dB"}, False),
    ("Gaussians", {"gaussians": "number"}, False),
)
"""Title, names in the log and how they are called, and whether the axis is logarithmic."""

PARTS = ("render", "guidance", "backward")
"""Timed parts of a step; the rest goes to optimizers, growing and pruning."""


def write_report(folder: Path, record: Record | None = None) -> Path:
    """Write ``report.html`` from what a run's folder holds, replaced in one step; what is missing is left out.

    Args:
        folder: of the run.
        record: of a run that ends just now, instead of the one in the folder.

    Raises:
        InputError: not the folder of a run, or a damaged log or record.
        OutputError: the file cannot be written.
    """
    path = folder / "report.html"
    write_atomic(path, run_report(folder, record))
    return path


def run_report(folder: Path, record: Record | None = None) -> str:
    """The page that :func:`write_report` writes."""
    if not runs.has_begun(folder):
        raise InputError(
            f"{folder}: expected the folder of a run, received one without config.yaml. Pass outputs/NAME."
        )
    if record is None and (folder / runs.RECORD).exists():
        record = runs.read_record(folder)
    metadata: Record = record or {}
    rows = runs.read_log(folder / "metrics.jsonl")
    options = read_bounded(folder / "config.yaml", YAML_BYTES).decode(errors="replace")
    title = str(metadata.get("prompt") or folder.name)
    sections = {
        "Views": _pictures(folder),
        "Scores": _scores(metadata, rows),
        "Curves": report.grid(*_curves(rows)) if rows else "",
        "Time": _time(rows),
        "Where it comes from": _table(metadata),
        "Options": report.details("config.yaml", report.preformatted(options)),
    }
    done, steps = metadata.get("steps_done", len(rows)), metadata.get("steps")
    facts = [f"{done} of {steps} steps" if steps and done != steps else f"{done} steps"]
    facts += [f"{metadata['n_splats']} Gaussians"] if "n_splats" in metadata else []
    facts += [f"{name} {metadata.get(name)}" for name in ("seed", "prior", "reward", "judge") if name in metadata]
    if not metadata:
        facts.append("not finished")
    intro = report.paragraph(" · ".join(facts))
    return report.page(title, {name: body for name, body in sections.items() if body}, intro=intro)


def _pictures(folder: Path) -> str:
    """The turntable, the final views and how they came to be, as far as they are there."""
    wanted = {
        "turntable.mp4": "One turn",
        "preview.png": "Front, right, back, left",
        "progress.png": "How it came to be",
        "image.png": "What was given, and the same view of the asset",
    }
    there = {name: text for name, text in wanted.items() if (folder / name).exists()}
    figures = {name: report.figure(report.image_or_reason(folder / name, text), text) for name, text in there.items()}
    film = figures.pop("turntable.mp4", "")
    stills = f"<div>{''.join(figures.values())}</div>" if figures else ""
    return report.grid(film, stills) if there else ""


def _scores(metadata: Record, rows: Rows) -> str:
    """Of the finished asset, and of the unfinished ones on their way."""
    scores = metadata.get("scores", {})
    roles = {metadata.get("reward"): "optimized", metadata.get("judge"): "judge, not optimized"}
    rows_of_scores = [[name, roles.get(name, "part of the reward"), score] for name, score in scores.items()]
    watched = [row for row in rows if any(name.startswith("score_") for name in row)]
    names = sorted({name for row in watched for name in row if name.startswith("score_")})
    charts = []
    for name in names:
        title = f"{name.removeprefix('score_')}, mean over eight views"
        values = [row.get(name) for row in watched]
        charts.append(report.line_chart({name: values}, _steps(watched), title=title, x_label="step", markers=True))
    return (report.table(rows_of_scores) if scores else "") + (report.grid(*charts) if charts else "")


def _curves(rows: Rows) -> list[str]:
    """What of :data:`CURVES` was logged."""
    out = []
    for title, names, log in CURVES:
        shown = {text: [row.get(name) for row in rows] for name, text in names.items() if any(name in r for r in rows)}
        if shown:
            smooth = len(rows) >= 60 and "gaussians" not in names
            out.append(report.line_chart(shown, _steps(rows), title=title, x_label="step", smooth=smooth, log=log))
    return out


def _time(rows: Rows) -> str:
    """Mean seconds per step and what they went into; the first step also compiles and is left out."""
    rows = [row for row in rows[min(1, len(rows) - 1) :] if row.get("seconds") is not None] if rows else []
    if not rows:
        return ""

    def mean(name: str) -> float:
        return sum(row.get(name) or 0.0 for row in rows) / len(rows)

    total, laps = mean("seconds"), {part: mean(f"seconds_{part}") for part in PARTS}
    bars = [*laps.items(), ("optimizers and the rest", max(0.0, total - sum(laps.values())))]
    if not any(laps.values()):  # a log of an earlier version
        bars = []
    milliseconds = [report.Bar(name, 1000 * seconds) for name, seconds in bars]
    series = {"seconds": [row.get("seconds") for row in rows]}
    return report.grid(
        report.bar_chart([*milliseconds, report.Bar("whole step", 1000 * total)], title="Milliseconds per step, mean"),
        report.line_chart(series, _steps(rows), title="Seconds per step", x_label="step", smooth=len(rows) >= 60),
    )


def _table(metadata: Mapping[str, Any]) -> str:
    """All fields, one row each; models by their roles."""
    rows: list[tuple[str, Any]] = []
    for name, value in metadata.items():
        if name == "models":
            rows += [(role, "; ".join(" · ".join(model.values()) for model in some)) for role, some in value.items()]
        elif name not in ("scores", "prior", "reward", "judge"):
            rows.append((name, str(value)))
    return report.table(rows) if rows else ""


def _steps(rows: Rows) -> list[float]:
    return [float(row["step"] or 0) for row in rows]
