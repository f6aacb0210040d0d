"""``psd-gs generate``: a sentence in, a run folder with splats, a mesh and pictures out."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

from psd_gs.cli.making import Making


@dataclass(kw_only=True)
class Generate(Making):
    """Make a 3D asset from a sentence.

    Optimizes 3D Gaussians under a diffusion prior with preference score distillation, and writes
    splat.ply, mesh.glb, turntable.mp4, preview.png and report.html into outputs/PROMPT-SEED/. Without
    a GPU and a model hub it uses the small embedded model of toy-like objects (see `psd-gs words`).
    """

    prompt: Positional[str] = ""
    """What to make, for instance "a corgi wearing a red hat"; imagedream needs none beside its --image."""

    def run(self) -> None:
        self.make(self.prompt)
