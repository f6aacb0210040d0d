"""The CPU kernels that a wheel brings, so that a first run has none to compile.

    python tools/compile_kernels.py            # into src/psd_gs/compiled, where `python -m build` takes them from

Makes a short run with a kernel cache that is empty, for processors with AVX2 whatever this one is, and keeps what numba
compiles meanwhile. That serves this version of Python and of numba on this system; wherever else, kernels are compiled
in the first run. Once per version of Python, in the same folder; again after a change of a kernel.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from unittest import mock

import numba

from psd_gs import kernels
from psd_gs.cli import main as psd_gs


def compile_kernels(folder: Path) -> int:
    """Fill ``folder`` and return how many bytes it holds.

    Args:
        folder: created if it is missing; kernels of other versions of Python stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numba.config.CPU_NAME, numba.config.CPU_FEATURES = kernels.TARGET, ""  # type: ignore[attr-defined]
    with (
        tempfile.TemporaryDirectory() as output,
        mock.patch.object(kernels, "BROUGHT", folder),
        mock.patch.object(kernels.Cache, "load_overload", return_value=None),
        mock.patch.object(kernels.Cache, "save_overload", kernels.Cache.bring),
    ):
        psd_gs(["generate", "a corgi", "--preset", "draft", "--steps", "2", "--device", "cpu", "--output-dir", output])
    return sum(path.stat().st_size for path in folder.iterdir())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=kernels.BROUGHT, help=f"default: {kernels.BROUGHT}")
    folder = parser.parse_args(argv).out
    print(f"{folder}: {compile_kernels(folder) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
