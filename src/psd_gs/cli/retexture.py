"""``psd-gs retexture``: a mesh and a sentence in, the same mesh with other colours out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from psd_gs.cli.refine import Starting
from psd_gs.cli.run_options import Text
from psd_gs.config import REPAINT_STRENGTH

if TYPE_CHECKING:
    from psd_gs.job import Request


@dataclass(kw_only=True)
class Retexture(Starting):
    """Give a mesh other colours, as a sentence says.

    Writes it into outputs/PROMPT-SEED/ under its own name, with new base colour textures. Its geometry, texture
    coordinates, nodes, skins, animations and other materials stay as they are. Parts without texture coordinates get
    an atlas. Beside it are before-after.html, which shows both under one camera, and report.html with the scores
    before and after.
    """

    mesh: Annotated[Positional[Path], arg(metavar="MESH")]
    """A .glb, .gltf or .obj; what it names is read from its folder."""
    prompt: Positional[str]
    """The whole thing as it is to look, for instance "a blue car"."""
    strength: Annotated[float, arg(metavar="0-1")] = REPAINT_STRENGTH
    """Highest noise level: 0.5 varies the colours that are there, 0.8 makes others."""
    texture_size: Annotated[int, arg(metavar="TEXELS")] = 1024
    """Side of the new textures, 16 to 4096."""
    material: Text = None
    """Name of the only material that changes. Default: all."""
    max_splats: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Gaussians on the surface, unless it has more triangles. Default: 20000."""

    def run(self) -> None:
        self.make(self.prompt)

    def request(self, prompt: str) -> Request:
        from psd_gs.errors import ConfigError
        from psd_gs.mesh.repaint import SIZES

        if not SIZES[0] <= self.texture_size <= SIZES[1]:
            raise ConfigError(f"--texture-size: expected {SIZES[0]} to {SIZES[1]}, received {self.texture_size}.")
        own = {"texture_size": self.texture_size, "material": self.material, "max_splats": self.max_splats}
        return self.started(super().request(prompt), self.mesh, self.strength, only="colour", **own)
