"""The command line: one file per subcommand, a tyro dataclass and a call."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Annotated

_NARROWEST = 60  # columns in which the help is still readable


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``psd-gs``."""
    import tyro

    from psd_gs import __version__
    from psd_gs.cli.batch import Batch
    from psd_gs.cli.bench import Bench
    from psd_gs.cli.console import shown
    from psd_gs.cli.doctor import Doctor
    from psd_gs.cli.eval import Eval
    from psd_gs.cli.export import Export
    from psd_gs.cli.fit_reward import FitReward
    from psd_gs.cli.generate import Generate
    from psd_gs.cli.info import Info
    from psd_gs.cli.mesh import Mesh
    from psd_gs.cli.models import Models
    from psd_gs.cli.options import Options
    from psd_gs.cli.rank import Rank
    from psd_gs.cli.refine import Refine
    from psd_gs.cli.report import Report
    from psd_gs.cli.retexture import Retexture
    from psd_gs.cli.sheet import Sheet
    from psd_gs.cli.terminal import terminate_as_interrupt
    from psd_gs.cli.turntable import Turntable
    from psd_gs.cli.view import View
    from psd_gs.cli.words import Words
    from psd_gs.errors import LESS_MEMORY, PsdGsError, is_out_of_memory

    commands = (
        Annotated[Generate, tyro.conf.subcommand("generate")]
        | Annotated[Refine, tyro.conf.subcommand("refine")]
        | Annotated[Retexture, tyro.conf.subcommand("retexture")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Eval, tyro.conf.subcommand("eval")]
        | Annotated[View, tyro.conf.subcommand("view")]
        | Annotated[Mesh, tyro.conf.subcommand("mesh")]
        | Annotated[Turntable, tyro.conf.subcommand("turntable")]
        | Annotated[Sheet, tyro.conf.subcommand("sheet")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[Info, tyro.conf.subcommand("info")]
        | Annotated[Batch, tyro.conf.subcommand("batch")]
        | Annotated[Rank, tyro.conf.subcommand("rank")]
        | Annotated[FitReward, tyro.conf.subcommand("fit-reward")]
        | Annotated[Options, tyro.conf.subcommand("options")]
        | Annotated[Words, tyro.conf.subcommand("words")]
        | Annotated[Models, tyro.conf.subcommand("models")]
        | Annotated[Bench, tyro.conf.subcommand("bench")]
        | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    )
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
            command = tyro.cli(
                commands,  # type: ignore[arg-type]
                prog="psd-gs",
                description="Text to 3D Gaussian splats and game-ready meshes that people prefer. Also: --version.",
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
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
