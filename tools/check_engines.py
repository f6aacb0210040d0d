"""Do Blender and Godot import a mesh as it was meant? Runs those that are installed, without a screen.

    psd-gs mesh splat.ply mesh.glb --collision hull
    python tools/check_engines.py mesh.glb              # Debian: apt install blender python3-numpy godot3-server
    psd-gs retexture knight.glb "a golden knight"
    python tools/check_engines.py outputs/a-golden-knight-0/knight.glb --before knight.glb

Bounds, up axis, number of triangles, texture and collision shapes are compared with what the file says. With
``--before``, Blender plays every animation of both files, and the bounds of each mesh are compared in each frame. A
program that is not installed is skipped; --require NAME makes that an error. ``--blender PYTHON`` takes a Python with
the package bpy in place of Blender.
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
BLENDER, GODOT = Path(__file__).with_name("check_engines_blender.py"), Path(__file__).with_suffix(".gd")
"""What runs inside of them."""
TOLERANCE = 1e-4


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


def in_blender(program: str, path: Path, folder: Path) -> dict[str, Any]:
    """What there is to say about a file; the program is Blender, or a Python that has bpy."""
    options = [] if "python" in Path(program).name else ["-b", "--factory-startup", "--python"]
    return run([program, *options, str(BLENDER), "--", str(path.resolve())], folder)


def blender(program: str, path: Path, folder: Path) -> dict[str, Any]:
    """z up there: (x, -z, y) of ours, which is turned back here."""
    result = in_blender(program, path, folder)
    for mesh in result["meshes"].values():
        low, high = mesh["bounds"]
        mesh["bounds"] = [[low[0], low[2], -high[1]], [high[0], high[2], -low[1]]]
    result["shapes"] = len([name for name in result["meshes"] if name.endswith("-convcolonly")])
    return result


def godot(program: str, path: Path, folder: Path) -> dict[str, Any]:
    shutil.copy(path, folder / "asset.glb")
    (folder / "project.godot").write_text("config_version=4\n", encoding="utf-8")
    shutil.copy(GODOT, folder / "read.gd")
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


def compare_frames(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is wrong with the animations, in words."""
    want, found = ({name: np.array(frames) for name, frames in one.items()} for one in (before, after))
    if not any(np.ptp(frames, axis=0).any() for frames in want.values()):
        return ["nothing moves in the file before"]
    if {name: frames.shape for name, frames in want.items()} != {name: frames.shape for name, frames in found.items()}:
        return [f"animated are {sorted(found)}, expected {sorted(want)}, in as many frames"]
    scale = max(np.ptp(frames, axis=(0, 1)).max() for frames in want.values())
    return [
        f"{name} moves otherwise" for name in want if not np.abs(found[name] - want[name]).max() < TOLERANCE * scale
    ]


def played(program: str, before: Path, after: Path) -> bool:
    """Whether Blender plays the animations of both files alike; says so."""
    with tempfile.TemporaryDirectory() as folder:
        old, new = (in_blender(program, path, Path(folder)) for path in (before, after))
    wrong = compare_frames(old["frames"], new["frames"])
    right = f"right: the same bounds in {sum(map(len, old['frames'].values()))} frames of {', '.join(old['frames'])}"
    print(f"blender {new['version']}: {'; '.join(wrong) or right}")
    return not wrong


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mesh", type=Path, help="a .glb of psd-gs mesh, or with --before of psd-gs retexture")
    parser.add_argument("--before", type=Path, help="the animated .glb that was given other colours")
    parser.add_argument("--blender", default="blender", metavar="PROGRAM", help="Blender, or a Python that has bpy")
    parser.add_argument("--require", nargs="+", default=[], choices=("blender", "godot"), metavar="NAME")
    options = parser.parse_args(arguments)
    if options.before:
        program = shutil.which(options.blender)
        if program is None:
            sys.exit(f"{options.blender}: not installed; name it with --blender.")
        sys.exit(not played(program, options.before, options.mesh))
    want, failed = expected(options.mesh), False
    known = {"blender": (blender, (options.blender,)), "godot": (godot, ("godot3-server", "godot3"))}
    for name, (check, programs) in known.items():
        program = next(filter(None, map(shutil.which, programs)), None)
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
