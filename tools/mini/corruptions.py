"""Ways in which a picture of the right thing can still be a bad one, each with a severity in [0, 1].

``ON_OBJECT`` act on the premultiplied RGBA of a set before the background is put behind it,
``ON_PICTURE`` on the composed picture. The reward and the judge are trained on different lists
(``REWARD``, ``JUDGE``): some kinds are exclusive to each, and the shared ones differ in strength.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mini.dataset import over

Views = Float[Tensor, "V C H W"]
REFERENCE = 64
"""Lengths in pixels are those of pictures of this side, and grow with larger ones."""


def gaussian_blur(x: Views, sigma: float) -> Views:
    """Separable Gaussian blur with replicated borders; ``sigma`` in pixels of ``REFERENCE``."""
    sigma *= x.shape[-1] / REFERENCE
    radius = max(1, round(2.5 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), "replicate"), kernel[:, :, None], groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, radius, radius), "replicate"), kernel[..., None], groups=x.shape[1])


def _odd(length: float) -> int:
    """The nearest odd number, at least 3."""
    return max(3, 2 * round((length - 1) / 2) + 1)


def uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def ellipses(
    views: int, size: int, count: int, radius: tuple[float, float], generator: torch.Generator, aspect: float = 1.0
):
    """Soft masks of random ellipses ``[V, count, H, W]``; ``radius`` in fractions of the image."""
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    draw = torch.rand(4, views, count, 1, 1, generator=generator)
    cx, cy = 1.7 * draw[0] - 0.85, 1.7 * draw[1] - 0.85
    r = 2 * (radius[0] + (radius[1] - radius[0]) * draw[2])
    angle = torch.pi * draw[3]
    u = (x - cx) * angle.cos() + (y - cy) * angle.sin()
    w = (y - cy) * angle.cos() - (x - cx) * angle.sin()
    distance = ((u / (r * aspect)) ** 2 + (w * aspect / r) ** 2).sqrt()
    return torch.sigmoid((1 - distance) * 8)


def affine(x: Views, scale: float, dx: float = 0.0, dy: float = 0.0) -> Views:
    """Shrink to ``scale`` and move; shifts in fractions of the image, empty outside."""
    theta = torch.tensor([[1 / scale, 0.0, -2 * dx / scale], [0.0, 1 / scale, -2 * dy / scale]])
    grid = F.affine_grid(theta.expand(len(x), -1, -1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def layered(front: Views, back: Views) -> Views:
    return front + (1 - front[:, 3:]) * back


def displaced(x: Views, flow: Float[Tensor, "V 2 H W"], edge: str = "zeros") -> Views:
    """Every pixel of the flow from elsewhere in ``x``, by the flow in halves of the image."""
    here = F.affine_grid(torch.eye(2, 3).expand(len(x), -1, -1), list(flow.shape), align_corners=False)
    return F.grid_sample(x, here + flow.permute(0, 2, 3, 1), padding_mode=edge, align_corners=False)


# --- on the object: (rgba, other, severity, generator) -> rgba; ``other`` shows something else -----------------------


def holes(x: Views, other: Views, s: float, g: torch.Generator) -> Views:
    masks = ellipses(len(x), x.shape[-1], 2 + round(6 * s), (0.03, 0.05 + 0.1 * s), g)
    return x * (1 - masks).prod(1, keepdim=True)


def crumbs(x: Views, other: Views, s: float, g: torch.Generator) -> Views:
    """Much of the surface gone, as in a splat with too few Gaussians."""
    noise = F.interpolate(torch.rand(len(x), 1, 16, 16, generator=g), x.shape[-1:] * 2, mode="bilinear")
    return x * torch.sigmoid((noise - 0.15 - 0.45 * s) * 25)


def _debris(x: Views, s: float, g: torch.Generator, count: int, radius: tuple[float, float], aspect: float) -> Views:
    masks = ellipses(len(x), x.shape[-1], count, radius, g, aspect)
    colours = torch.rand(len(x), count, 3, 1, 1, generator=g)
    for k in range(count):
        alpha = masks[:, k : k + 1] * (0.5 + 0.5 * s)
        x = layered(torch.cat([colours[:, k] * alpha, alpha], 1), x)
    return x


def floaters(x: Views, other: Views, s: float, g: torch.Generator) -> Views:
    return _debris(x, s, g, 1 + round(9 * s), (0.015, 0.03 + 0.05 * s), 1.0)


def needles(x: Views, other: Views, s: float, g: torch.Generator) -> Views:
    """Long thin Gaussians sticking out."""
    return _debris(x, s, g, 1 + round(6 * s), (0.04, 0.07 + 0.05 * s), 2.2)


def doubled(x: Views, other: Views, s: float, g: torch.Generator) -> Views:
    """A shifted, half transparent copy."""
    angle, reach = torch.tensor(uniform(g, 0, 6.28)), 0.08 + 0.16 * uniform(g)
    copy = affine(x, uniform(g, 0.7, 1.0), reach * angle.cos().item(), reach * angle.sin().item())
    return layered(copy * (0.25 + 0.75 * s), x)


def fogged(x: Views, other: Views, s: float, g: torch.Generator) -> Views:
    return x * (1 - 0.12 - 0.83 * s)


def shrunk(x: Views, other: Views, s: float, g: torch.Generator) -> Views:
    return affine(x, 0.85 - 0.6 * s, 0.12 * s * uniform(g, -1, 1), 0.12 * s * uniform(g, -1, 1))


def cropped(x: Views, other: Views, s: float, g: torch.Generator) -> Views:
    """Too large for the picture."""
    return affine(x, 1.25 + 0.9 * s, 0.1 * uniform(g, -1, 1), 0.1 * uniform(g, -1, 1))


def empty(x: Views, other: Views, s: float, g: torch.Generator) -> Views:
    return x * max(0.0, 0.08 - 0.08 * s)


def disagreeing(x: Views, other: Views, s: float, g: torch.Generator) -> Views:
    """One view, or two, show something else; with a single view, half of it does."""
    out = x.clone()
    if len(x) == 1:
        out[..., x.shape[-1] // 2 :] = other[..., x.shape[-1] // 2 :]
        return out
    first = int(torch.randint(len(x), (), generator=g))
    out[first] = other[first]
    if s > 0.5 and len(x) > 2:
        out[(first + 1) % len(x)] = other[(first + 1) % len(x)]
    return out


def blended(x: Views, other: Views, s: float, g: torch.Generator) -> Views:
    return torch.lerp(x, other, 0.12 + 0.75 * s)


def melted(x: Views, other: Views, s: float, g: torch.Generator) -> Views:
    """A smooth random warp."""
    flow = torch.randn(len(x), 2, 5, 5, generator=g)
    flow = F.interpolate(flow, x.shape[-1:] * 2, mode="bicubic", align_corners=True)
    return displaced(x, (0.06 + 0.3 * s) * flow)


def grown(x: Views, other: Views, s: float, g: torch.Generator) -> Views:
    """Every edge bloated by fat Gaussians."""
    reach = _odd((3 if s < 0.4 else 5 if s < 0.75 else 9) * x.shape[-1] / REFERENCE)
    return F.max_pool2d(x, reach, 1, reach // 2)


# --- on the picture: (picture, severity, generator) -> picture -------------------------------------------------------


def blurred(x: Views, s: float, g: torch.Generator) -> Views:
    return gaussian_blur(x, 1.2 + 4.3 * s)


def box_blurred(x: Views, s: float, g: torch.Generator) -> Views:
    reach = _odd((2 * round(1 + 5 * s) + 1) * x.shape[-1] / REFERENCE)
    return F.avg_pool2d(F.pad(x, (reach // 2,) * 4, "replicate"), reach, 1)


def noisy(x: Views, s: float, g: torch.Generator) -> Views:
    return x + (0.03 + 0.27 * s) * torch.randn(x.shape, generator=g)


def mottled(x: Views, s: float, g: torch.Generator) -> Views:
    """Noise of low frequency, in colour."""
    noise = F.interpolate(torch.randn(len(x), 3, 12, 12, generator=g), x.shape[-1:] * 2, mode="bilinear")
    return x + (0.05 + 0.3 * s) * noise


def saturated(x: Views, s: float, g: torch.Generator) -> Views:
    """What a large guidance scale does."""
    grey = x.mean(1, keepdim=True)
    return 0.5 + (1 + 0.8 * s) * (grey + (1.4 + 2.5 * s) * (x - grey) - 0.5)


def crushed(x: Views, s: float, g: torch.Generator) -> Views:
    """Contrast without saturation."""
    return 0.5 + (1.5 + 3 * s) * (x - 0.5 - 0.15 * uniform(g, -1, 1))


def washed(x: Views, s: float, g: torch.Generator) -> Views:
    grey = x.mean(1, keepdim=True)
    pale = torch.lerp(x, grey, 0.15 + 0.75 * s)
    return torch.lerp(pale, torch.full_like(x, uniform(g, 0.5, 0.95)), 0.08 + 0.5 * s)


def tinted(x: Views, s: float, g: torch.Generator) -> Views:
    shift = torch.nn.functional.normalize(torch.randn(1, 3, 1, 1, generator=g), dim=1)
    return x + (0.08 + 0.35 * s) * shift


def dimmed(x: Views, s: float, g: torch.Generator) -> Views:
    return x * (0.75 - 0.6 * s)


def lumpy(x: Views, s: float, g: torch.Generator) -> Views:
    """Blobs of local mean colour, as a few fat Gaussians would paint."""
    cells = round(18 - 11 * s)
    coarse = F.adaptive_avg_pool2d(x, cells)
    jitter = F.interpolate(torch.randn(len(x), 2, cells, cells, generator=g), x.shape[-1:] * 2, mode="nearest")
    return displaced(coarse, (0.02 + 0.06 * s) * jitter, "border")


def pixelated(x: Views, s: float, g: torch.Generator) -> Views:
    return F.interpolate(F.adaptive_avg_pool2d(x, round(22 - 15 * s)), x.shape[-1:] * 2, mode="nearest")


ObjectCorruption = Callable[[Views, Views, float, torch.Generator], Views]
PictureCorruption = Callable[[Views, float, torch.Generator], Views]

ON_OBJECT: dict[str, ObjectCorruption] = {
    f.__name__: f
    for f in (
        holes,
        crumbs,
        floaters,
        needles,
        doubled,
        fogged,
        shrunk,
        cropped,
        empty,
        disagreeing,
        blended,
        melted,
        grown,
    )
}
ON_PICTURE: dict[str, PictureCorruption] = {
    f.__name__: f
    for f in (blurred, box_blurred, noisy, mottled, saturated, crushed, washed, tinted, dimmed, lumpy, pixelated)
}

REWARD = (
    "blurred", "noisy", "saturated", "washed", "tinted", "lumpy", "holes", "floaters", "doubled", "fogged", "shrunk",
    "empty", "disagreeing", "blended", "grown",
)  # fmt: skip
"""What the reward is trained on; ``lumpy``, ``tinted``, ``doubled`` and ``shrunk`` are its own."""

JUDGE = (
    "box_blurred", "blurred", "mottled", "noisy", "saturated", "crushed", "washed", "dimmed", "pixelated", "crumbs",
    "holes", "needles", "floaters", "fogged", "cropped", "empty", "disagreeing", "blended", "melted", "grown",
)  # fmt: skip
"""What the judge is trained on: mottling, crushing, crumbs, needles, crops, warps and pixels are its own."""


def corrupt(
    kind: str, rgba: Views, background: Float[Tensor, " 3"], other: Views, severity: float, generator: torch.Generator
) -> Float[Tensor, "V 3 H W"]:
    """A corrupted picture of the set, in [0, 1]; the same generator state gives the same draws at any severity."""
    if kind in ON_OBJECT:
        picture = over(ON_OBJECT[kind](rgba, other, severity, generator), background)
    else:
        picture = ON_PICTURE[kind](over(rgba, background), severity, generator)
    return picture.clamp(0, 1)
