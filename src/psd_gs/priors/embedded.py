"""The embedded prior over networks of this package, which are read without diffusers and transformers."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.priors.loading import explained
from psd_gs.priors.multiview import MultiViewPrior
from psd_gs.priors.unet import UNet, handles
from psd_gs.text_encoder import TextEncoder, Tokenizer
from psd_gs.weights import read_json

if TYPE_CHECKING:
    from psd_gs.priors.multiview_pipeline import MultiViewOutput, MultiViewPipeline


@dataclass
class Components:
    """What a run needs of a ``MultiViewPipeline`` in pixel space.

    Attributes:
        folder: it was read from.
        tokenizer: of the prompts.
        text_encoder: their states.
        unet: the diffusion network.
        scheduler: the levels of noise, ``alphas_cumprod``, and what the network predicts.
        config: ``views`` and ``patch``.
        vae: there is none.
    """

    folder: Path
    tokenizer: Tokenizer
    text_encoder: TextEncoder
    unet: Any
    scheduler: SimpleNamespace
    config: SimpleNamespace
    vae: None = None

    @cached_property
    def original(self) -> MultiViewPipeline:
        """The pipeline of diffusers in the same precision and place."""
        from psd_gs.priors.loading import load_pipeline
        from psd_gs.priors.multiview_pipeline import MultiViewPipeline

        return load_pipeline(MultiViewPipeline, self.folder, self.unet.dtype).to(self.unet.device)

    def set_progress_bar_config(self, **options: Any) -> None:
        """Of sampling, as diffusers has it."""
        self.original.set_progress_bar_config(**options)

    def __call__(self, *args: Any, **options: Any) -> MultiViewOutput:
        """Samples views, see :class:`~psd_gs.priors.multiview_pipeline.MultiViewPipeline`."""
        return self.original(*args, **options)


class EmbeddedPrior(MultiViewPrior):
    """A :class:`~psd_gs.priors.multiview.MultiViewPrior` that needs neither diffusers nor transformers."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, folder: str | Path, *, name: str, dtype: torch.dtype = torch.float32, **options: Any
    ) -> MultiViewPrior:
        """Load a folder that ``MultiViewPipeline.save_pretrained`` wrote, in pixel space; one whose network is beyond
        :data:`psd_gs.priors.unet.HANDLED` by diffusers.

        Raises:
            ModelError: files are missing, damaged or of another architecture.
        """
        folder = Path(folder)
        with explained(folder):
            index = read_json(folder / "model_index.json", f"{folder}: expected a pipeline with model_index.json")
            network = read_json(folder / "unet" / "config.json", f"{folder}: expected a network with config.json")
            schedule = read_json(
                folder / "scheduler" / "scheduler_config.json", f"{folder}: expected a schedule with a config"
            )
            if not handles(network):
                return MultiViewPrior.from_pretrained(folder, name=name, dtype=dtype, **options)  # type: ignore[return-value]
            parts = Components(
                folder,
                Tokenizer.from_pretrained(folder / "tokenizer"),
                TextEncoder.from_pretrained(folder / "text_encoder", dtype),
                UNet.from_pretrained(folder / "unet", network, index["views"], dtype),
                SimpleNamespace(alphas_cumprod=alphas_cumprod(schedule), config=schedule),
                SimpleNamespace(views=index["views"], patch=index.get("patch", 1)),
            )
        return cls(parts, name, **options)  # type: ignore[arg-type]

    def adaptable(self) -> Any:
        """The diffusion network as diffusers' own class, which takes LoRA weights; the prior uses it from now on."""
        if isinstance(self.denoiser, UNet):
            self.denoiser = self.pipeline.original.unet.requires_grad_(False).eval()
        return self.denoiser


def alphas_cumprod(schedule: dict[str, Any]) -> Float[Tensor, " T"]:
    """Shares of the signal's variance at all times: of given betas, or the cosine schedule (Nichol and Dhariwal,
    2102.09672, Eq. 17), in the roundings of diffusers.

    Raises:
        ValueError: another schedule.
    """
    betas, steps = schedule["trained_betas"], schedule["num_train_timesteps"]
    if betas is None:
        if schedule["beta_schedule"] != "squaredcos_cap_v2":
            raise ValueError(f"expected the schedule squaredcos_cap_v2, received {schedule['beta_schedule']}")
        level = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        betas = [min(1 - after / before, 0.999) for before, after in itertools.pairwise(level)]
    return torch.cumprod(1.0 - torch.tensor(betas, dtype=torch.float32), dim=0)
