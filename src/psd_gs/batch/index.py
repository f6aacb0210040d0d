"""The page over all runs of a batch: pictures, prompts, scores, and where the files are."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from urllib.parse import quote

from psd_gs import runs
from psd_gs.batch.tasks import Task, steps_done
from psd_gs.errors import InputError, OutputError
from psd_gs.files import read_bounded, read_picture, write_atomic, writing
from psd_gs.report import figure, grid, image_tag, page, paragraph

logger = logging.getLogger(__name__)

FILES = ("turntable.mp4", "splat.ply", "mesh.glb", "report.html", "config.yaml")
SECONDS = 30.0
"""Seconds between two versions of the page while the batch runs."""
THUMBNAILS = ".thumbnails"
"""Folder in the results with small versions of the previews."""
SIZE = (1000, 100)
"""Most pixels of a thumbnail, width and height."""
_BYTES = 1 << 20


class Index:
    """``index.html`` of a folder of runs; pictures are embedded, links are relative.

    What is shown of a finished run is kept in memory until its folder changes, its thumbnail on the disk.

    Args:
        root: of all runs.
        tasks: in the order in which they are shown.
    """

    def __init__(self, root: Path, tasks: Sequence[Task]) -> None:
        self.root, self.tasks = root, tasks
        self._cards: dict[Path, tuple[int, str]] = {}
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._last = time.monotonic()

    def write(self, failed: Mapping[Path, str]) -> Path:
        """Write the page as of now.

        Args:
            failed: folder to what was wrong.

        Raises:
            OutputError: the folder cannot be written.
        """
        with self._writing:
            done = [runs.is_finished(task.folder) for task in self.tasks]
            finished, rest = ([t for t, is_ in zip(self.tasks, done, strict=True) if is_ == so] for so in (True, False))
            sections = {"Assets": grid(*map(self._card, finished)) if finished else paragraph("None yet.")}
            if rest:
                lines = (escape(f"{task.config.prompt}: {_state(task, failed)}") for task in rest)
                sections["Not finished"] = f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"
            title = f"{len(finished)} of {len(self.tasks)} prompts"
            write_atomic(self.root / "index.html", page(title, sections))
            return self.root / "index.html"

    def refresh(self, failed: Mapping[Path, str]) -> None:
        """Write the page in a thread beside the queue, if the last version is old enough."""
        if time.monotonic() - self._last < SECONDS or (self._thread and self._thread.is_alive()):
            return
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._try, args=(dict(failed),), name="psd-gs index")
        self._thread.start()

    def _try(self, failed: Mapping[Path, str]) -> None:
        try:
            self.write(failed)
        except (OutputError, OSError) as error:  # the runs matter more than the page over them
            logger.warning("%s", error)

    def _card(self, task: Task) -> str:
        changed = task.folder.stat().st_mtime_ns
        if self._cards.get(task.folder, (None, ""))[0] != changed:
            self._cards[task.folder] = changed, self._new_card(task)
        return self._cards[task.folder][1]

    def _new_card(self, task: Task) -> str:
        folder = task.folder
        try:
            record = runs.read_record(folder).get("scores", {})
            scores = ", ".join(f"{name} {'-' if score is None else f'{score:.3f}'}" for name, score in record.items())
        except InputError:
            scores = "its scores cannot be read"
        picture = image_tag(thumbnail(folder / "preview.png", self.root / THUMBNAILS), task.config.prompt)
        links = " · ".join(
            f'<a href="{quote(folder.name)}/{name}">{name}</a>' for name in FILES if (folder / name).exists()
        )
        return figure(f"{picture}<p>{escape(scores)}<br>{links}</p>", task.config.prompt)


def write_index(root: Path, tasks: Sequence[Task], failed: Mapping[Path, str]) -> Path:
    """Write the page once, see :class:`Index`."""
    return Index(root, tasks).write(failed)


def _state(task: Task, failed: Mapping[Path, str]) -> str:
    if task.folder in failed:
        return failed[task.folder]
    done = steps_done(task.folder)
    return f"{done} of {task.config.steps} steps" if done else "waiting"


def thumbnail(picture: Path, folder: Path) -> bytes:
    """A small JPEG of a run's picture, kept in ``folder``; a grey tile if the picture cannot be shown.

    Raises:
        OutputError: the folder cannot be written.
    """
    kept = folder / f"{picture.parent.name}.jpg"
    try:
        if kept.stat().st_mtime_ns > picture.stat().st_mtime_ns:
            data = read_bounded(kept, _BYTES)
            if data.startswith(b"\xff\xd8\xff"):
                return data
    except (OSError, InputError):
        pass  # it is made now
    try:
        small = read_picture(picture)
    except InputError:
        return _grey()
    small.thumbnail(SIZE)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    with writing(folder):
        folder.mkdir(exist_ok=True)
    write_atomic(kept, out.getvalue())
    return out.getvalue()


@cache
def _grey() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (4 * SIZE[1], SIZE[1]), "grey").save(out, "JPEG")
    return out.getvalue()
