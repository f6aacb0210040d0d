"""What commands share at the terminal: quiet libraries, an orderly stop, and the progress of a run."""

from __future__ import annotations

import importlib
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from psd_gs.cores import Load

if TYPE_CHECKING:
    from rich.console import Console

    from psd_gs.trainer import StepEvent

PLAIN_SECONDS = 10.0
"""Seconds between two progress lines where the output is not a terminal."""


def silence_libraries() -> None:
    """Keep the advisory messages of diffusers and transformers out of the output; errors still show.

    Neither is imported for it: they may not be needed at all, and read their environment when they are.

    Raises:
        OutputError: there is no folder for temporary files, which PyTorch's compiler wants when they are imported.
    """
    import tempfile

    from psd_gs.errors import OutputError

    try:
        tempfile.gettempdir()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(
            f"expected a folder for temporary files, {reason}. Name one that can be written with TMPDIR, such as one "
            "beside the output."
        ) from error
    for library in ("diffusers", "transformers"):
        os.environ.setdefault(f"{library.upper()}_VERBOSITY", "error")
        if library in sys.modules:
            logging = importlib.import_module(f"{library}.utils.logging")
            logging.set_verbosity_error()
            logging.disable_progress_bar()


def threads_each(processes: int) -> int:
    """Threads of each of so many processes of ours that run at once.

    Only their number counts, not what else runs: another number of threads rounds differently, and the same seed is to
    give the same bits. With passive waiting a core too few costs little (``tools/bench/busy.py``).
    """
    import torch

    return max(1, torch.get_num_threads() // processes)


class SlowSteps:
    """Notices when steps become slow because other programs take the cores.

    Args:
        clock: the load of the machine.
    """

    WINDOW = 20
    """Steps that are compared."""
    RATIO = 3.0
    """More than a step with a pair takes of one without."""

    def __init__(self, clock: Callable[[], Load] = Load.now) -> None:
        self.clock, self.told = clock, False
        self.first: list[float] = []
        self.last: deque[tuple[float, Load]] = deque(maxlen=self.WINDOW)

    def __call__(self, seconds: float) -> str:
        """What to tell after a step that took so long: nothing, or once why steps are slow."""
        if len(self.first) < self.WINDOW:
            self.first.append(seconds)
            return ""
        self.last.append((seconds, self.clock()))
        times = [taken for taken, _ in self.last]
        ratio = statistics.median(times) / max(statistics.median(self.first), 1e-9)
        others = self.last[-1][1].others(self.last[0][1])
        if self.told or len(times) < self.WINDOW or ratio < self.RATIO or others < 0.5:
            return ""
        self.told = True
        return f"steps take {ratio:.1f} times as long as at first: other programs keep {others:.1f} cores busy"


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM, which systems send before they kill, does what Ctrl-C does at that moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # a shell's background job ignores Ctrl-C, but is not to ignore this
            raise KeyboardInterrupt
        handler(number, frame)  # type: ignore[arg-type]

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_after_step() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of raising, so that a step is never left half done; a second one raises."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def step_progress(console: Console, steps: int, done: int) -> Iterator[Callable[[StepEvent], None]]:
    """Shows the steps of a run: a bar on a terminal, else a line from time to time."""
    shown: dict[str, float] = {}  # of a step without a pair the last reward stays
    if not console.is_terminal:
        last = time.monotonic()

        def line(event: StepEvent) -> None:
            nonlocal last
            shown.update(event.logs)
            if time.monotonic() - last > PLAIN_SECONDS or event.step == event.steps:
                last = time.monotonic()
                console.print(f"step {event.step}/{event.steps}  {_numbers(shown)}", soft_wrap=True)

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[numbers]}"))
    with Progress(TextColumn("optimizing"), *columns, console=console) as progress:
        task = progress.add_task("", total=steps, completed=done, numbers="")

        def bar(event: StepEvent) -> None:
            shown.update(event.logs)
            progress.update(task, completed=event.step, numbers=_numbers(shown))

        yield bar


def _numbers(logs: dict[str, float]) -> str:
    """The numbers that are worth watching."""
    shown = [f"{int(logs['gaussians'])} Gaussians"]
    if "reward_win" in logs:
        shown.append(f"reward {logs['reward_win']:+.2f} / {logs['reward_lose']:+.2f}")
    return "  ".join(shown)
