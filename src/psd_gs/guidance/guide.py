"""One guidance step: from rendered views to a loss whose gradient moves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.config.guidance import GuidanceConfig
from psd_gs.entries import PREFERENCES
from psd_gs.errors import ConfigError, InputError
from psd_gs.guidance.base_scores import WEIGHTINGS, base_score, score_loss
from psd_gs.guidance.denoiser import Denoiser
from psd_gs.guidance.negative import NegativeEmbedding
from psd_gs.guidance.perp_neg import prompts_of_views
from psd_gs.guidance.preference import Preference, Setup, Step, Views, group_norm, preference_class, sample_noise
from psd_gs.guidance.prompts import directed, direction_index
from psd_gs.guidance.timesteps import SCHEDULES
from psd_gs.guidance.vsd import Lora
from psd_gs.priors.base import PicturedPrior, Prior, TextEmbedding
from psd_gs.resize import resized
from psd_gs.rewards.base import Reward


@dataclass(frozen=True)
class GuidanceOutput:
    """What the trainer needs of a step.

    Attributes:
        loss: differentiable in the images; only its gradient means anything.
        logs: scalars, means over groups. ``t``; ``base_norm``, of the base residual in x0; ``lora_loss``, where a copy
            of the prior is trained; where groups were judged, what the preference score has to say.
        elements: numbers in the clean latent of one view, over which the loss sums.
    """

    loss: Float[Tensor, ""]
    logs: dict[str, float]
    elements: int


class Guidance:
    """A base score times a preference score for one prompt, with everything that a run must remember.

    Args:
        prior: the diffusion model.
        prompt: what the asset is.
        config: options.
        reward: the judge, which most preferences require; several of them where the preference lets them vote.
        negative: a refined negative embedding to start from, instead of the negative prompt's.
        picture: of the thing, sRGB over white, for a prior that looks at one.
        seed: of the generators that are not given, and of the copy of the prior where one is trained.
        timestep_generator: draws timesteps; on the CPU, so that schedules are decided without waiting for a device.
        noise_generator: draws noise, on any device.

    Raises:
        ConfigError: options that do not go together, no reward for a preference, or a black box where its gradient
            is asked for.
        InputError: a negative embedding of another prior.
    """

    def __init__(
        self,
        prior: Prior,
        prompt: str,
        config: GuidanceConfig | None = None,
        *,
        reward: Reward | Sequence[Reward] | None = None,
        negative: TextEmbedding | None = None,
        picture: Float[Tensor, "3 H W"] | None = None,
        seed: int = 0,
        timestep_generator: torch.Generator | None = None,
        noise_generator: torch.Generator | None = None,
    ) -> None:
        config = config or GuidanceConfig()
        rewards = list(reward) if isinstance(reward, Sequence) else [reward] if reward is not None else []
        check_combination(config)
        if config.perp_neg and prior.views > 1:
            raise ConfigError(
                f"GuidanceConfig.perp_neg: expected a single-view prior, received {prior.name} with {prior.views} "
                "views, which sees the cameras themselves. Leave perp_neg out."
            )
        self.prior, self.prompt, self.config = prior, prompt, config
        self.base = base_score(config.method)
        seeds = torch.randint(2**62, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
        self.timestep_generator = timestep_generator or torch.Generator().manual_seed(seeds[0])
        self.noise_generator = noise_generator or torch.Generator().manual_seed(seeds[1])
        with torch.no_grad():
            self._directed = config.view_prompts and prior.views == 1
            self.text = prior.embed(directed(prompt) if self._directed else [prompt])
            if picture is not None:
                self.text = cast(PicturedPrior, prior).with_picture(self.text, picture)
            self.null = prior.embed([""])
            initial = prior.embed([config.negative_prompt]) if config.negative_prompt else self.null
        if self.base.wants_negative and negative is None and not config.negative_prompt:
            raise ConfigError(
                f"method {config.method}: expected a negative prompt, without which its denoising direction is 0, "
                'received none. Give one that describes poor quality, such as "blurry, low quality, distorted".'
            )
        if negative is not None and negative.sequence.shape != initial.sequence.shape:
            raise InputError(
                f"negative embedding: expected shape {tuple(initial.sequence.shape)} for prior {prior.name}, "
                f"received {tuple(negative.sequence.shape)}. Use one that a run with the same prior saved."
            )
        copying = torch.Generator().manual_seed(seeds[2])
        self.lora: Lora | None = self.base.lora(prior, config, copying) if self.base.lora else None
        setup = Setup(prior, rewards, prompt, config, negative.to(prior.device) if negative else initial)
        with PREFERENCES.explained(config.preference):
            self.preference: Preference = preference_class(config.preference)(setup)

    @property
    def negative(self) -> NegativeEmbedding:
        """The embedding of the negative prompt, as refined as it is."""
        return self.preference.negative

    def __call__(
        self, images: Float[Tensor, "G V 3 H W"], cameras: Cameras, progress: float, step: int
    ) -> GuidanceOutput:
        """Loss of one optimization step; updates the running state and, when due, the negative embedding.

        Args:
            images: rendered views over their background, sRGB in [0, 1], with gradient.
            cameras: G*V cameras, the views of a group adjacent.
            progress: position in the run, 0 to 1.
            step: number of the step, for cadences.

        Raises:
            InputError: the number of views or cameras does not fit the prior.
        """
        config = self.config
        renders, cameras = self._fit(images, cameras)
        with torch.set_grad_enabled(config.space == "latent"):
            x0 = self.prior.encode(renders)
        u = torch.rand(len(renders), generator=self.timestep_generator)
        t = SCHEDULES[config.timesteps.schedule](progress, u, config.timesteps)
        judged = self.preference.acts(progress, step, t)
        denoiser = self._denoiser(t, cameras, progress)
        logs: dict[str, Tensor] = {}

        with torch.no_grad():
            latents = x0.detach()
            noise = self._noise(latents, bool(judged.any()), cameras)
            invert = self.base.invert
            prediction = invert(latents, noise[:1], denoiser, config) if invert else denoiser.noised(latents, noise)
            residuals = self.base.residual(prediction, denoiser, config)
            residual = residuals.mean(0)
            logs["base_norm"] = group_norm(residual).mean()
            if judged.any():
                groups = judged.nonzero().squeeze(1)
                noised = None if invert else prediction[groups]
                score, said = self.preference.residual(
                    Step(step, latents[groups], noise[:, groups], residuals[:, groups], denoiser[groups], noised)
                )
                if score is not None:
                    residual = residual.index_add(0, groups.to(residual.device), score)
                logs |= said
            weighting = self.base.weighting if config.weighting == "auto" else config.weighting
            weight = WEIGHTINGS[weighting](*denoiser.levels(t))
            if self.lora:
                logs["lora_loss"] = self.lora.train(denoiser, latents)
            gradient = torch.nan_to_num(weight * residual, nan=0.0, posinf=0.0, neginf=0.0)
        if config.space == "latent":
            loss = score_loss(x0, gradient)
        else:
            with torch.no_grad():
                picture = self.prior.decode(x0 - gradient)
            loss = score_loss(renders, renders.detach() - picture)
        if judged.any():
            loss, said = self.preference.loss(Views(images, renders, loss, prediction, denoiser, judged))
            logs |= said
        return GuidanceOutput(loss, {"t": float(t.mean()), **_to_floats(logs)}, x0[0, 0].numel())

    @torch.no_grad()
    def errors(
        self, images: Float[Tensor, "G V 3 H W"], cameras: Cameras, t: float, noises: int
    ) -> tuple[float, float]:
        """Mean squared error of the clean estimates of noisy views, under the prompt and under the empty one.

        Args:
            images: views over their background, sRGB in [0, 1].
            cameras: G*V cameras, the views of a group adjacent.
            t: time of the noise, 0 to 1.
            noises: draws for each group; the same ones in every call.
        """
        renders, cameras = self._fit(images, cameras)
        x0 = self.prior.encode(renders)
        noise = sample_noise(x0, noises, False, torch.Generator().manual_seed(0))
        denoiser = replace(self._denoiser(torch.full((len(x0),), t), cameras, 0.0), negative=self.null)
        errors = torch.zeros(2, device=x0.device)
        for group in torch.arange(len(x0)).split(1):  # one at a time: no more memory than a step takes
            prediction = denoiser[group].noised(x0[group], noise[:, group])
            errors += torch.stack([(x - x0[group]).square().mean() for x in (prediction.cond, prediction.neg)])
        prompt, empty = (errors / len(x0)).tolist()
        return prompt, empty

    def _fit(self, images: Tensor, cameras: Cameras) -> tuple[Tensor, Cameras]:
        """Check the number of views and bring the images to the prior's size."""
        groups, views, _, height, width = images.shape
        if views != self.prior.views or len(cameras) != groups * views:
            raise InputError(
                f"expected groups of {self.prior.views} views for prior {self.prior.name} and one camera per view, "
                f"received {groups} groups of {views} views and {len(cameras)} cameras. "
                "Render the camera sets that the prior asks for."
            )
        size = self.prior.image_size
        if (height, width) == (size, size):
            return images, cameras
        fitted = resized(images.flatten(0, 1), size, size).unflatten(0, (groups, views))
        return fitted, cameras.resized(size, size)

    def _noise(self, x0: Tensor, compared: bool, cameras: Cameras) -> Tensor:
        """One noise is enough where nothing is compared."""
        if compared:
            return self.preference.noises(x0, cameras, self.noise_generator)
        return sample_noise(x0, 1, False, self.noise_generator)

    def _denoiser(self, t: Tensor, cameras: Cameras, progress: float) -> Denoiser:
        """The prior with this step's times and cameras; each view's own prompt where the prior sees no cameras."""
        text, perp = self.text, None
        if self.config.perp_neg:
            text, perp = prompts_of_views(self.text, cameras)
        elif self._directed:
            text = self.text[direction_index(cameras).to(self.text.sequence.device)]
        negative, generator = self.negative.embedding, self.timestep_generator
        return Denoiser(self.prior, t, cameras, text, negative, self.null, progress, generator, perp, self.lora)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on besides the render: flat, tensors only, copies."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {
            "timestep_generator": self.timestep_generator.get_state(),
            "noise_generator": self.noise_generator.get_state(),
            **{f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()},
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            InputError: the state lacks an entry or has one too many.
        """
        difference = sorted(state.keys() ^ self.state_dict().keys())
        if difference:
            raise InputError(
                f"guidance state: expected the entries of this version, received a difference in "
                f"{', '.join(difference)}. Resume with the version that wrote the checkpoint."
            )
        self.timestep_generator.set_state(state["timestep_generator"].cpu())
        self.noise_generator.set_state(state["noise_generator"].cpu())
        for name, part in self._parts().items():
            part.load_state_dict({k.split(".", 1)[1]: v for k, v in state.items() if k.startswith(f"{name}.")})

    def _parts(self) -> dict[str, Preference | NegativeEmbedding | Lora]:
        """What holds state, by name."""
        parts: dict[str, Preference | NegativeEmbedding | Lora] = {
            self.config.preference: self.preference,
            "negative": self.negative,
        }
        return parts | ({"lora": self.lora} if self.lora else {})


def check_combination(config: GuidanceConfig) -> None:
    """Refuse options that do not go together, whatever the prior and the reward.

    Raises:
        ConfigError: with the reason.
    """
    preference_class(config.preference).check(config)
    if config.perp_neg and not config.view_prompts:
        raise ConfigError(
            "GuidanceConfig.perp_neg: expected view_prompts too, for it removes one view's prompt from another's, "
            "received view_prompts: false. Set it to true or leave perp_neg out."
        )


def _to_floats(logs: dict[str, Tensor]) -> dict[str, float]:
    """All scalars in one transfer."""
    return dict(zip(logs, torch.stack([value.float() for value in logs.values()]).tolist(), strict=True))
