"""Text to 3D Gaussian splats and game-ready meshes under preference score distillation."""

import os
from typing import TYPE_CHECKING, Any

from psd_gs.cores import choose_waiting

if TYPE_CHECKING:
    from psd_gs.pipeline import TextTo3DPipeline
    from psd_gs.result import Result

choose_waiting(os.environ)  # before torch is loaded

__version__ = "0.1.0"
__all__ = ["Result", "TextTo3DPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    """The pipeline is imported at first use: torch alone takes longer than ``psd-gs --help`` may."""
    if name in ("Result", "TextTo3DPipeline"):
        from psd_gs import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'psd_gs' has no attribute {name!r}")
