"""A mesh with other colours, as a sentence says, and nothing else of it changed."""

from pathlib import Path

import tyro
from tyro.conf import Positional

from psd_gs import TextTo3DPipeline


def main(
    mesh: Positional[Path] = Path("outputs/a-corgi-0/mesh.glb"),
    prompt: Positional[str] = "a blue corgi",
    *,
    folder: Path = Path("outputs/retextured"),
    texture_size: int = 1024,
    preset: str = "default",
    steps: int | None = None,
) -> None:
    """Give MESH, a .glb, .gltf or .obj, new textures, and write it with a page of before and after into FOLDER."""
    pipeline = TextTo3DPipeline.from_pretrained("mini")
    options = {} if steps is None else {"steps": steps}
    result = pipeline.retexture(mesh, prompt, texture_size=texture_size, preset=preset, overrides=options)
    print(result.scores, "before:", result.refined["scores_before"])
    result.save(folder)


if __name__ == "__main__":
    tyro.cli(main)
