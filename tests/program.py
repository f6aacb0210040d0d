"""The installed program in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def psd_gs(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """What ``psd-gs ARGUMENTS`` says and how it ends; ``environment`` is added to ours."""
    command = [sys.executable, "-c", "import sys; from psd_gs.cli import main; main(sys.argv[1:])", *arguments]
    env = {**os.environ, "PYTHONUTF8": "1", **environment}
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600, env=env, cwd=cwd)
