"""Mesh files by their extension: GLB, OBJ, PLY and STL, and what is written beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from psd_gs import __version__
from psd_gs.errors import InputError
from psd_gs.export.formats import write_sidecar
from psd_gs.export.metadata import METADATA_KEY, Metadata, to_json
from psd_gs.files import write_atomic
from psd_gs.mesh.glb import NAME, check_mesh, png_bytes, write_glb
from psd_gs.mesh.surface import Mesh, Triangles
from psd_gs.mesh.texture import TexturedMesh

EXTENSIONS = (".glb", ".obj", ".ply", ".stl")


def check_target(path: str | os.PathLike[str]) -> str:
    """The extension of a mesh file.

    Raises:
        InputError: another one, or a folder that does not exist.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in EXTENSIONS:
        hint = " FBX: import the .glb into Blender and export it there." if suffix == ".fbx" else ""
        raise InputError(f"{path}: expected a mesh file, one of {', '.join(EXTENSIONS)}, received {suffix!r}.{hint}")
    if not target.parent.is_dir() or target.is_dir():
        raise InputError(
            f"{path}: expected the name of a file in a folder that exists, received "
            f"{'a folder. Name a file in it.' if target.is_dir() else f'none. Create {target.parent} first.'}"
        )
    return suffix


def save_mesh(
    mesh: Mesh | TexturedMesh,
    path: str | os.PathLike[str],
    *,
    metadata: Metadata | None = None,
    unlit: bool = False,
    collision: Sequence[Triangles] = (),
) -> list[Path]:
    """Write a mesh in the format of the file's extension.

    ``.glb`` holds everything. ``.obj`` refers to a ``.mtl`` and PNG textures beside it; without textures its
    vertices carry sRGB colours, and collision shapes are objects named ``UCX_asset_00``. ``.ply`` has
    vertex colours, sampled from the texture, and ``.stl`` the shape alone. With metadata, a JSON file named after
    the mesh lies beside each.

    Args:
        mesh: metres, glTF axes: +Y up, the front faces +Z.
        path: of the file; each file is replaced in one step.
        metadata: where the asset comes from; None writes none.
        unlit: for ``.glb`` and ``.obj``: show the colours as they are.
        collision: convex shapes, for ``.glb`` and ``.obj``.

    Returns:
        The files that were written, ``path`` first.

    Raises:
        InputError: an unknown extension, a mesh that cannot be written, or collision shapes for a format without.
        OutputError: a file cannot be written.
    """
    suffix = check_target(path)
    check_mesh(mesh, path)
    if collision and suffix in (".ply", ".stl"):
        raise InputError(f"{path}: expected .glb or .obj for --collision, received {suffix}, which holds one mesh.")
    target = Path(path)
    written = [target]
    if suffix == ".glb":
        write_glb(mesh, target, metadata=metadata, unlit=unlit, collision=collision)
    elif suffix == ".obj":
        written += _write_obj(mesh, target, unlit, collision)
    elif suffix == ".ply":
        _write_ply(mesh, target, metadata)
    else:
        _write_stl(mesh, target)
    if metadata is not None:
        written.append(write_sidecar(target, metadata))
    return written


def _write_obj(mesh: Mesh | TexturedMesh, path: Path, unlit: bool, collision: Sequence[Triangles]) -> list[Path]:
    """Wavefront OBJ; texture rows start at the bottom there. The mesh comes last: its parts exist by then."""
    lines = [f"# psd-gs {__version__}, metres, y up"]
    material = ["newmtl asset", f"illum {0 if unlit else 1}", "Kd 1 1 1", "Ks 0 0 0"]
    beside: list[Path] = []
    corners = mesh.faces + 1
    if isinstance(mesh, TexturedMesh):
        maps = {"map_Kd": ("color", mesh.color)}
        if mesh.normal_map is not None and not unlit:
            maps["norm"] = ("normal", mesh.normal_map)
        for key, (name, image) in maps.items():
            file = path.with_name(f"{path.stem}_{name}.png")
            write_atomic(file, png_bytes(image))
            beside.append(file)
            material.append(f"{key} {file.name}")
        write_atomic(path.with_suffix(".mtl"), "\n".join(material) + "\n")
        beside.append(path.with_suffix(".mtl"))
        lines += [f"mtllib {path.stem}.mtl", f"o {NAME}"]
        lines += _rows("v", mesh.vertices) + _rows("vt", np.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], axis=1))
        corner = "{0}/{0}/{0}"
        lines += [*_rows("vn", mesh.normals), f"usemtl {NAME}"]
    else:
        lines += [f"o {NAME}", *_rows("v", np.concatenate([mesh.vertices, mesh.colors], axis=1))]
        corner = "{0}//{0}"
        lines += _rows("vn", mesh.normals)
    lines += [f"f {' '.join(corner.format(i) for i in face)}" for face in corners.tolist()]
    first = len(mesh.vertices) + 1
    for i, (vertices, faces) in enumerate(collision):
        lines += [f"o UCX_{NAME}_{i:02d}", *_rows("v", vertices)]
        lines += [f"f {a} {b} {c}" for a, b, c in (faces + first).tolist()]
        first += len(vertices)
    write_atomic(path, "\n".join(lines) + "\n")
    return beside


def _rows(key: str, table: np.ndarray) -> list[str]:
    return [f"{key} {' '.join(f'{x:.7g}' for x in row)}" for row in table.tolist()]


def _write_ply(mesh: Mesh | TexturedMesh, path: Path, metadata: Metadata | None) -> None:
    """Binary PLY with normals and sRGB colours; the vertices at the seams are there once per chart."""
    columns = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("nx", "<f4"), ("ny", "<f4"), ("nz", "<f4")]
    columns += [("red", "u1"), ("green", "u1"), ("blue", "u1")]
    vertices = np.empty(len(mesh.vertices), columns)
    colors = np.round(np.clip(vertex_colors(mesh), 0, 1) * 255)
    for name, column in zip(
        vertices.dtype.names or (), np.hstack([mesh.vertices, mesh.normals, colors]).T, strict=True
    ):
        vertices[name] = column
    faces = np.empty(len(mesh.faces), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.faces
    types = {"<f4": "float", "u1": "uchar"}
    head = ["ply", "format binary_little_endian 1.0"]
    head += [] if metadata is None else [f"comment {METADATA_KEY} {to_json(metadata, limit=4000)}"]
    head += [f"element vertex {len(vertices)}", *(f"property {types[kind]} {name}" for name, kind in columns)]
    head += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    write_atomic(path, "\n".join(head).encode("ascii") + vertices.tobytes() + faces.tobytes())


def _write_stl(mesh: Mesh | TexturedMesh, path: Path) -> None:
    """Binary STL: the triangles and their normals."""
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-20)
    facets = np.zeros(len(mesh.faces), [("values", "<f4", 12), ("attribute", "<u2")])
    facets["values"] = np.hstack([normal, a, b, c])
    head = f"psd-gs {__version__}, metres, y up".encode().ljust(80)  # must not begin with "solid"
    write_atomic(path, head + np.uint32(len(facets)).tobytes() + facets.tobytes())


def vertex_colors(mesh: Mesh | TexturedMesh) -> np.ndarray:
    """sRGB per vertex, ``[V, 3]`` in [0, 1]; those of a texture are looked up."""
    if isinstance(mesh, Mesh):
        return mesh.colors
    from psd_gs.mesh.raster import sample

    return sample(mesh.color / np.float32(255), mesh.uv * np.float32(len(mesh.color)))
