"""Answers of MVDream's own code (bytedance/MVDream) on tiny networks with random weights.

Run with ``--checkout FOLDER``, a copy of the repository; it needs torch, numpy, einops and omegaconf.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from shared import DATA, MVDREAM_UNET, MVDREAM_VAE, bare, filled, listing
from torch import nn

VIEWS = 4


def seeded(seed: int, *shape: int) -> torch.Tensor:
    return torch.as_tensor(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, required=True)
    checkout = parser.parse_args().checkout
    bare("mvdream", checkout / "mvdream")
    networks = import_module("mvdream.ldm.modules.diffusionmodules.openaimodel")
    coder = import_module("mvdream.ldm.modules.diffusionmodules.model")
    cameras = import_module("mvdream.camera_utils")
    out = {}

    unet = filled(networks.MultiViewUNetModel(**MVDREAM_UNET, use_spatial_transformer=True, legacy=False,
                                              use_linear_in_transformer=True, transformer_depth=1))  # fmt: skip
    x = seeded(1, 2 * VIEWS, 4, 8, 8).requires_grad_()
    text = seeded(2, 2 * VIEWS, 5, MVDREAM_UNET["context_dim"])
    times = torch.tensor([37] * VIEWS + [803] * VIEWS)
    sets = [cameras.get_camera(VIEWS, elevation, start) for elevation, start in ((15, 0), (30, 90))]
    camera = torch.cat([cameras.normalize_camera(each) for each in sets])
    answer = unet(x, times, context=text, camera=camera, num_frames=VIEWS)
    (gradient,) = torch.autograd.grad(answer.square().sum(), x)
    with torch.no_grad():
        alone = unet(x, times, context=text, camera=camera, num_frames=1)
    out |= {"unet_keys": listing(unet.state_dict()), "unet": answer.detach().numpy(), "gradient": gradient.numpy()}
    out |= {"alone": alone.numpy(), "cameras": camera.numpy()}

    encoder = filled(nn.ModuleDict({"encoder": coder.Encoder(**MVDREAM_VAE), "decoder": coder.Decoder(**MVDREAM_VAE)}))
    with torch.no_grad():
        out["vae_encoded"] = encoder["encoder"](seeded(3, 1, 3, 16, 16)).numpy()
        out["vae_decoded"] = encoder["decoder"](seeded(4, 1, 4, 8, 8)).numpy()
    out["vae_keys"] = listing(encoder.state_dict())
    DATA.mkdir(exist_ok=True)
    np.savez_compressed(DATA / "mvdream.npz", **out)


if __name__ == "__main__":
    main()
