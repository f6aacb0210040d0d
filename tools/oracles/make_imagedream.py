"""Answers of ImageDream's own code (bytedance/ImageDream) on a tiny network with random weights.

Run with ``--checkout FOLDER``, a copy of the repository; it needs torch, numpy and einops. Of xformers it takes one
function, which is softmax attention by definition and is written down here.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from make_mvdream import VIEWS, seeded
from shared import DATA, IMAGEDREAM_UNET, bare, filled, listing


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_bias=None, op=None) -> torch.Tensor:
    assert attn_bias is None
    return (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1) @ v


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, required=True)
    folder = parser.parse_args().checkout / "extern" / "ImageDream" / "imagedream"
    bare("imagedream", folder)
    for name in ("xformers", "xformers.ops"):
        sys.modules[name] = ModuleType(name)
    sys.modules["xformers"].ops = sys.modules["xformers.ops"]
    sys.modules["xformers.ops"].memory_efficient_attention = attention
    networks = import_module("imagedream.ldm.modules.diffusionmodules.openaimodel")
    cameras = import_module("imagedream.camera_utils")

    unet = filled(networks.MultiViewUNetModel(**IMAGEDREAM_UNET, use_spatial_transformer=True, legacy=False,
                                              use_linear_in_transformer=True, transformer_depth=1, with_ip=True,
                                              ip_mode="local_resample", use_checkpoint=False))  # fmt: skip
    frames = VIEWS + 1
    camera = cameras.normalize_camera(cameras.get_camera(VIEWS, 15, 0))
    camera = torch.cat([camera, torch.zeros(1, 16)]).repeat(2, 1)
    x = seeded(1, VIEWS, 4, 8, 8)
    slots = torch.cat([x, torch.zeros(1, 4, 8, 8)]).repeat(2, 1, 1, 1)
    text = torch.cat([seeded(i, 1, 5, IMAGEDREAM_UNET["context_dim"]).repeat(frames, 1, 1) for i in (2, 3)])
    features, latent = seeded(4, 1, 10, 1280), seeded(5, 1, 4, 8, 8)
    shown = torch.cat([features.repeat(frames, 1, 1), torch.zeros(frames, 10, 1280)])
    pictures = torch.cat([latent, torch.zeros_like(latent)])
    with torch.no_grad():
        tokens = unet.image_embed(features)
        answer = unet(slots, torch.full((2 * frames,), 803), context=text, camera=camera, num_frames=frames,
                      ip=shown, ip_img=pictures)  # fmt: skip
    out = {"keys": listing(unet.state_dict()), "cameras": camera.numpy(), "tokens": tokens.numpy()}
    np.savez_compressed(DATA / "imagedream.npz", **out, answer=answer.numpy())


if __name__ == "__main__":
    main()
