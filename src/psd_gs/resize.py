"""Pictures as networks want them: in another size, no brighter than white; differentiable, on every device."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def resized(
    images: Float[Tensor, "B C H W"], height: int, width: int, mode: Literal["bilinear", "bicubic"] = "bilinear"
) -> Float[Tensor, "B C h w"]:
    """Antialiased interpolation as PIL's, without rounding.

    Apple's GPUs lack its gradient (pytorch/pytorch#141287), so theirs is computed on the CPU.
    """
    if images.shape[-2:] == (height, width):
        return images
    here = images.cpu() if images.device.type == "mps" else images
    return F.interpolate(here, (height, width), mode=mode, antialias=True, align_corners=False).to(images.device)


def clamped(images: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """In [0, 1], with the gradient of what came in: a render that is brighter than white still learns that it is.

    No reward and no autoencoder has seen anything brighter. A prior without an autoencoder gets renders as they are:
    what it answers pulls at them directly.
    """
    return images.clamp(0, 1).detach() + (images - images.detach())
