"""A prior and a reward that know the true object: what score distillation makes of them can be measured exactly.

The data of the prompt are the object's views over the background of the render, plus noise. The mean of the clean
picture given the noisy one is then known in closed form, so that every run at the real size of a published prior is a
measurement of the loop alone: start, rates, growth, resolution, guidance. :class:`Flaws` takes the prior's knowledge
away again: what it answers is blurred with the noise level, sometimes of another pose, and off by a colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from mini.dataset import over
from mini.names import read_table
from mini.pack import read_mesh
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

from psd_gs.cameras import Cameras
from psd_gs.colours import linear_to_srgb, srgb_to_linear
from psd_gs.mesh.points import RADIUS
from psd_gs.mesh.raster import located, project, rasterize
from psd_gs.mesh.read import read_scene
from psd_gs.mesh.scene import Part
from psd_gs.priors.base import TextEmbedding
from psd_gs.priors.mvdream import scheduler
from psd_gs.trainer import sample_background

LIGHT = np.array([0.4, 0.8, 0.45], np.float32)
"""Where it comes from. Published priors paint light into colour, and a single colour without it shows no shape."""
CLEAN_STD, OTHER_STD = 0.05, 0.1
"""Of the noise on the data of the prompt and of the negative prompt, latent units. With these the two noise estimates
differ by 3 to 6 % at small times; the embedded prior's differ by about as much."""
NAMED, OTHER = 1.0, 0.1
"""Every number of the embedding of a text that names the object, and of one that does not."""
MAX_BLUR = 12.0
"""Pixels of 256."""


