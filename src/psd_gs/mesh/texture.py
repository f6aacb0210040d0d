"""Colours and normals of a surface as textures: from the Gaussian field, from its renders, from the dense mesh."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8

from psd_gs.cameras import Cameras, sphere_of_cameras
from psd_gs.export.fitting import bounding_ball
from psd_gs.gaussians import Gaussians
from psd_gs.mesh.extract import Extraction, field_colors
from psd_gs.mesh.raster import Pixels, located, project, rasterize, sample
from psd_gs.mesh.surface import Mesh, Triangles
from psd_gs.mesh.uv import Atlas, fill_gutters, texels, unwrap

_CHUNK = 65536
VIEWS = 24
"""Number of views of the Gaussians from which a texture is corrected."""
_PRIOR = 0.1  # weight of the field's colour beside that of a view that looks straight at the texel
_GRAZING = 0.1  # cosine below which a view says nothing of the colour


@dataclass
class TexturedMesh:
    """A triangle mesh with textures, in the world frame; vertices at the seams of the atlas exist once per chart.

    Attributes:
        vertices: float32, world units.
        faces: int64, counter-clockwise seen from outside.
        normals: float32, unit length, outward.
        uv: float32 in [0, 1], (0, 0) at the first texel's corner, v down the rows.
        color: sRGB texture.
        tangents: xyz along growing u, orthogonal to the normal; w is 1 where cross(normal, tangent) points to
            the top of the texture, else -1. None without a normal map.
        normal_map: tangent-space normals, 255 (n + 1) / 2, green up as in glTF and OpenGL.
    """

    vertices: Float[np.ndarray, "W 3"]
    faces: np.ndarray
    normals: Float[np.ndarray, "W 3"]
    uv: Float[np.ndarray, "W 2"]
    color: UInt8[np.ndarray, "S S 3"]
    tangents: Float[np.ndarray, "W 4"] | None = None
    normal_map: UInt8[np.ndarray, "S S 3"] | None = None


def bake(
    extraction: Extraction,
    size: int,
    *,
    mesh: Mesh | None = None,
    normal_map: bool = False,
    views: int = VIEWS,
) -> TexturedMesh:
    """A mesh cut into an atlas, with a texture of what the Gaussians look like.

    Each texel starts with the colour of the Gaussian field at its place; then views of the Gaussians correct it,
    see :func:`correction`.

    Args:
        extraction: the surface and the Gaussians.
        size: of the textures, texels.
        mesh: what gets the textures, such as a coarser level of detail; the extraction's own by default.
        normal_map: also bake the normals of the dense surface.
        views: of the Gaussians, for the correction; 0 leaves the colours of the field.

    Raises:
        BackendError: xatlas is not installed.
    """
    mesh = mesh or extraction.mesh
    atlas = unwrap(mesh.vertices, mesh.faces, size)
    places = texels(atlas, size)
    cut = replace(mesh, vertices=mesh.vertices[atlas.source], faces=atlas.faces, normals=mesh.normals[atlas.source])
    points = places.interpolate(cut.vertices, cut.faces)
    texture = np.zeros((size, size, 3), np.float32)
    texture[places.rows, places.columns] = _field(extraction, points)
    covered = np.zeros((size, size), bool)
    covered[places.rows, places.columns] = True
    texture = fill_gutters(texture, covered)
    if views:
        normals = _unit(places.interpolate(cut.normals, cut.faces))
        texture[places.rows, places.columns] += correction(
            texture, extraction.solid, cut, atlas, points, normals, views=views
        )
        texture = fill_gutters(texture, covered)
    out = TexturedMesh(cut.vertices, cut.faces, cut.normals, atlas.uv, _bytes(texture))
    if normal_map:
        out.tangents = tangents(cut.vertices, cut.faces, cut.normals, atlas.uv)
        relief = np.zeros((size, size, 3), np.float32)
        relief[places.rows, places.columns] = tangent_space_normals(
            places, points, cut.faces, cut.normals, out.tangents, extraction.dense
        )
        out.normal_map = _bytes(fill_gutters(relief, covered) / 2 + 0.5)
    return out


def _field(extraction: Extraction, points: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 3"]:
    """Colours of the field in pieces that bound the memory."""
    pieces = np.array_split(points, max(1, -(-len(points) // _CHUNK)))
    floor = extraction.voxel / 2
    return np.concatenate([field_colors(extraction.solid, piece, sigma_floor=floor) for piece in pieces])


def correction(
    texture: Float[np.ndarray, "S S 3"],
    gaussians: Gaussians,
    mesh: Mesh,
    atlas: Atlas,
    points: Float[np.ndarray, "P 3"],
    normals: Float[np.ndarray, "P 3"],
    *,
    views: int = VIEWS,
) -> Float[np.ndarray, "P 3"]:
    """What to add to the texture so that renders of the mesh look like those of the Gaussians.

    One step of iterative back-projection (Irani and Peleg 1991): the difference of the two renders of each
    view is sampled at the texels that the view sees and averaged over the views with the squared cosine of
    the angle to the normal. A texel that few views see keeps more of its colour, one that none sees all of it.
    Further steps do not come closer to unseen views, and fit the noise of the silhouettes.

    Args:
        texture: sRGB, gutters filled.
        gaussians: what it should look like.
        mesh: cut along the seams of the atlas.
        atlas: of the mesh.
        points: world positions of the texels.
        normals: unit surface normals there.
        views: how many, evenly from all directions.
    """
    size, side = len(texture), max(64, len(texture) // 2)
    centre, radius = bounding_ball(gaussians)
    offset = centre.cpu().numpy().astype(np.float32)
    cameras = sphere_of_cameras(views, radius, side)
    centred = replace(gaussians, means=gaussians.means - centre)
    vertices, points = mesh.vertices - offset, points - offset
    total, weight = np.zeros((len(points), 3), np.float32), np.full((len(points), 1), _PRIOR, np.float32)
    for c in range(views):
        camera = cameras[c : c + 1]
        target, alpha = unblended(centred, camera)
        flat = project(vertices, camera)
        ids, depth = rasterize(flat, mesh.faces, side, side)
        shown = located(ids[0], flat[0], mesh.faces)
        at = shown.rows, shown.columns
        wrong = np.zeros((side, side, 4), np.float32)  # the last channel says where the difference is known
        wrong[at] = 1
        wrong[..., :3][at] = target[0][at] - sample(texture, shown.interpolate(atlas.uv * size, mesh.faces))
        wrong[(alpha[0] <= 0.5) | _edges(depth[0], (0.05 + 25 / side) * radius)] = 0
        seen, xy, cosine = _seen(points, normals, camera, depth[0], (0.005 + 3 / side) * radius)
        found = sample(wrong, xy) * cosine[:, None] ** 2
        total[seen] += found[:, :3]
        weight[seen] += found[:, 3:]
    return total / weight


def _edges(depth: Float[np.ndarray, "H W"], step: float) -> np.ndarray:
    """Pixels near which the distance (given as its inverse, 0 for none) jumps by more than ``step``: the
    outlines of the mesh, where its own do not quite match those of the Gaussians."""
    from scipy.ndimage import maximum_filter, minimum_filter

    nearest, farthest = maximum_filter(depth, 5), minimum_filter(depth, 5)
    return nearest - farthest > step * nearest * farthest


def _seen(
    points: Float[np.ndarray, "P 3"],
    normals: Float[np.ndarray, "P 3"],
    camera: Cameras,
    depth: Float[np.ndarray, "H W"],
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which points a camera sees, at which pixels, and the cosine of the angle to their normals.

    Args:
        points: world positions.
        normals: unit.
        camera: one.
        depth: inverse depth of the mesh in its picture.
        tolerance: how far behind the mesh a point may lie, world units, seen head-on.
    """
    ray = camera.positions.numpy().astype(np.float32) - points
    cosine = np.einsum("pk,pk->p", normals, ray) / np.linalg.norm(ray, axis=1)
    seen = np.nonzero(cosine > _GRAZING)[0]
    xyz = project(points[seen], camera)[0]
    column, row = (np.clip(xyz[:, i].astype(int), 0, depth.shape[1 - i] - 1) for i in (0, 1))
    surface = depth[row, column]
    behind = (surface - xyz[:, 2]) / np.maximum(surface * xyz[:, 2], 1e-12)
    visible = (surface > 0) & (behind * cosine[seen] < tolerance)
    return seen[visible], xyz[visible, :2], cosine[seen[visible]].astype(np.float32)


