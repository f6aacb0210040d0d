"""The asset in a browser while it is optimized, with curves, pause and stop-and-keep; on this machine only.

| method | path | answer |
|---|---|---|
| GET | ``/TOKEN/`` | the page |
| GET | ``/TOKEN/state`` | JSON: title, status, curves (HTML), whether it is paused, the number of the splats' version |
| GET | ``/TOKEN/splats`` | the last version, as ``.splat`` in glTF's axes |
| POST | ``/TOKEN/pause`` | hold the optimization; ``/TOKEN/go`` goes on |
| POST | ``/TOKEN/keep`` | end it and keep what there is |
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from psd_gs import report
from psd_gs.errors import InputError
from psd_gs.export.edit import largest
from psd_gs.export.formats import save
from psd_gs.export.page import live_page
from psd_gs.gaussians import Gaussians
from psd_gs.viewer.serve import NOT_FOUND, PageServer, Reply, Request

if TYPE_CHECKING:
    from psd_gs.trainer import StepEvent, Trainer

logger = logging.getLogger(__name__)

INTERVAL = 0.5
"""Shortest time between two updates, seconds."""
SHARE = 0.02
"""Largest share of the time that updates may take; the pause after one is as long as its cost demands."""
MOST = 50_000
"""Gaussians that are sent; of more, those that cover most."""
LOOKS = 5.0
"""Seconds after its last request that somebody still counts as looking."""
POINTS = 300
"""Most points of a curve."""
PORTS = 100
"""How many ports are tried."""

CURVES = {
    "reward": {"reward_win": "win", "reward_lose": "lose"},
    "Gaussians": {"gaussians": "number"},
    "norm of the base score": {"base_norm": "|B|"},
}
"""Title to what is drawn: names in the log, and how they are called."""


class LiveView:
    """A page that shows a training; one for all runs of a command.

    The loop is only ever asked for a copy of the Gaussians, and only when somebody looks; what the page needs is
    made of it in a thread. Nothing here touches the state or the randomness of the training.

    Args:
        port: of the page on this machine; the next free one if it is taken, 0 for any.

    Raises:
        ConfigError: ``port`` is no port number.
        OutputError: no free port.
    """

    def __init__(self, port: int = 8080) -> None:
        self.paused, self.stopped = threading.Event(), threading.Event()
        self.updates = 0
        self._due, self._looked = 0.0, float("-inf")
        self._copies: queue.Queue[tuple[Gaussians, float] | None] = queue.Queue(1)
        self._idle = threading.Event()
        self._idle.set()
        self._history: list[dict[str, float]] = []
        self._title, self._status, self._shown = "loading models", "", {"status": "", "curves": ""}
        self._splats = b""
        self.server = PageServer(self._respond, port, tries=PORTS, option="--live-port")
        self._threads = [
            threading.Thread(target=target, name="psd-gs live", daemon=True)
            for target in (self._work, self.server.serve_forever)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def address(self) -> str:
        return self.server.url

    def close(self) -> None:
        """Take the page down."""
        self._copies.put(None)
        self.server.shutdown()
        for thread in self._threads:
            thread.join()
        self.server.server_close()

    def follow(self, trainer: Trainer, interrupted: threading.Event) -> Iterator[StepEvent]:
        """The events of ``trainer.run()``, shown; holds while paused, ends early after "Stop and keep".

        Args:
            trainer: is run.
            interrupted: ends a pause.
        """
        self._history.clear()
        self.paused.clear()
        self.stopped.clear()
        self._title = f"{trainer.config.prompt}, seed {trainer.config.seed}"
        for event in trainer.run():
            self._history.append({"step": float(event.step), **event.logs})
            self.update(trainer.scene, f"step {event.step} of {event.steps}, {len(trainer.gaussians)} Gaussians")
            yield event
            while self.paused.is_set() and not (self.stopped.is_set() or interrupted.is_set()):
                self.update(trainer.scene, f"paused after step {event.step} of {event.steps}")
                time.sleep(0.1)
            if self.stopped.is_set() or interrupted.is_set():
                return

    def update(self, gaussians: Gaussians, status: str) -> None:
        """Show these Gaussians, if somebody looks and the last update was long enough ago."""
        now = time.monotonic()
        if not self._idle.is_set() or now < self._due or now - self._looked > LOOKS:
            return
        start = time.perf_counter()
        self._idle.clear()
        self._status = status
        copy = most_visible(gaussians.detach()).map(lambda p: p.float().cpu().clone())
        self._copies.put((copy, time.perf_counter() - start))

    # --- in threads ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (item := self._copies.get()) is not None:
            copy, spent = item
            start = time.thread_time()
            try:
                self._show(copy)
            except Exception:  # the asset matters more than its view
                logger.exception("the live view stopped")
                return
            self._due = time.monotonic() + max(INTERVAL, (spent + time.thread_time() - start) / SHARE)
            self.updates += 1
            self._idle.set()

    def _show(self, gaussians: Gaussians) -> None:
        """Make what the page asks for next."""
        history = self._history[:: -(-len(self._history) // POINTS) or 1]
        charts = []
        for title, lines in CURVES.items():
            rows = [row for row in history if all(name in row for name in lines)]
            if len(rows) >= 2:
                series = {text: [row[name] for row in rows] for name, text in lines.items()}
                charts.append(report.line_chart(series, [row["step"] for row in rows], title=title, x_label="step"))
        try:
            self._splats = splat_bytes(gaussians)
        except InputError:  # none of them is finite; the last ones stay
            logger.debug("nothing to show", exc_info=True)
        self._shown = {"status": self._status, "curves": "".join(charts)}

    def _respond(self, request: Request) -> Reply:
        self._looked = time.monotonic()
        match request.method, request.path:
            case "GET", "":
                return Reply(live_page().encode(), "text/html; charset=utf-8")
            case "GET", "splats":
                return Reply(self._splats, "application/octet-stream")
            case "POST", "pause":
                self.paused.set()
            case "POST", "go":
                self.paused.clear()
            case "POST", "keep":
                self.stopped.set()
            case "GET", "state":
                pass
            case _:
                return NOT_FOUND
        state = {"title": self._title, "version": self.updates, "paused": self.paused.is_set(), **self._shown}
        return Reply(json.dumps(state).encode())


def splat_bytes(gaussians: Gaussians) -> bytes:
    """A ``.splat`` file in glTF's axes; no harmonics.

    Raises:
        InputError: no usable Gaussian.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "asset.splat"
        save(gaussians, path, frame="gltf")
        return path.read_bytes()


def most_visible(gaussians: Gaussians) -> Gaussians:
    """At most :data:`MOST` of them: those with the largest opacity times area."""
    if len(gaussians) <= MOST:
        return gaussians
    return gaussians.select(largest(gaussians.splats(), MOST))
