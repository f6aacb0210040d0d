"""Text to 3D Gaussian splats and game-ready meshes under preference score distillation."""

import os
from typing import TYPE_CHECKING, Any

from psd_gs.cores import alone

if TYPE_CHECKING:
    from psd_gs.pipeline import TextTo3DPipeline
    from psd_gs.result import Result

# Before torch is loaded: its threads wait for each other at the end of every operation. Where another program has one
# of the cores, those that spin meanwhile keep the one that they wait for from running, and a run takes many times as
# long. Where none has, those that sleep at once wake too late, and two threads can be no faster than one: there they
# spin for some hundredths of a millisecond first (tools/bench/busy.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if alone():
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__version__ = "0.1.0"
__all__ = ["Result", "TextTo3DPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    """The pipeline is imported at first use: torch alone takes longer than ``psd-gs --help`` may."""
    if name in ("Result", "TextTo3DPipeline"):
        from psd_gs import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'psd_gs' has no attribute {name!r}")
