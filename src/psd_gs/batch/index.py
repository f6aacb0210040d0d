"""The page over all runs of a batch: pictures, prompts, scores, and where the files are."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from urllib.parse import quote

from psd_gs import runs
from psd_gs.batch.tasks import Task, steps_done
from psd_gs.files import write_atomic
from psd_gs.report import figure, grid, image_tag, page, paragraph

FILES = ("turntable.mp4", "splat.ply", "mesh.glb", "report.html", "config.yaml")


def write_index(root: Path, tasks: Sequence[Task], failed: dict[Path, str]) -> Path:
    """``index.html`` of a folder of runs; pictures are embedded, links are relative.

    Args:
        root: of all runs.
        tasks: in the order in which they are shown.
        failed: folder to what was wrong.
    """
    finished = [task for task in tasks if runs.is_finished(task.folder)]
    others = [task for task in tasks if not runs.is_finished(task.folder)]
    sections = {"Assets": grid(*(_card(task) for task in finished)) if finished else paragraph("None yet.")}
    if others:
        rows = "".join(f"<li>{escape(task.config.prompt)}: {escape(_state(task, failed))}</li>" for task in others)
        sections["Not finished"] = f"<ul>{rows}</ul>"
    title = f"{len(finished)} of {len(tasks)} prompts"
    write_atomic(root / "index.html", page(title, sections))
    return root / "index.html"


def _card(task: Task) -> str:
    folder = task.folder
    try:
        data = json.loads((folder / "psd_gs.json").read_text(encoding="utf-8"))
        scores = ", ".join(f"{name} {score:.3f}" for name, score in data["scores"].items())
        picture = image_tag(_thumbnail(folder / "preview.png"), task.config.prompt)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        scores, picture = "its files cannot be read", ""
    links = " · ".join(
        f'<a href="{quote(folder.name)}/{name}">{name}</a>' for name in FILES if (folder / name).exists()
    )
    return figure(f"{picture}<p>{escape(scores)}<br>{links}</p>", task.config.prompt)


def _state(task: Task, failed: dict[Path, str]) -> str:
    if task.folder in failed:
        return failed[task.folder]
    done = steps_done(task.folder)
    return f"{done} of {task.config.steps} steps" if done else "waiting"


@lru_cache(maxsize=10_000)
def _thumbnail(path: Path, height: int = 100) -> bytes:
    """A small JPEG of the preview."""
    from PIL import Image

    out = io.BytesIO()
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((10 * height, height))
        small.save(out, "JPEG", quality=80)
    return out.getvalue()