# --- the object ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Target:
    """A mesh in the world frame, lit once and for all.

    Attributes:
        name: for tables.
        parts: of the mesh, one after the other in ``faces``.
    """

    name: str
    parts: list[Part] = field(repr=False)

    @cached_property
    def vertices(self) -> Float[np.ndarray, "V 3"]:
        """Around the origin, in a ball of the radius that points of a file are fitted into."""
        points = np.concatenate([part.positions for part in self.parts]).astype(np.float32)
        points = points - (points.min(0) + points.max(0)) / 2
        return points * (RADIUS / np.linalg.norm(points, axis=1).max())

    @cached_property
    def faces(self) -> Int[np.ndarray, "F 3"]:
        counts = np.cumsum([0, *(len(part.positions) for part in self.parts)])
        return np.concatenate([part.faces + first for part, first in zip(self.parts, counts[:-1], strict=True)])

    @cached_property
    def _light(self) -> Float[np.ndarray, " F"]:
        """Half-Lambert (Valve), so that nothing is black; sheets are lit from both sides alike."""
        a, b, c = self.vertices[self.faces].transpose(1, 0, 2)
        normal = np.cross(b - a, c - a)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-20)
        return 0.55 + 0.45 * (0.5 + 0.5 * normal @ (LIGHT / np.linalg.norm(LIGHT)))

    @cached_property
    def _first(self) -> Int[np.ndarray, " P"]:
        return np.cumsum([0, *(len(part.faces) for part in self.parts)])

    @cached_property
    def _flat(self) -> Float[np.ndarray, "F 3"] | None:
        """sRGB of every face, where no part has more than one colour a face."""
        if any(p.material.texture or p.material.emission_texture or p.colors is not None for p in self.parts):
            return None
        faces = np.arange(len(self.faces))
        return self._shade(faces, np.full((len(faces), 3), 1 / 3, np.float32))

    def _shade(self, face: Int[np.ndarray, " P"], weights: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 3"]:
        out = np.zeros((len(face), 3), np.float32)
        owner = np.searchsorted(self._first, face, side="right") - 1
        for i in np.unique(owner):
            mine = owner == i
            linear = self.parts[i].shade(face[mine] - self._first[i], weights[mine])[:, :3]
            out[mine] = linear_to_srgb(linear) * self._light[face[mine], None]
        return out

    def views(self, cameras: Cameras) -> Float[Tensor, "C 4 H W"]:
        """Premultiplied sRGB and alpha, four samples per pixel; of equal cameras once, and the last ones are kept."""
        matrices = torch.cat([cameras.viewmats.flatten(1), cameras.Ks.flatten(1)], 1)
        key = (cameras.width, cameras.height, matrices.numpy().tobytes())
        if key not in self._kept:
            rows, index = matrices.unique(dim=0, return_inverse=True)
            first = torch.stack([(index == i).nonzero()[0, 0] for i in range(len(rows))])
            self._kept.clear()
            self._kept[key] = self._draw(cameras[first])[index]
        return self._kept[key]

    @cached_property
    def _kept(self) -> dict[tuple[int, int, bytes], Float[Tensor, "C 4 H W"]]:
        return {}

    def _draw(self, cameras: Cameras) -> Float[Tensor, "C 4 H W"]:
        height, width = 2 * cameras.height, 2 * cameras.width
        flat = project(self.vertices, cameras.resized(width, height))
        ids, _ = rasterize(flat, self.faces, height, width)
        out = np.zeros((len(cameras), height, width, 4), np.float32)
        for c in range(len(cameras)):
            if self._flat is not None:
                rows, columns = np.nonzero(ids[c] >= 0)
                colours = self._flat[ids[c, rows, columns]]
            else:
                pixels = located(ids[c], flat[c], self.faces)
                rows, columns, colours = pixels.rows, pixels.columns, self._shade(pixels.faces, pixels.weights)
            out[c, rows, columns, :3] = colours
            out[c, rows, columns, 3] = 1
        return avg_pool2d(torch.from_numpy(out).permute(0, 3, 1, 2), 2)


def read_target(where: str) -> Target:
    """A mesh file, or ``PACK:ID``: an asset of a folder of kits (``meshes-*.npz`` and ``assets.tsv``)."""
    folder, _, asset = where.rpartition(":")
    if not folder or not Path(folder).is_dir():
        return Target(Path(where).stem, read_scene(where).meshes)
    vertices, triangles, colours = read_mesh(Path(folder), asset)
    linear = srgb_to_linear(colours.astype(np.float64) / 255)
    rgba = np.concatenate([linear, np.ones((len(linear), 1))], 1)
    part = Part(asset, vertices.astype(np.float64) / 32767, triangles.astype(np.int64), face_colors=rgba)
    rows = read_table(Path(folder) / "assets.tsv")
    return Target(next((row["caption"] for row in rows if row["id"] == asset), asset), [part])


# --- the prior -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flaws:
    """What the prior does not know.

    Attributes:
        blur: standard deviation of a blur in pixels of 256, times sigma / alpha and at most :data:`MAX_BLUR`: an
            average over all objects that the noisy picture may show. The negative prompt's is twice as wide, so that
            guidance exaggerates what the prompt adds.
        janus: how often a view is that of the opposite side.
        tint: by how much red is too strong and blue too weak.
    """

    blur: float = 0.0
    janus: float = 0.0
    tint: float = 0.0


class OraclePrior:
    """Implements :class:`~psd_gs.priors.base.Prior` with MVDream's shapes and noise levels.

    It sees the background of each step by drawing it as the trainer does, from a generator of the same seed:
    :meth:`encode` begins a step.

    Args:
        target: the true object.
        views: 4, or 1 for a single-view prior.
        image_size: pixels.
        latent: encode by 8x downsampling (means) and decode by upsampling (bicubic), as fixed as an autoencoder.
        flaws: none is the exact posterior mean.
        backgrounds: the run's option.
        seed: of the run's backgrounds (``stream_seeds(seed)["background"]``).
    """

    name = "oracle"
    device = torch.device("cpu")

    def __init__(
        self,
        target: Target,
        *,
        views: int = 4,
        image_size: int = 256,
        latent: bool = False,
        flaws: Flaws | None = None,
        backgrounds: str = "augment",
        seed: int = 0,
    ) -> None:
        self.target, self.views, self.image_size, self.latent = target, views, image_size, latent
        self.flaws, self.backgrounds = flaws or Flaws(), backgrounds
        self.family = "mvdream" if views > 1 else "sd"
        self.alphas = scheduler().alphas_cumprod
        self.generator = torch.Generator().manual_seed(seed)
        self.step = 0
        self.background = torch.ones(3)

    def skip(self, steps: int) -> None:
        """Go on where a run that has done so many steps was left."""
        while self.step < steps:
            self._begin()

    def _begin(self) -> None:
        self.background = sample_background(self.backgrounds, self.generator)
        self.step += 1

    # --- the protocol ---

    def embed(self, prompts: list[str]) -> TextEmbedding:
        """Two kinds of text: those that name the object, and all others."""
        return TextEmbedding(torch.stack([torch.full((2, 3), NAMED if self._names(p) else OTHER) for p in prompts]))

    def _names(self, prompt: str) -> bool:
        return self.target.name in prompt

    def encode(self, images: Float[Tensor, "G V 3 H W"]) -> Float[Tensor, "G V 3 h w"]:
        self._begin()
        return self._latents(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def decode(self, x0: Float[Tensor, "G V 3 h w"]) -> Float[Tensor, "G V 3 H W"]:
        flat = x0.flatten(0, 1)
        if self.latent:
            flat = interpolate(flat, scale_factor=8, mode="bicubic", align_corners=False)
        return (0.5 * flat + 0.5).clamp(0, 1).unflatten(0, x0.shape[:2])

    def _latents(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        return 2 * (avg_pool2d(images, 8) if self.latent else images) - 1

    def alpha_sigma(self, t: Float[Tensor, " G"]) -> tuple[Float[Tensor, "G 1 1 1 1"], Float[Tensor, "G 1 1 1 1"]]:
        last = len(self.alphas) - 1
        a = self.alphas[(t * last).round().long().clamp(0, last)].view(-1, 1, 1, 1, 1)
        return a.sqrt(), (1 - a).sqrt()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Float[Tensor, " G"]) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        return alpha * x0 + sigma * noise

    def predict(
        self, x_t: Tensor, t: Float[Tensor, " G"], text: TextEmbedding, negative: TextEmbedding, cameras: Cameras
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha_sigma(t)
        views = self._seen(cameras)
        blur = (self.flaws.blur * self.image_size / 256 * sigma / alpha).flatten()
        limit = MAX_BLUR * self.image_size / 256

        def answer(text: TextEmbedding) -> Tensor:
            named = bool(text.sequence.mean() > (NAMED + OTHER) / 2)
            widths = (blur if named else 2 * blur).clamp_max(limit).tolist()
            mean = self._latents(over(torch.cat([blurred(v, w) for v, w in zip(views, widths, strict=True)]), shade))
            mean = mean.unflatten(0, x_t.shape[:2])
            if named:
                return posterior_mean(x_t, mean, CLEAN_STD, alpha, sigma)
            lighter = text.sequence.mean() - OTHER  # by what a refined negative embedding has learnt
            return posterior_mean(x_t, mean + lighter, OTHER_STD, alpha, sigma)

        shade = self.background
        cond = answer(text)
        return cond, cond if negative is text else answer(negative)

    def _seen(self, cameras: Cameras) -> Float[Tensor, "G V 4 H W"]:
        """The object's views, as the flaws let them be: all noises of a step see the same ones."""
        draws = torch.rand(self.views, generator=torch.Generator().manual_seed(self.step))
        turned = (draws < self.flaws.janus).repeat(len(cameras) // self.views)
        half = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))  # about +Y
        viewmats = torch.where(turned[:, None, None], cameras.viewmats @ half, cameras.viewmats)
        views = self.target.views(Cameras(viewmats, cameras.Ks, cameras.width, cameras.height))
        tint = torch.tensor([self.flaws.tint, 0.0, -self.flaws.tint])[:, None, None]
        coloured = (views[:, :3] + tint * views[:, 3:]).clamp_min(0).minimum(views[:, 3:])
        return torch.cat([coloured, views[:, 3:]], 1).unflatten(0, (-1, self.views))


def posterior_mean(x_t: Tensor, mean: Tensor, std: float, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x_t] where x0 is normal around ``mean`` and ``x_t = alpha x0 + sigma noise``."""
    return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x_t - alpha * mean)


def blurred(images: Float[Tensor, "B C H W"], width: float) -> Float[Tensor, "B C H W"]:
    """By a Gaussian of this standard deviation in pixels; nothing lies outside the picture."""
    if width < 0.2:
        return images
    reach = math.ceil(2.5 * width)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / width) ** 2)
    line = (line / line.sum()).expand(images.shape[1], 1, -1)
    groups = images.shape[1]
    images = conv2d(pad(images, (reach, reach, 0, 0)), line[:, :, None, :], groups=groups)
    return conv2d(pad(images, (0, 0, reach, reach)), line[:, :, :, None], groups=groups)


class OracleReward:
    """How near pictures are to the true views: it knows the object better than a flawed prior does.

    PSNR in units of 5 dB above 20, so that its scores are spread as those of published rewards are.

    Args:
        prior: tells the background.
        differentiable: whether gradients reach the pixels.
    """

    name = "oracle-reward"

    def __init__(self, prior: OraclePrior, differentiable: bool = True) -> None:
        self.prior, self.differentiable = prior, differentiable

    def score(
        self, images: Float[Tensor, "G V 3 H W"], prompts: list[str], cameras: Cameras | None
    ) -> Float[Tensor, "G V"]:
        assert cameras is not None
        with torch.no_grad():
            true = over(self.prior.target.views(cameras), self.prior.background).unflatten(0, images.shape[:2])
        psnr = -10 * (images - true).square().mean((2, 3, 4)).clamp_min(1e-8).log10()
        return (psnr - 20) / 5
