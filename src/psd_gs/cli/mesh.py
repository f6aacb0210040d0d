"""``psd-gs mesh``: splat files into textured meshes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from rich.console import Console

    from psd_gs.export.open import Asset

Number = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]


@dataclass
class Mesh:
    """Turn splat files into closed meshes with textures.

    .glb (one file with everything, for engines and Blender), .obj (with .mtl and PNG), .ply (vertex colours)
    or .stl (shape alone). Axes are glTF's: y up, the front faces +z; units are metres. With --to, every name is one
    to read: files, folders (with what lies below them) and globs.
    """

    source: Annotated[Positional[Path], arg(metavar="IN")]
    """Splat file of any format that export knows, a run folder, or - for standard input."""
    targets: Annotated[Positional[tuple[Path, ...]], arg(metavar="OUT", help_behavior_hint="")] = ()
    """Mesh file to write: .glb, .obj, .ply or .stl. With --to: more to read."""
    to: Annotated[Literal[".glb", ".obj", ".ply", ".stl"] | None, arg(metavar="EXT", help_behavior_hint="")] = None
    """Write a mesh of each file that is read beside it, as .glb, .obj, .ply or .stl: mesh.glb of splat.ply, a.glb of
    a.ply."""
    output_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """With --to: write below this folder, keeping the folders that the files have below their common one."""
    suffix: Annotated[str, arg(metavar="END")] = "splat.ply"
    """With --to: which files of a folder are read."""
    overwrite: bool = False
    """With --to: make meshes that are there already anew."""
    preset: Literal["mobile", "game", "hero", "film"] = "game"
    """Triangles and texels: mobile 5 k / 512, game 20 k / 1024, hero 50 k / 2048, film 200 k / 4096."""
    faces: Number = None
    """Most triangles, instead of the preset's."""
    texture_size: Number = None
    """Side of the textures, a power of two; 0 makes vertex colours. Default: the preset's."""
    resolution: Number = None
    """Samples of the distance field along the longest side, instead of the preset's."""
    texture_views: Annotated[int, arg(metavar="N")] = 24
    """Renders of the splat that correct the texture; 0 takes the colours of the Gaussians as they are."""
    no_normal_map: bool = False
    """Leave the normal map out."""
    height: Annotated[float | None, arg(metavar="METRES", help_behavior_hint="")] = None
    """Scale the mesh to this height. Default: as large as the splat, about one metre."""
    pivot: Literal["base", "center", "keep"] = "base"
    """What lies at the origin: the middle of the base, the middle of the box, or the splat's own origin."""
    unlit: bool = False
    """Show the colours as they are, without light (KHR_materials_unlit); the light of the splat is in them."""
    lods: Annotated[int, arg(metavar="N")] = 0
    """Also write N coarser levels OUT_lod1 ..., each with half the triangles and texture size."""
    collision: Literal["none", "hull", "coacd"] = "none"
    """Add convex shapes for physics: one hull, or several with coacd (pip install "psd-gs[collision]")."""
    preview: Annotated[Path | None, arg(metavar="FILE.png", help_behavior_hint="")] = None
    """Also write a picture of the splat above the mesh."""
    input_frame: Annotated[Literal["auto", "gltf", "rdf"], arg(help_behavior_hint="")] = "auto"
    """Axes of IN, if neither its metadata name them nor are they as usual for its format."""
    no_metadata: bool = False
    """Write the mesh alone: no prompt, no seed, no FILE.json."""
    large: bool = False
    """Read a compressed file even if it becomes a hundred times as large in memory, or more than 8 GiB."""
    debug: bool = False
    """Show tracebacks."""

    def run(self) -> None:
        from psd_gs.cli.console import console as plain
        from psd_gs.errors import InputError
        from psd_gs.mesh.save import check_target

        if self.preview is not None and self.preview.suffix.lower() != ".png":
            raise InputError(f"--preview: expected a .png, received {self.preview}.")
        console = plain()
        if self.to is not None:
            if self.preview is not None:
                raise InputError("--preview: expected one mesh to show, received --to. Leave one of them out.")
            self._many(console, self.to)
            return
        if len(self.targets) != 1:
            raise InputError(
                f"expected one mesh file to write, received {len(self.targets)}. For many meshes name a format with "
                "--to, such as --to .glb."
            )
        check_target(self.targets[0])
        self._one(console, self.source, self.targets[0])

    def _many(self, console: Console, extension: str) -> None:
        """A mesh of each file that is found; one that has none is one line, and the others are made all the same."""
        from psd_gs.cli.console import console as plain
        from psd_gs.cli.found import find, places
        from psd_gs.errors import PsdGsError
        from psd_gs.files import writing

        errors = plain(stderr=True)
        sources = find([self.source, *self.targets], self.suffix)
        failed = 0
        for i, (source, place) in enumerate(zip(sources, places(sources, self.output_dir), strict=True)):
            target = place.with_name(("mesh" if place.name == "splat" else place.name) + extension)
            console.print(f"[{i + 1}/{len(sources)}] {target}")
            if target.exists() and not self.overwrite:
                continue
            try:
                with writing(target.parent):
                    target.parent.mkdir(parents=True, exist_ok=True)
                self._one(console, source, target)
            except PsdGsError as error:
                failed += 1
                errors.print(f"error: {source}: {error}")
        if failed:
            raise SystemExit(1)

    def _one(self, console: Console, source: Path, target: Path) -> None:
        from psd_gs.errors import InputError
        from psd_gs.export.open import open_splats
        from psd_gs.mesh.build import PRESETS, BuildOptions, build
        from psd_gs.mesh.compare import compare_png
        from psd_gs.mesh.extract import MeshOptions
        from psd_gs.mesh.save import check_target, save_mesh

        suffix = check_target(target)
        if target.resolve() == source.resolve():
            raise InputError(f"expected another file to write than the one that is read, received {target} twice.")
        if self.collision != "none" and suffix in (".ply", ".stl"):
            raise InputError(
                f"{target}: expected .glb or .obj for --collision, received {suffix}, which holds one mesh."
            )
        quality = PRESETS[self.preset]
        textured = suffix in (".glb", ".obj")
        options = BuildOptions(
            MeshOptions(
                resolution=quality.resolution if self.resolution is None else self.resolution,
                faces=quality.faces if self.faces is None else self.faces,
            ),
            texture_size=(quality.texture_size if self.texture_size is None else self.texture_size) if textured else 0,
            texture_views=self.texture_views,
            normal_map=not (self.no_normal_map or self.unlit),
            height=self.height,
            pivot=self.pivot,
            lods=self.lods,
            collision=self.collision,
        )
        frame = None if self.input_frame == "auto" else self.input_frame
        asset = open_splats(source, frame=frame, large=self.large)
        gaussians, metadata = asset.gaussians, asset.metadata
        console.print(f"{source}  {len(gaussians)} Gaussians")
        built = build(gaussians, options, on_stage=lambda stage: console.print(f"{stage} ..."))
        for level, mesh in enumerate(built.levels):
            name = f"{target.stem}_lod{level}{target.suffix}" if level else target.name
            facts = built.facts(level)
            files = save_mesh(
                mesh,
                target.with_name(name),
                metadata=None if self.no_metadata else {**_origin(asset), **facts},
                unlit=self.unlit,
                collision=[] if level else built.collision,
            )
            for file in files:
                console.print(f"{file}  {file.stat().st_size / 1024:.0f} KiB")
        topology = built.extraction.topology
        closed = "watertight" if topology.watertight else f"{topology.boundary_edges} open edges"
        size = " x ".join(f"{high - low:.3g}" for low, high in zip(*built.facts()["bounds"], strict=True))
        shapes = f", {len(built.collision)} collision shapes" if built.collision else ""
        console.print(f"{len(built.levels[0].faces)} triangles, {closed}, {topology.bodies} bodies, {size} m{shapes}")
        if self.preview is not None:
            shown = built.placement.undo(built.levels[0])
            compare_png(gaussians, shown, self.preview, metadata=None if self.no_metadata else metadata)
            console.print(f"{self.preview}")


def _origin(asset: Asset) -> dict[str, Any]:
    """Where the asset came from, and its place in the world, without the other facts of its splat file."""
    own = ("bounds", "frame", "format", "sha256", "scale", "offset", "render_mode")
    kept = {name: value for name, value in asset.metadata.items() if name not in own}
    return kept | ({"offset": list(asset.gaussians.origin)} if any(asset.gaussians.origin) else {})
