"""Do Blender and Godot import a mesh as it was meant? Runs those that are installed, without a screen.

    psd-gs mesh splat.ply mesh.glb --collision hull
    python tools/check_engines.py mesh.glb              # Debian: apt install blender python3-numpy godot3-server

Bounds, up axis, number of triangles, texture and collision shapes are compared with what the file says. A program
that is not installed is skipped; --require NAME makes that an error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

MARK = "CHECK_ENGINES "
TOLERANCE = 1e-4

BLENDER = """
import json, sys
import numpy
numpy.bool = bool  # the importer of Blender 3.4 uses the old name
import bpy
bpy.ops.import_scene.gltf(filepath=sys.argv[-1])
meshes = {}
for o in bpy.context.scene.objects:
    if o.type == "MESH":
        corners = [list(o.matrix_world @ v.co) for v in o.data.vertices]
        images = [n.image for m in o.data.materials if m for n in m.node_tree.nodes if n.type == "TEX_IMAGE"]
        meshes[o.name] = {
            "bounds": [[min(c[i] for c in corners) for i in range(3)], [max(c[i] for c in corners) for i in range(3)]],
            "triangles": len(o.data.polygons),
            "uv": len(o.data.uv_layers),
            "textures": [list(image.size) for image in images],
        }
print("CHECK_ENGINES " + json.dumps({"version": bpy.app.version_string, "meshes": meshes}))
"""

GODOT = """
extends SceneTree

var meshes = {}
var shapes = 0

func visit(node):
    if node is MeshInstance:
        var box = node.get_aabb()
        var low = box.position
        var high = box.position + box.size
        var material = node.mesh.surface_get_material(0)
        var textures = []
        if material is SpatialMaterial:
            for kind in [SpatialMaterial.TEXTURE_ALBEDO, SpatialMaterial.TEXTURE_NORMAL]:
                var texture = material.get_texture(kind)
                if texture != null:
                    textures.append([texture.get_width(), texture.get_height()])
        meshes[node.name] = {
            "bounds": [[low.x, low.y, low.z], [high.x, high.y, high.z]],
            "triangles": node.mesh.get_faces().size() / 3,
            "uv": 1 if node.mesh.surface_get_format(0) & Mesh.ARRAY_FORMAT_TEX_UV else 0,
            "textures": textures,
        }
    if node is CollisionShape and node.get_parent() is StaticBody and node.shape is ConvexPolygonShape:
        shapes += 1
    for child in node.get_children():
        visit(child)

func _init():
    visit(load("res://asset.glb").instance())
    var version = Engine.get_version_info()["string"]
    print("CHECK_ENGINES " + to_json({"version": version, "meshes": meshes, "shapes": shapes}))
    quit()
"""


def expected(path: Path) -> dict[str, Any]:
    """What the file says, read by trimesh."""
    import trimesh

    scene = trimesh.load_scene(path, process=False)
    mesh = scene.geometry["asset"]
    material = getattr(mesh.visual, "material", None)
    images = [getattr(material, name, None) for name in ("baseColorTexture", "normalTexture")]
    return {
        "bounds": np.array(mesh.bounds),
        "triangles": len(mesh.faces),
        "textures": [list(image.size) for image in images if image is not None],
        "shapes": len([name for name in scene.geometry if name.startswith("UCX_")]),
    }


def run(command: list[str], folder: Path) -> dict[str, Any]:
    """What the script inside of a program printed."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line[len(MARK) :])
    raise SystemExit(f"{command[0]} printed no result:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def blender(program: str, path: Path, folder: Path) -> dict[str, Any]:
    """z up there: (x, -z, y) of ours, which is turned back here."""
    script = folder / "read.py"
    script.write_text(BLENDER, encoding="utf-8")
    result = run([program, "-b", "--factory-startup", "--python", str(script), "--", str(path.resolve())], folder)
    for mesh in result["meshes"].values():
        low, high = mesh["bounds"]
        mesh["bounds"] = [[low[0], low[2], -high[1]], [high[0], high[2], -low[1]]]
    result["shapes"] = len([name for name in result["meshes"] if name.endswith("-convcolonly")])
    return result


def godot(program: str, path: Path, folder: Path) -> dict[str, Any]:
    shutil.copy(path, folder / "asset.glb")
    (folder / "project.godot").write_text("config_version=4\n", encoding="utf-8")
    (folder / "read.gd").write_text(GODOT.replace("    ", "\t"), encoding="utf-8")
    environment = {**os.environ, "HOME": str(folder)}
    command = [program, "--path", ".", "--editor", "--quit"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=folder, env=environment, **quiet) as editor:
        end = time.monotonic() + 300
        # The editor imports and then may wait for a screen forever; the checksum is what it writes last.
        while editor.poll() is None and time.monotonic() < end and not list(folder.glob(".import/asset.glb-*.md5")):
            time.sleep(0.2)
        editor.kill()
    return run([program, "--path", ".", "-s", "read.gd"], folder)


PROGRAMS = {"blender": (blender, ("blender",)), "godot": (godot, ("godot3-server", "godot3"))}


def compare(found: dict[str, Any], want: dict[str, Any]) -> list[str]:
    """What is wrong, in words."""
    if "asset" not in found["meshes"]:
        return [f"no mesh named asset among {sorted(found['meshes'])}"]
    mesh, wrong = found["meshes"]["asset"], []
    scale = np.ptp(want["bounds"], axis=0).max()
    error = np.abs(np.array(mesh["bounds"]) - want["bounds"]).max() / scale
    if not error < TOLERANCE:
        wrong.append(f"bounds {mesh['bounds']}, expected {want['bounds'].tolist()}")
    if mesh["triangles"] != want["triangles"]:
        wrong.append(f"{mesh['triangles']} triangles, expected {want['triangles']}")
    if sorted(mesh["textures"]) != sorted(want["textures"]) or mesh["uv"] < bool(want["textures"]):
        wrong.append(f"textures {mesh['textures']} and {mesh['uv']} UV maps, expected {want['textures']}")
    if found["shapes"] != want["shapes"]:
        wrong.append(f"{found['shapes']} collision shapes, expected {want['shapes']}")
    return wrong


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mesh", type=Path, help="a .glb of psd-gs mesh")
    parser.add_argument("--require", nargs="+", default=[], choices=list(PROGRAMS), metavar="NAME")
    options = parser.parse_args(arguments)
    want, failed = expected(options.mesh), False
    for name, (check, programs) in PROGRAMS.items():
        program = next((found for found in map(shutil.which, programs) if found), None)
        if program is None:
            failed |= name in options.require
            print(f"{name}: not installed ({' or '.join(programs)}), skipped")
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = check(program, options.mesh, Path(folder))
        wrong = compare(found, want)
        failed |= bool(wrong)
        counts = f"{want['triangles']} triangles, textures {want['textures']}, {want['shapes']} collision shapes"
        print(f"{name} {found['version']}: {'; '.join(wrong) if wrong else f'right: {counts}, bounds and y up'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
