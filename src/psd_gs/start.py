"""The Gaussians before the first step: a ball, or what a file or another model suggests, fitted into it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from psd_gs import weights
from psd_gs.config import Config
from psd_gs.errors import InputError
from psd_gs.gaussians import Gaussians, from_points, random_ball
from psd_gs.priors.base import TextEmbedding
from psd_gs.trainer import read_tensors


def initial_gaussians(
    config: Config,
    generator: torch.Generator,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Gaussians:
    """The Gaussians before the first step: a ball, a splat file, points of a cloud or mesh, or of a Shap-E sample.

    Args:
        config: prompt and options.
        generator: source of randomness, on the CPU.
        device: where Shap-E runs.

    Raises:
        FormatError: a damaged or foreign file.
        InputError: the file cannot be opened.
    """
    init = config.init
    if init.source == "ball":
        return random_ball(init.count, init.radius, scale=init.scale, opacity=init.opacity, generator=generator)
    from psd_gs.export.fitting import fitted
    from psd_gs.export.formats import is_known
    from psd_gs.export.open import holds_gaussians, open_splats
    from psd_gs.mesh.points import RADIUS, read_points

    if init.source == "shap-e":
        points, rgb = shap_e_points(config.prompt, init.count, generator, device)
        return from_points(points, rgb, scale=init.scale, opacity=init.opacity)
    if Path(init.source).is_dir() or (is_known(init.source) and holds_gaussians(init.source)):
        return fitted(open_splats(init.source).gaussians, RADIUS)
    points, rgb = read_points(init.source, init.count, generator)
    return from_points(points, rgb, scale=init.scale, opacity=init.opacity)


def shap_e_points(prompt: str, count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Points and colours on the surface of a Shap-E sample, which is forgotten with its networks."""
    import trimesh

    from psd_gs.colours import linear_to_srgb
    from psd_gs.mesh.points import read_points
    from psd_gs.priors.shap_e import load_shap_e, text_to_mesh

    vertices, faces, linear = text_to_mesh(load_shap_e(weights.locate("shap-e"), device), prompt, generator)
    colours = (255 * linear_to_srgb(linear.numpy())).round().astype("uint8")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shap-e.ply"
        trimesh.Trimesh(vertices.numpy(), faces, vertex_colors=colours, process=False).export(file)
        return read_points(file, count, generator)


def read_negative(path: str | Path) -> TextEmbedding:
    """A negative embedding that a run saved.

    Raises:
        FormatError: another kind of file.
    """
    tensors = read_tensors(Path(path))
    if "sequence" not in tensors:
        raise InputError(
            f"{path}: expected a negative embedding (negative.safetensors of a run), received {sorted(tensors)}."
        )
    return TextEmbedding(tensors["sequence"], tensors.get("pooled"))
