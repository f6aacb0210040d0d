"""``psd-gs view``: assets in a browser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass
class View:
    """Show assets side by side in the browser, in one HTML file that works offline.

    Splat files of any format that export knows, meshes (.glb), and run folders (their splats and mesh share a pane).
    """

    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE [FILE ...]", help_behavior_hint="")]
    """What to show."""
    output: Annotated[Path | None, arg(metavar="PAGE.html", help_behavior_hint="")] = None
    """Write the page here. Default: into the folder for temporary files."""
    serve: bool = False
    """Serve the page on 127.0.0.1, with a token in its address, until Ctrl-C: for work over SSH."""
    port: Annotated[int, arg(metavar="N", help_behavior_hint="")] = 0
    """With --serve. Default: any free one."""
    no_open: bool = False
    """Do not open the browser."""
    large: bool = False
    """Read compressed files even if they become a hundred times as large in memory, or more than 8 GiB."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        import contextlib
        import tempfile
        import webbrowser

        from psd_gs.cli.console import console
        from psd_gs.errors import InputError
        from psd_gs.export.page import make_page
        from psd_gs.files import write_atomic
        from psd_gs.viewer.open import panes
        from psd_gs.viewer.serve import page_server

        if self.output is not None and self.output.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"--output: expected a name that ends with .html, received {self.output}.")
        if not self.files:
            raise InputError("expected a splat file, a mesh or a run folder, received none. Name one, or several.")
        shown = panes(self.files, large=self.large)
        page = make_page(shown, " | ".join(pane.name for pane in shown))
        out = console()
        target = self.output
        if target is None and not self.serve:
            target = Path(tempfile.mkdtemp(prefix="psd-gs-")) / "view.html"
        if target is not None:
            write_atomic(target, page)
            out.print(f"{target}  {target.stat().st_size / 1024:.0f} KiB")
        if not self.serve:
            if target is not None and not self.no_open:
                webbrowser.open(target.resolve().as_uri())
            return
        server, address = page_server(page, self.port)
        out.print(address)
        port = server.port
        hint = f"From another machine: ssh -L {port}:127.0.0.1:{port} HOST, then open the address there."
        out.print(hint)
        out.print("Ctrl-C ends it.")
        if not self.no_open:
            webbrowser.open(address)
        with server, contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
