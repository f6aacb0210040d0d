"""Meshes of the published kits with captions: ``meshes-*.npz`` and ``assets.tsv`` of the pack.

    cd tools
    python -m mini.kits.meshes SOURCES PACK

SOURCES holds clones of the repositories that the README of ``mini`` lists; kits that are not there are told and left
out. What a mesh is called, and whether it is taken, is said in :mod:`mini.kits.rules`. Needs usd-core (the extra
``usd``).
"""

from __future__ import annotations

import argparse
import base64
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mini.kits.phrases import article, head
from mini.kits.rules import HERE, Choice, Kit, choose, committed_kits
from mini.kits.surfaces import FlatMesh, flat_mesh
from mini.kits.tones import main_colours
from mini.kits.usd import read_usd_parts
from mini.pack import COLUMNS, write_meshes, write_table
from psd_gs.errors import PsdGsError
from psd_gs.export.gltf_file import GltfFile, objects
from psd_gs.mesh.gltf import gltf_scene
from psd_gs.mesh.read import read_scene
from psd_gs.mesh.scene import Part, parsing

FOLDERS = {
    "kenney": ("kenney-stage/models/*", ("*.usda",)),
    "quaternius": ("quaternius-showcase/public/glb/*", ("*.glb",)),
    "kaykit": ("KayKit-*", ("addons/**/*.gltf", "addons/**/*.glb")),
    "fbx": ("FreeAssetsByKenneyNLandQuaternius/FreeModels*/*/*", ("**/*.fbx.glb",)),
}
"""By maker: the folders of its kits in SOURCES, and the files of a kit."""
LINEAR = "kenney-AnimatedCharactersBundle"
"""The one of Kenney's kits whose colours are linear, as USD wants them. Those of all others are the maker's sRGB
values: many are whole 255ths, and only so do they match his pictures."""
HEROES = {
    "Knight": "Knight_|1H_Sword$|Badge_Shield$",
    "Barbarian": "Barbarian_|1H_Axe$",
    "Mage": "Mage_|2H_Staff$",
    "Rogue": "Rogue_|1H_Crossbow$",
    "Rogue_Hooded": "Rogue_|1H_Crossbow$",
}
"""KayKit's heroes carry every weapon at once: these parts only."""
HEROES_KIT = "kaykit-Character-Pack-Adventures-1.0"
MATERIALS = HERE / "fbx_materials.json"
"""What FBX files of Blender's node materials have lost: linear colour or picture by material (``*``: any), by file."""

Materials = Mapping[str, list[float] | str]


def kit_files(sources: Path) -> Iterator[tuple[str, dict[str, Path]]]:
    """Kits and their files by name; where two have one, the second is called by its folder too."""
    for maker, (kits, patterns) in FOLDERS.items():
        for folder in sorted(path for path in sources.glob(kits) if path.is_dir()):
            files: dict[str, Path] = {}
            for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
                stem = re.sub(r"(-transformed)?(\.gltf|\.fbx)?\.\w+$", "", path.name)
                name = stem.removeprefix("S_").replace(" ", "_")
                files[f"{path.parent.name}/{name}" if name in files else name] = path
            yield f"{maker}-{re.sub(r' +(- +)?', '_', folder.name.removeprefix('KayKit-'))}", files


def read_parts(kit: str, name: str, path: Path, lost: Materials) -> list[Part]:
    """The parts of a file that are shown, with the materials that it has lost.

    Raises:
        PsdGsError: it cannot be read.
    """
    if path.suffix == ".usda":
        return read_usd_parts(path, linear=kit == LINEAR)
    if lost:
        with parsing(path):
            return gltf_scene(restored(GltfFile(path), lost)).meshes
    parts = read_scene(path).meshes
    if kit == HEROES_KIT and name in HEROES:
        parts = [part for part in parts if re.match(HEROES[name], part.name)]
    return parts


def restored(file: GltfFile, lost: Materials) -> GltfFile:
    """The file with its lost materials: a linear colour, or a picture in the folder of its kit."""
    images, textures = (file.document.setdefault(key, []) for key in ("images", "textures"))
    for about in objects(file.document, "materials"):
        called = about.get("name", "").strip().lower()
        found = next((lost[key] for key in (called, re.sub(r"\.\d+$", "", called), "*") if key in lost), None)
        if found is None:
            continue
        surface: dict[str, Any] = {"baseColorFactor": [*found, 1]}
        if isinstance(found, str):
            (picture, *_) = sorted(file.path.parent.parent.rglob(found))
            images.append({"uri": f"data:;base64,{base64.b64encode(picture.read_bytes()).decode()}"})
            textures.append({"source": len(images) - 1})
            surface = {"baseColorTexture": {"index": len(textures) - 1}}
        about.clear()
        about.update(name=called, pbrMetallicRoughness=surface)
    return file