def unblended(
    gaussians: Gaussians, cameras: Cameras
) -> tuple[Float[np.ndarray, "C H W 3"], Float[np.ndarray, "C H W"]]:
    """Colour without the background, sRGB, and alpha of every view."""
    from psd_gs.render import render

    with torch.no_grad():
        out = render(gaussians, cameras.to(gaussians.device))
    color = (out.rgb / out.alpha.clamp_min(1e-3)).clamp(0, 1)
    return color.cpu().numpy(), out.alpha[..., 0].cpu().numpy()


def tangents(
    vertices: Float[np.ndarray, "W 3"],
    faces: np.ndarray,
    normals: Float[np.ndarray, "W 3"],
    uv: Float[np.ndarray, "W 2"],
) -> Float[np.ndarray, "W 4"]:
    """Tangents per vertex as MikkTSpace makes them (Mikkelsen 2008): those of the faces, projected onto
    the plane of the vertex normal and averaged by the angle of the face at the vertex.

    Returns:
        xyz, unit and orthogonal to the normal, and w, the sign of the bitangent: cross(normal, xyz) w
        points where v falls, to the top of the texture, as glTF wants it. Where the texture coordinates
        are degenerate, any direction in the plane.
    """
    p, t = vertices.astype(np.float64)[faces], uv.astype(np.float64)[faces]
    e1, e2 = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
    d1, d2 = t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]
    area = d1[:, 0] * d2[:, 1] - d2[:, 0] * d1[:, 1]
    face_tangent = np.sign(area)[:, None] * (e1 * d2[:, 1:] - e2 * d1[:, 1:])
    n = normals.astype(np.float64)
    corner_normal = n[faces]
    flat = face_tangent[:, None] - corner_normal * (corner_normal @ face_tangent[:, :, None])
    ahead, behind = _unit(np.roll(p, -1, axis=1) - p), _unit(np.roll(p, 1, axis=1) - p)
    angle = np.arccos(np.clip((ahead * behind).sum(-1, keepdims=True), -1, 1))
    total = np.stack(
        [np.bincount(faces.ravel(), (angle * _unit(flat))[..., k].ravel(), len(n)) for k in range(3)], axis=1
    )
    total -= n * (n * total).sum(1, keepdims=True)
    axis = np.eye(3)[np.abs(n).argmin(1)]
    total = np.where(np.linalg.norm(total, axis=1, keepdims=True) > 1e-9, total, np.cross(n, axis))
    # v grows down: a chart that is not mirrored has a negative area when seen with v up
    mirrored = np.bincount(faces.ravel(), np.repeat(np.sign(area), 3), len(n)) > 0
    sign = np.where(mirrored, -1.0, 1.0)[:, None]
    return np.concatenate([_unit(total), sign], axis=1).astype(np.float32)


