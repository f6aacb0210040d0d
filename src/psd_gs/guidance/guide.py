"""One guidance step: from rendered views to a loss whose gradient moves them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras, joined
from psd_gs.errors import ConfigError, InputError
from psd_gs.guidance.base_scores import METHODS, WEIGHTINGS, rescale_guidance, score_loss
from psd_gs.guidance.config import GuidanceConfig, PSDConfig, check_combination
from psd_gs.guidance.denoiser import Denoiser, Prediction
from psd_gs.guidance.dreamdpo import DreamDPO
from psd_gs.guidance.dreamfl import judged_images, reward_loss
from psd_gs.guidance.ism import invert
from psd_gs.guidance.negative import NegativeEmbedding, pull_loss
from psd_gs.guidance.perp_neg import prompts_of_views
from psd_gs.guidance.preference import PSD, Candidates, PairPreference, Verdict, acts, group_norm, judge, take
from psd_gs.guidance.prompts import directed, direction_index
from psd_gs.guidance.rewardsds import RewardSDS, preview
from psd_gs.guidance.timesteps import SCHEDULES
from psd_gs.guidance.vsd import Lora
from psd_gs.priors.base import Prior, TextEmbedding
from psd_gs.rewards.base import Reward

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GuidanceOutput:
    """What the trainer needs of a step.

    Attributes:
        loss: differentiable in the images; only its gradient means anything.
        logs: scalars, means over groups. ``t``; ``base_norm``, of the base residual in x0. Where a pair was judged:
            ``reward_win``, ``reward_lose``, ``gap``, ``pair_norm`` (of the contrast of clean estimates); with psd
            and dreamdpo ``kappa`` (the part of the loser); with psd ``pair_share`` (of the weighted, guarded score
            relative to the base residual), ``pair_cos`` (between contrast and base residual), ``nan_pairs`` (so
            far). Where the negative embedding was refined: ``negative_loss``, ``negative_shift`` (norm of its
            change). With vsd: ``lora_loss``. Where dreamfl spoke: ``reward``, ``reward_share``.
    """

    loss: Float[Tensor, ""]
    logs: dict[str, float]


class Guidance:
    """A base score times a preference score for one prompt, with everything that a run must remember.

    Args:
        prior: the diffusion model.
        prompt: what the asset is.
        config: options.
        reward: the judge, required by all preferences but none; several of them vote in dreamdpo, the first one's
            gap counts and it decides a draw.
        negative: a refined negative embedding to start from, instead of the negative prompt's.
        seed: of the generators that are not given, and of the copy that vsd trains.
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
        seed: int = 0,
        timestep_generator: torch.Generator | None = None,
        noise_generator: torch.Generator | None = None,
    ) -> None:
        config = config or GuidanceConfig()
        judges = list(reward) if isinstance(reward, Sequence) else [reward] if reward is not None else []
        if config.preference == "dreamdpo" and config.dreamdpo.vote:
            judges = [part.reward for judge in judges for part in getattr(judge, "parts", ())] or judges
        _check(config, prior, judges)
        mode = config.negative.mode if config.preference == "psd" else "off"
        if mode == "auto":
            mode = "reward" if all(judge.differentiable for judge in judges) else "pull"
        refinement = replace(config.negative, mode=mode)
        self.prior, self.judges, self.prompt, self.config = prior, judges, prompt, config
        seeds = torch.randint(2**62, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
        self.timestep_generator = timestep_generator or torch.Generator().manual_seed(seeds[0])
        self.noise_generator = noise_generator or torch.Generator().manual_seed(seeds[1])
        with torch.no_grad():
            self._directed = config.view_prompts and prior.views == 1
            self.text = prior.embed(directed(prompt) if self._directed else [prompt])
            self.null = prior.embed([""])
            initial = prior.embed([config.negative_prompt]) if config.negative_prompt else self.null
        if config.method == "nfsd" and negative is None and not config.negative_prompt:
            raise ConfigError(
                "method nfsd: expected a negative prompt, without which its denoising direction is nothing, "
                'received none. Give one that describes poor quality, such as "blurry, low quality, distorted".'
            )
        if negative is not None and negative.sequence.shape != initial.sequence.shape:
            raise InputError(
                f"negative embedding: expected shape {tuple(initial.sequence.shape)} for prior {prior.name}, "
                f"received {tuple(negative.sequence.shape)}. Use one that a run with the same prior saved."
            )
        self.negative = NegativeEmbedding(negative.to(prior.device) if negative else initial, refinement)
        copying = torch.Generator().manual_seed(seeds[2])
        self.lora = Lora(prior, config.vsd, copying) if config.method == "vsd" else None
        self.pair: PairPreference | None = None
        if config.preference == "psd":
            black_box = next((judge.name for judge in judges if not judge.differentiable), None)
            if config.psd.turn and black_box:
                logger.warning("psd turn: %s is a black box without a gradient, so its pairs are drawn", black_box)
            self.pair = PSD(replace(config.psd, turn=0.0) if black_box else config.psd, prior.device)
        elif config.preference == "dreamdpo":
            self.pair = DreamDPO(config.dreamdpo)
        elif config.preference == "rewardsds":
            self.pair = RewardSDS(config.rewardsds)

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
        x0 = self.prior.encode(renders)
        u = torch.rand(len(renders), generator=self.timestep_generator)
        t = SCHEDULES[config.timesteps.schedule](progress, u, config.timesteps)
        speaks = self._speaks(progress, step, t)
        denoiser = self._denoiser(t, cameras, progress)
        logs: dict[str, Tensor] = {}

        with torch.no_grad():
            latents = x0.detach()
            noise = self._noise(latents, bool(speaks.any()), cameras)
            inverts = config.method == "ism"
            prediction = invert(latents, noise[:1], denoiser, config) if inverts else denoiser.noised(latents, noise)
            score, auto = METHODS[config.method]
            residuals = score(prediction, denoiser, config)
            residual = residuals.mean(0)
            logs["base_norm"] = group_norm(residual).mean()
            if self.pair and speaks.any():
                groups = speaks.nonzero().squeeze(1)
                where = denoiser[groups]
                pair = where.noised(latents[groups], noise[:, groups]) if inverts else prediction[groups]
                verdict = self._judge(pair, residuals[:, groups], where)
                residual = residual.index_add(0, groups.to(residual.device), verdict.score)
                logs |= verdict.logs
                due = self.negative.due(progress, step, t[groups]).nonzero().squeeze(1)
                if len(due):
                    logs |= self._refine(pair[due], verdict[due], where[due], step)
            weighting = auto if config.weighting == "auto" else config.weighting
            weight = WEIGHTINGS[weighting](*denoiser.levels(t))
            if self.lora:
                logs["lora_loss"] = self.lora.train(denoiser, latents)
            gradient = torch.nan_to_num(weight * residual, nan=0.0, posinf=0.0, neginf=0.0)
        loss = score_loss(x0, gradient)
        if config.preference == "dreamfl" and speaks.any():
            loss, said = self._pixel_loss(images, renders, loss, prediction, denoiser, speaks)
            logs |= said
        return GuidanceOutput(loss, {"t": float(t.mean()), **_to_floats(logs)})

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
        resized = torch.nn.functional.interpolate(
            images.flatten(0, 1), (size, size), mode="bilinear", antialias=True, align_corners=False
        )
        return resized.unflatten(0, (groups, views)), cameras.resized(size, size)

    def _speaks(self, progress: float, step: int, t: Tensor) -> Tensor:
        """Which groups the preference judges in this step."""
        if self.pair:
            return self.pair.acts(progress, step, t)
        judging = self.config.judging
        return acts(judging, progress, step, t) if judging else torch.zeros(len(t), dtype=torch.bool)

    def _noise(self, x0: Tensor, compared: bool, cameras: Cameras) -> Tensor:
        """One noise is enough where nothing is compared."""
        if not self.pair or not compared:
            return sample_noise(x0, 1, False, self.noise_generator)
        config = self.pair.config
        if not (isinstance(config, PSDConfig) and config.turn):
            return sample_noise(x0, config.n_noises, config.antithetic, self.noise_generator)
        noise = sample_noise(x0, config.n_noises // 2, config.antithetic, self.noise_generator)
        return turned(noise, self._uphill(x0, cameras), config.turn)

    @torch.enable_grad()
    def _uphill(self, x0: Tensor, cameras: Cameras) -> Tensor:
        """Gradient of the reward of the decoded ``x0``."""
        x0 = x0.clone().requires_grad_(True)
        scores = judge(self.judges[0], self.prior.decode(x0), self.prompt, cameras, self.config.psd)
        return torch.autograd.grad(scores.sum(), x0)[0]

    def _denoiser(self, t: Tensor, cameras: Cameras, progress: float) -> Denoiser:
        """The prior with this step's times and cameras; each view's own prompt where the prior sees no cameras."""
        text, perp = self.text, None
        if self.config.perp_neg:
            text, perp = prompts_of_views(self.text, cameras)
        elif self._directed:
            text = self.text[direction_index(cameras).to(self.text.sequence.device)]
        negative, generator = self.negative.embedding, self.timestep_generator
        return Denoiser(self.prior, t, cameras, text, negative, self.null, progress, generator, perp, self.lora)

    def _judge(self, pair: Prediction, residuals: Tensor, denoiser: Denoiser) -> Verdict:
        """Decode and score clean estimates of every noise, and let the preference decide."""
        assert self.pair is not None
        config = self.pair.config
        if isinstance(self.pair, RewardSDS):
            estimates = preview(pair, denoiser, config.pair_scale, self.pair.config.preview_steps)
        else:
            estimates = pair.guided(config.pair_scale)
        images = self.prior.decode(estimates.flatten(0, 1))
        cameras = joined([denoiser.cameras] * len(estimates))
        scores = [judge(reward, images, self.prompt, cameras, config) for reward in self.judges]
        # In half precision gaps would vanish when squared.
        rewards, *votes = (score.to(estimates).unflatten(0, estimates.shape[:2]) for score in scores)
        if isinstance(config, PSDConfig) and not config.keep_noise:  # a prediction of the noise, as an x0
            estimates = estimates - pair.x_t / denoiser.levels(denoiser.t)[0]
        return self.pair(Candidates(estimates, rewards, residuals, pair.x0 - pair.cond, votes))

    @torch.enable_grad()
    def _refine(self, pair: Prediction, verdict: Verdict, denoiser: Denoiser, step: int) -> dict[str, Tensor]:
        """One update of the negative embedding from a judged pair; its noises and conditional branch are reused."""
        pull, scale = self.negative.config.mode == "pull", self.config.psd.pair_scale
        moved = verdict.worst if pull else verdict.best
        x_t, cond = take(pair.x_t, moved), take(pair.cond, moved)
        watched = self.negative.watched()
        _, neg = denoiser.branches(x_t[None], denoiser.t, watched, watched)
        estimate = neg[0] + scale * (cond - neg[0])
        if pull:
            loss = pull_loss(estimate, take(pair.guided(scale), verdict.best))
        else:
            images = self.prior.decode(estimate)
            loss = -judge(self.judges[0], images, self.prompt, denoiser.cameras, self.config.psd).mean()
        self.negative.descend(loss, step)
        return {"negative_loss": loss.detach(), "negative_shift": self.negative.delta.norm()}

    def _pixel_loss(
        self, images: Tensor, renders: Tensor, loss: Tensor, prediction: Prediction, denoiser: Denoiser, speaks: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The base loss with DreamFL's reward gradient added."""
        config = self.config.dreamfl
        clean, estimates = denoiser.t <= config.estimate_t_max, None
        if clean.any():
            with torch.no_grad():
                guided = prediction.guided(self.config.guidance_scale)
                estimates = self.prior.decode(rescale_guidance(guided, prediction.cond, self.config.rescale)[0])
        seen = judged_images(renders, estimates, clean)
        scores = judge(self.judges[0], seen, self.prompt, denoiser.cameras, config)
        return reward_loss(images, loss, scores, speaks, config)

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

    def _parts(self) -> dict[str, PairPreference | NegativeEmbedding | Lora]:
        """What holds state, by name."""
        parts = {self.config.preference: self.pair, "negative": self.negative, "lora": self.lora}
        return {name: part for name, part in parts.items() if part}


def _check(config: GuidanceConfig, prior: Prior, judges: Sequence[Reward]) -> None:
    """Refuse what does not go together.

    Raises:
        ConfigError: with the reason.
    """
    check_combination(config)
    preference = config.preference
    if preference != "none" and not judges:
        raise ConfigError(
            f"Guidance: expected a reward for preference {preference}, received none. "
            "Give a reward or set preference to none."
        )
    if len(judges) > 1 and preference != "dreamdpo":
        raise ConfigError(
            f"Guidance: expected one reward for preference {preference}, received {len(judges)}: several judges vote "
            "in dreamdpo only. Combine them into one reward or choose dreamdpo."
        )
    black_box = next((judge.name for judge in judges if not judge.differentiable), None)
    if preference == "psd" and config.negative.mode == "reward" and black_box:
        raise ConfigError(
            f"NegativeConfig.mode: expected a differentiable reward for mode reward, received the black box "
            f"{black_box}. Set the mode to pull, which needs no gradient of the reward."
        )
    if preference == "dreamfl" and black_box:
        raise ConfigError(
            f"preference dreamfl: expected a differentiable reward, for its gradient moves the pixels, received the "
            f"black box {black_box}. Choose psd, dreamdpo or rewardsds, which only rank."
        )
    if config.perp_neg and prior.views > 1:
        raise ConfigError(
            f"GuidanceConfig.perp_neg: expected a single-view prior, received {prior.name} with {prior.views} views, "
            "which sees the cameras themselves. Leave perp_neg out."
        )


def sample_noise(
    like: Float[Tensor, "G V C h w"], n: int, antithetic: bool, generator: torch.Generator
) -> Float[Tensor, "N G V C h w"]:
    """``n`` standard normal draws in the shape of ``like``; antithetic: the second half negates the first."""
    drawn = (n + 1) // 2 if antithetic else n
    noise = torch.randn(drawn, *like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    noise = noise.to(like.device)
    return torch.cat([noise, -noise])[:n] if antithetic else noise


def turned(
    noise: Float[Tensor, "N G V C h w"], direction: Float[Tensor, "G V C h w"], degrees: float
) -> Float[Tensor, "2*N G V C h w"]:
    """Each noise turned toward a direction by an angle, then each turned away from it; lengths are kept.

    With the gradient g of a reward as direction, the clean estimates of such a pair differ, to first order, by the
    denoiser's Jacobian times g. That Jacobian is ``alpha / sigma^2 Cov[x0 | x_t]`` (Tweedie, second order), and
    ``Cov[x0 | x_t] g`` is how ``E[x0 | x_t]`` changes when the prior is tilted by ``exp(reward)``: the contrast of
    the pair is the preferred change that the prior believes in, without the chance of two draws. Ours.

    A group whose direction is zero or not finite keeps its noises.
    """
    flat, toward = noise.flatten(2), torch.nan_to_num(direction, nan=0.0, posinf=0.0, neginf=0.0).flatten(1)
    length = flat.norm(dim=2, keepdim=True)
    across = toward - (flat * toward).sum(2, keepdim=True) / length.square() * flat
    size = across.norm(dim=2, keepdim=True)
    across = across * (length / size.clamp_min(torch.finfo(size.dtype).tiny))
    angle = math.radians(degrees)
    pair = torch.cat([math.cos(angle) * flat + sign * math.sin(angle) * across for sign in (1, -1)])
    return torch.where(torch.cat([size, size]) > 0, pair, torch.cat([flat, flat])).view(-1, *noise.shape[1:])


def _to_floats(logs: dict[str, Tensor]) -> dict[str, float]:
    """All scalars in one transfer."""
    return dict(zip(logs, torch.stack([value.float() for value in logs.values()]).tolist(), strict=True))