def fingerprint(mesh: FlatMesh) -> tuple[bytes, ...]:
    """The same for two meshes of all but the same shape in all but the same colours."""
    shape = np.unique(np.round(mesh.vertices / 256).astype(np.int16), axis=0)
    brightness = np.round(np.unique(mesh.colours.mean(1).astype(int)) / 8)
    mean = np.round(np.average(mesh.colours, axis=0, weights=mesh.areas) / 12)
    return shape.tobytes(), brightness.tobytes(), mean.tobytes()


def row(kit: str, name: str, mesh: FlatMesh, choice: Choice) -> dict[str, str | int]:
    """The line of the table."""
    noun = head(choice.captions[0])
    tones, tone = np.unique(mesh.colours, axis=0, return_inverse=True)
    colours = main_colours(tones / 255, np.bincount(tone.ravel(), mesh.seen()))
    values = (
        *(re.sub(r"[^a-z0-9]+", "-", f"{kit}-{name}".lower()).strip("-"), choice.captions[0]),
        *("|".join(choice.captions[1:]), article(choice.captions[0], noun), noun, choice.category, kit, "CC0-1.0"),
        *(len(mesh.triangles), int(choice.front), ",".join(colours), choice.quality, f"{mesh.radius:.4g}", name),
    )
    return dict(zip(COLUMNS, values, strict=True))


def convert_kit(
    name: str, kit: Kit, files: Mapping[str, Path], lost: Mapping[str, Materials]
) -> Iterator[tuple[FlatMesh, dict[str, str | int]]]:
    """The chosen meshes of a kit, turned and brightened, and their lines; what cannot be read is told."""
    for mesh_name, path in files.items():
        choice = choose(kit, mesh_name)
        if choice is None:
            continue
        try:
            parts = read_parts(name, mesh_name, path, lost.get(f"{name}/{mesh_name}", {}))
            mesh = flat_mesh(parts)
        except (PsdGsError, ValueError, OSError) as error:
            print(f"{path} is left out: {error}")
            continue
        mesh = mesh.turned(choice.turn, choice.pitch)
        mesh = mesh if choice.gain == 1 else mesh.brightened(choice.gain)
        yield mesh, row(name, mesh_name, mesh, choice)


def convert(sources: Path, out: Path, kits: Mapping[str, Kit]) -> list[dict[str, str | int]]:
    """Write the meshes, a file for each maker, and the table, without duplicates; gives the table's rows."""
    rows: list[dict[str, str | int]] = []
    found: dict[str, list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]] = {}
    seen: set[tuple[bytes, ...]] = set()
    lost = json.loads(MATERIALS.read_text(encoding="utf-8"))
    files = dict(kit_files(sources))
    for name, kit in kits.items():
        if name not in files:
            print(f"no kit {name}")
            continue
        for mesh, line in convert_kit(name, kit, files[name], lost):
            if (mark := fingerprint(mesh)) in seen:
                continue
            seen.add(mark)
            rows.append(line)
            maker = name.split("-")[0].replace("fbx", "quaternius")  # whose older packs these are
            found.setdefault(maker, []).append((str(line["id"]), mesh.vertices, mesh.triangles, mesh.colours))
    categories: dict[str | int, Counter[str | int]] = {}
    for line in rows:
        categories.setdefault(line["caption"], Counter())[line["category"]] += 1
    for line in rows:  # a caption has one category
        line["category"] = categories[line["caption"]].most_common(1)[0][0]
    out.mkdir(parents=True, exist_ok=True)
    for maker, meshes in found.items():
        write_meshes(out / f"meshes-{maker}.npz", meshes)
    if rows:
        write_table(out / "assets.tsv", rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, help="folder of the clones")
    parser.add_argument("pack", type=Path, help="gets meshes-*.npz and assets.tsv")
    args = parser.parse_args()
    rows = convert(args.sources, args.pack, committed_kits())
    print(f"{len(rows)} meshes of {len({row['caption'] for row in rows})} things")


if __name__ == "__main__":
    main()