def tangent_space_normals(
    places: Pixels,
    points: Float[np.ndarray, "P 3"],
    faces: np.ndarray,
    normals: Float[np.ndarray, "W 3"],
    tangent: Float[np.ndarray, "W 4"],
    dense: Triangles,
) -> Float[np.ndarray, "P 3"]:
    """Normals of the dense surface at the texels, in the frame that a renderer interpolates between the vertices.

    Args:
        places: the texels.
        points: their world positions.
        faces: of the cut mesh.
        normals: of the cut mesh.
        tangent: of the cut mesh.
        dense: vertices and faces of the surface with the detail.
    """
    from scipy.spatial import cKDTree

    from psd_gs.mesh.surface import vertex_normals

    distance, near = cKDTree(dense[0]).query(points, k=min(4, len(dense[0])), workers=-1)
    distance, near = distance.reshape(len(points), -1, 1), near.reshape(len(points), -1)
    detail = vertex_normals(*dense)[near]
    detail = (detail / (distance + 1e-6)).sum(1)
    n, t = places.interpolate(normals, faces), places.interpolate(tangent, faces)
    n = _unit(n)
    t = t[:, :3] - n * (n * t[:, :3]).sum(1, keepdims=True)
    t = _unit(t)
    b = np.cross(n, t) * tangent[faces[places.faces, 0], 3:]
    local = np.stack([(detail * axis).sum(1) for axis in (t, b, n)], axis=1)
    local[:, 2] = np.maximum(local[:, 2], 0.1 * np.linalg.norm(local, axis=1))  # the dense side must face outward
    return _unit(local).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-20)


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
