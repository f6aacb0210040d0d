"""The command line: one file per subcommand, a tyro dataclass and a call."""

from __future__ import annotations

import io
import sys
from typing import Annotated


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``psd-gs``."""
    import tyro

    from psd_gs import __version__
    from psd_gs.cli.batch import Batch
    from psd_gs.cli.doctor import Doctor
    from psd_gs.cli.eval import Eval
    from psd_gs.cli.export import Export
    from psd_gs.cli.fit_reward import FitReward
    from psd_gs.cli.generate import Generate
    from psd_gs.cli.info import Info
    from psd_gs.cli.mesh import Mesh
    from psd_gs.cli.models import Models
    from psd_gs.cli.rank import Rank
    from psd_gs.cli.report import Report
    from psd_gs.cli.sheet import Sheet
    from psd_gs.cli.terminal import terminate_as_interrupt
    from psd_gs.cli.turntable import Turntable
    from psd_gs.cli.view import View
    from psd_gs.cli.words import Words
    from psd_gs.errors import PsdGsError

    commands = (
        Annotated[Generate, tyro.conf.subcommand("generate")]
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
        | Annotated[Words, tyro.conf.subcommand("words")]
        | Annotated[Models, tyro.conf.subcommand("models")]
        | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a prompt may have letters that the terminal's encoding lacks
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        sys.stdout.write(f"psd-gs {__version__}\n")
        return
    command = tyro.cli(
        commands,  # type: ignore[arg-type]
        prog="psd-gs",
        description="Text to 3D Gaussian splats and game-ready meshes that people prefer. Also: --version.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    try:
        with terminate_as_interrupt():
            command.run()
    except (PsdGsError, OSError) as error:
        if "--debug" in arguments:
            raise
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
