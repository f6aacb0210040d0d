"""How much room an asset has above it while it is refined.

A cone on a cube is drawn smaller and lower than the cube alone. A prior that sees the cube fill the view has no place
for the cone, so the asset is given as much room as the prior expects of what the sentence says.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from psd_gs.cameras import joined
from psd_gs.config import Config
from psd_gs.guidance.guide import Guidance
from psd_gs.refine import Original
from psd_gs.render import render
from psd_gs.trainer import sample_background, sample_cameras

ROOMS = (0.0, 0.3, 0.6)
"""What is compared, see ``refine.room``."""

TIME = 0.9
"""Of the noise under which views are compared: what is where still shows through, and little else."""

VIEWS, NOISES = 8, 2
"""How many views at least, and noises of each."""

MARGIN = 0.1
"""By how much of the error the words have to explain the views better, for an asset to be moved at all."""


@torch.no_grad()
def expected_room(original: Original, guidance: Guidance, config: Config, device: torch.device) -> float:
    """The room of :data:`ROOMS` with which the prompt explains the asset's views best; 0 where nothing can be added.

    What the prompt explains is how much nearer the prior's estimates of noisy views come to the views with it than
    without (the classifier of Li et al. 2023, arXiv 2303.16203, over places instead of classes).

    Args:
        original: the asset, fitted without any room.
        guidance: with the prior and the prompt.
        config: of the run.
        device: of the renderer.
    """
    if config.refine.only == "colour":
        return 0.0
    prior = guidance.prior
    groups = -(-VIEWS // prior.views)
    generator = torch.Generator().manual_seed(0)
    size = config.cameras.size[0]
    cameras = joined([sample_cameras(config.cameras, prior.views, size, generator) for _ in range(groups)])
    background = sample_background(config.backgrounds, generator).to(device)
    explained, errors = [], []
    for room in ROOMS:
        asset = original.with_room(room)
        views = render(asset.fitted(asset.gaussians).to(device), cameras.to(device), background).pictures
        images = views.unflatten(0, (groups, prior.views)).to(prior.device)
        error, other = guidance.errors(images, cameras.to(prior.device), TIME, NOISES)
        explained.append(other - error)
        errors.append(error)
    best = max(range(len(ROOMS)), key=explained.__getitem__)
    return ROOMS[best] if explained[best] - explained[0] > MARGIN * errors[0] else 0.0


def framed(config: Config, original: Original, guidance: Guidance, device: torch.device) -> tuple[Config, Original]:
    """A configuration that says how much room the asset has, and the asset with it."""
    if config.refine.room is not None:
        return config, original
    room = expected_room(original, guidance, config, device)
    return replace(config, refine=replace(config.refine, room=room)), original.with_room(room)
