"""The asset in a browser while it is optimized (viser), with curves, pause and stop-and-keep; on this machine only."""

from __future__ import annotations

import io
import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from psd_gs.errors import BackendError, ConfigError
from psd_gs.gaussians import Gaussians, rotation_matrices, sh0_to_rgb

if TYPE_CHECKING:
    from psd_gs.trainer import StepEvent, Trainer

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
INTERVAL = 0.5
"""Shortest time between two updates, seconds."""
SHARE = 0.02
"""Of the time, the most that updates may take; the pause after one is as long as its cost demands."""
MOST = 50_000
"""Gaussians that are sent; of more, those that cover most."""
FRONT = (0.0, 0.6, 2.4)
"""Where the camera begins, world units."""
POINTS = 300
"""Most points of a curve."""

CURVES = {
    "reward": {"reward_win": ("win", "#2f6fde"), "reward_lose": ("lose", "#d9542b")},
    "Gaussians": {"gaussians": ("number", "#2a9d5c")},
    "norm of the base score": {"base_norm": ("|B|", "#9b4fc4")},
}
"""Title to what is drawn: names in the log, how they are called, and their colours."""


class LiveView:
    """A page that shows a training; one for all runs of a command.

    The loop is only ever asked for a copy of the Gaussians, and only when somebody looks; what the page needs is
    made of it in a thread. Nothing here touches the state or the randomness of the training.

    Args:
        port: of the page on this machine; the next free one if it is taken.

    Raises:
        BackendError: viser is not installed.
        ConfigError: a port that is none.
    """

    def __init__(self, port: int = 8080) -> None:
        try:
            import viser
        except ImportError as error:
            raise BackendError(
                f'the live view needs viser ({error}): pip install "psd-gs[live]", or leave --live out.'
            ) from error
        if not 1 <= port <= 65535:
            raise ConfigError(f"--live-port: expected 1 to 65535, received {port}.")
        self.paused, self.stopped = threading.Event(), threading.Event()
        self.updates = 0
        self._due = 0.0
        self._copies: queue.Queue[tuple[Gaussians, float] | None] = queue.Queue(1)
        self._idle = threading.Event()
        self._idle.set()
        self._history: list[dict[str, float]] = []
        self._charts: dict[str, Any] = {}
        self._splats: Any = None
        with redirect_stdout(io.StringIO()):  # it greets even if it is not verbose
            self.server = viser.ViserServer(host=HOST, port=port, label="psd-gs", verbose=False)
        self._build()
        self._thread = threading.Thread(target=self._work, name="psd-gs live", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server.get_port()}"

    def close(self) -> None:
        """Take the page down."""
        self._copies.put(None)
        self._thread.join()
        with redirect_stdout(io.StringIO()):
            self.server.stop()

    def follow(self, trainer: Trainer, interrupted: threading.Event) -> Iterator[StepEvent]:
        """The events of ``trainer.run()``, shown; holds while paused, ends early after "Stop and keep".

        Args:
            trainer: is run.
            interrupted: ends a pause.
        """
        self._history.clear()
        self.paused.clear()
        self.stopped.clear()
        self._title.content = f"**{_plain(trainer.config.prompt)}**, seed {trainer.config.seed}"
        for event in trainer.run():
            self._history.append({"step": float(event.step), **event.logs})
            self.update(trainer.gaussians, f"step {event.step} of {event.steps}, {len(trainer.gaussians)} Gaussians")
            yield event
            while self.paused.is_set() and not (self.stopped.is_set() or interrupted.is_set()):
                self.update(trainer.gaussians, f"paused after step {event.step} of {event.steps}")
                time.sleep(0.1)
            if self.stopped.is_set() or interrupted.is_set():
                return

    def update(self, gaussians: Gaussians, status: str) -> None:
        """Show these Gaussians, if somebody looks and the last update was long enough ago."""
        if not self._idle.is_set() or time.monotonic() < self._due or not self.server.get_clients():
            return
        start = time.perf_counter()
        self._idle.clear()
        self._status = status
        copy = most_visible(gaussians.detach()).map(lambda p: p.float().cpu().clone())
        self._copies.put((copy, time.perf_counter() - start))

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (item := self._copies.get()) is not None:
            copy, spent = item
            start = time.thread_time()
            try:
                self._send(copy)
            except Exception:  # the asset matters more than its view
                logger.exception("the live view stopped")
                return
            # viser packs and sends in a thread of its own, for about as long again
            cost = spent + 2 * (time.thread_time() - start)
            self._due = time.monotonic() + max(INTERVAL, cost / SHARE)
            self.updates += 1
            self._idle.set()

    def _send(self, gaussians: Gaussians) -> None:
        self._text.content = self._status
        values = splat_values(gaussians)
        if self._splats is None:
            self._splats = self.server.scene.add_gaussian_splats("/asset", *values)
        else:
            self._splats.set_gaussians(*values)
        history = self._history[:: -(-len(self._history) // POINTS) or 1]
        for order, (title, lines) in enumerate(CURVES.items(), start=1000):
            rows = [row for row in history if all(name in row for name in lines)]
            if len(rows) < 2:
                continue
            data = tuple(np.array([row[name] for row in rows]) for name in ("step", *lines))
            if title in self._charts:
                self._charts[title].data = data
            else:
                series: Any = ({"label": "step"}, *({"label": text, "stroke": ink} for text, ink in lines.values()))
                self._charts[title] = self.server.gui.add_uplot(
                    data, series, title=title, scales={"x": {"time": False}}, height=150, order=order
                )

    # --- the page -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        """Buttons, texts and the camera."""
        server = self.server
        server.scene.set_up_direction("+y")
        server.scene.set_background_image(np.full((1, 1, 3), 255, np.uint8))
        camera = server.initial_camera
        camera.position, camera.look_at, camera.fov = FRONT, (0.0, 0.0, 0.0), float(np.radians(40))
        gui = server.gui
        self._title = gui.add_markdown("loading models")
        self._text = gui.add_markdown("")
        self._status = ""
        pause, keep = gui.add_button("Pause"), gui.add_button("Stop and keep")
        front = gui.add_button("Front view")

        @pause.on_click
        def _(event: object) -> None:
            (self.paused.clear if self.paused.is_set() else self.paused.set)()
            pause.label = "Go on" if self.paused.is_set() else "Pause"

        @keep.on_click
        def _(event: object) -> None:
            self.stopped.set()

        @front.on_click
        def _(event: Any) -> None:
            event.client.camera.position, event.client.camera.look_at = FRONT, (0.0, 0.0, 0.0)


def most_visible(gaussians: Gaussians) -> Gaussians:
    """At most :data:`MOST` of them: those with the largest opacity times area."""
    if len(gaussians) <= MOST:
        return gaussians
    area = torch.sigmoid(gaussians.opacities) * gaussians.scales.exp().sort(dim=1).values[:, 1:].prod(1)
    return gaussians.select(area.topk(MOST).indices)


def splat_values(gaussians: Gaussians) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centres ``[N,3]``, covariances ``[N,3,3]``, colours ``[N,3]`` and opacities ``[N,1]`` in [0, 1]; no harmonics."""
    axes = rotation_matrices(gaussians.quats) * gaussians.scales.exp()[:, None, :]
    covariances = axes @ axes.transpose(1, 2)
    colours = sh0_to_rgb(gaussians.sh0[:, 0]).clamp(0, 1)
    opacities = torch.sigmoid(gaussians.opacities)[:, None]
    return gaussians.means.numpy(), covariances.numpy(), colours.numpy(), opacities.numpy()


def _plain(text: str) -> str:
    """A prompt that Markdown and HTML leave alone."""
    return "".join(c if c.isalnum() or c in " ,.'-" else " " for c in text)
