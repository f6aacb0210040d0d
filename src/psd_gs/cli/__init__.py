"""The command line: one file per subcommand, a tyro dataclass and a call."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Union

_NARROWEST = 60  # columns in which the help is still readable
_COMMANDS = {
    "generate": "generate.Generate",
    "refine": "refine.Refine",
    "retexture": "retexture.Retexture",
    "export": "export.Export",
    "eval": "eval.Eval",
    "view": "view.View",
    "mesh": "mesh.Mesh",
    "turntable": "turntable.Turntable",
    "sheet": "sheet.Sheet",
    "report": "report.Report",
    "info": "info.Info",
    "batch": "batch.Batch",
    "rank": "rank.Rank",
    "fit-reward": "fit_reward.FitReward",
    "options": "options.Options",
    "words": "words.Words",
    "models": "models.Models",
    "bench": "bench.Bench",
    "doctor": "doctor.Doctor",
}
"""Name to the module and class of each, imported when they are needed, in the order of the help."""


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``psd-gs``."""
    from psd_gs import __version__
    from psd_gs.cli.console import shown
    from psd_gs.cli.terminal import terminate_as_interrupt
    from psd_gs.errors import LESS_MEMORY, PsdGsError, is_out_of_memory

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # a service may close them
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a prompt may have letters that the terminal's encoding lacks
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        sys.stdout.write(f"psd-gs {__version__}\n")
        return
    try:
        with _wide_enough():
            command = _parsed(arguments)
        with _notes(), terminate_as_interrupt():
            command.run()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (PsdGsError, OSError) as error:
        if "--debug" in arguments:
            raise
        sys.stderr.write(f"error: {shown(str(error))}\n")
        raise SystemExit(1) from None
    except (RuntimeError, MemoryError) as error:
        if "--debug" in arguments or not is_out_of_memory(error):
            raise
        sys.stderr.write(f"error: out of memory. {LESS_MEMORY}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None


def _parsed(arguments: list[str]) -> Any:
    """The command that the arguments name, with its options; what is wrong with them is printed.

    Raises:
        SystemExit: something is, or help was asked for.
    """
    import tyro

    def parse(commands: Any, arguments: list[str], outputs: bool) -> Any:
        return tyro.cli(
            commands,
            prog="psd-gs",
            description="Text to 3D Gaussian splats and game-ready meshes that people prefer. Also: --version.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            console_outputs=outputs,
        )

    if arguments and arguments[0] in _COMMANDS:
        # Alone, a command is there in half the time. Help and errors come from all of them together.
        with contextlib.suppress(SystemExit):
            return parse(_command(arguments[0]), arguments[1:], outputs=False)
    commands = [Annotated[_command(name), tyro.conf.subcommand(name)] for name in _COMMANDS]
    return parse(Union[tuple(commands)], arguments, outputs=True)  # noqa: UP007


def _command(name: str) -> Any:
    module, kind = _COMMANDS[name].split(".")
    return getattr(importlib.import_module(f"psd_gs.cli.{module}"), kind)


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """What the package logs, shown on standard error without its control characters."""
    from psd_gs.cli.console import NoteHandler

    logger, handler = logging.getLogger("psd_gs"), NoteHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """Lay the help out for a terminal of :data:`_NARROWEST` columns at least; narrower ones wrap it."""
    given = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if given is not None:
            os.environ["COLUMNS"] = given
