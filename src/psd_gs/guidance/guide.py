"""One guidance step: from rendered views to a loss whose gradient moves them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.errors import ConfigError, InputError
from psd_gs.guidance.base_scores import METHODS, WEIGHTINGS, Prediction, score_loss
from psd_gs.guidance.config import GuidanceConfig
from psd_gs.guidance.negative import NegativeEmbedding, pull_loss
from psd_gs.guidance.preference import PSD, Verdict, group_norm, judge, take
from psd_gs.guidance.prompts import directed, direction_index
from psd_gs.guidance.timesteps import SCHEDULES
from psd_gs.priors.base import Prior, TextEmbedding
from psd_gs.rewards.base import Reward


@dataclass(frozen=True)
class GuidanceOutput:
    """What the trainer needs of a step.

    Attributes:
        loss: differentiable in the images; only its gradient means anything.
        logs: scalars, means over groups. ``t``; ``base_norm``, of the base residual in x0. Where a pair was judged:
            ``reward_win``, ``reward_lose``, ``gap``, ``kappa``, ``pair_norm`` (of the contrast of clean estimates),
            ``pair_share`` (of the weighted, guarded score relative to the base residual), ``pair_cos`` (between
            contrast and base residual), ``nan_pairs`` (so far). Where the negative embedding was refined:
            ``negative_loss``, ``negative_shift`` (norm of its change).
    """

    loss: Float[Tensor, ""]
    logs: dict[str, float]


class Guidance:
    """A base score times a preference score for one prompt, with everything that a run must remember.

    Args:
        prior: the diffusion model.
        prompt: what the asset is.
        config: options.
        reward: the judge; required by preference psd.
        negative: a refined negative embedding to start from, instead of the negative prompt's.
        seed: of the generators that are not given.
        timestep_generator: draws timesteps; on the CPU, so that schedules are decided without waiting for a device.
        noise_generator: draws noise, on any device.

    Raises:
        ConfigError: no reward for psd, or a black box where its gradient is asked for.
        InputError: a negative embedding of another prior.
    """

    def __init__(
        self,
        prior: Prior,
        prompt: str,
        config: GuidanceConfig | None = None,
        *,
        reward: Reward | None = None,
        negative: TextEmbedding | None = None,
        seed: int = 0,
        timestep_generator: torch.Generator | None = None,
        noise_generator: torch.Generator | None = None,
    ) -> None:
        config = config or GuidanceConfig()
        if config.preference == "psd" and reward is None:
            raise ConfigError(
                "Guidance: expected a reward for preference psd, received none. "
                "Give a reward or set preference to none."
            )
        refinement = config.negative if config.preference == "psd" else replace(config.negative, mode="off")
        if refinement.mode == "reward" and reward is not None and not reward.differentiable:
            raise ConfigError(
                "NegativeConfig.mode: expected a differentiable reward for mode reward, received the black box "
                f"{reward.name}. Set the mode to pull, which needs no gradient of the reward."
            )
        self.prior, self.reward, self.prompt, self.config = prior, reward, prompt, config
        seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
        self.timestep_generator = timestep_generator or torch.Generator().manual_seed(seeds[0])
        self.noise_generator = noise_generator or torch.Generator().manual_seed(seeds[1])
        with torch.no_grad():
            self._directed = config.view_prompts and prior.views == 1
            self.text = prior.embed(directed(prompt) if self._directed else [prompt])
            initial = prior.embed([config.negative_prompt])
        if negative is not None and negative.sequence.shape != initial.sequence.shape:
            raise InputError(
                f"negative embedding: expected shape {tuple(initial.sequence.shape)} for prior {prior.name}, "
                f"received {tuple(negative.sequence.shape)}. Use one that a run with the same prior saved."
            )
        self.negative = NegativeEmbedding(negative.to(prior.device) if negative else initial, refinement)
        self.psd = PSD(config.psd, prior.device)

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
        images, cameras = self._fit(images, cameras)
        x0 = self.prior.encode(images)
        u = torch.rand(len(images), generator=self.timestep_generator)
        t = SCHEDULES[self.config.timesteps.schedule](progress, u, self.config.timesteps)
        speaks = self.psd.acts(progress, step, t) & (self.config.preference == "psd")
        logs: dict[str, Tensor] = {}

        with torch.no_grad():
            # One noise is enough where nothing is compared.
            prediction = self._predict(x0.detach(), t, self.config.psd.n_noises if speaks.any() else 1, cameras)
            score, auto = METHODS[self.config.method]
            residuals = score(prediction, self.config)
            residual = residuals.mean(0)
            logs["base_norm"] = group_norm(residual).mean()
            if speaks.any():
                groups = speaks.nonzero().squeeze(1)
                pair = prediction[groups]
                verdict = self._judge(pair, residuals[:, groups], self._select(cameras, groups))
                residual = residual.index_add(0, groups.to(residual.device), verdict.score)
                logs |= verdict.logs
                due = self.negative.due(progress, step, t[groups]).nonzero().squeeze(1)
                if len(due):
                    judged, where = verdict[due], self._select(cameras, groups[due])
                    logs |= self._refine(pair[due], judged, t[groups[due]], where, step)
            weighting = auto if self.config.weighting == "auto" else self.config.weighting
            weight = WEIGHTINGS[weighting](*self.prior.alpha_sigma(t.to(x0.device)))
            gradient = torch.nan_to_num(weight * residual, nan=0.0, posinf=0.0, neginf=0.0)
        return GuidanceOutput(score_loss(x0, gradient), {"t": float(t.mean()), **_to_floats(logs)})

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

    def _text(self, cameras: Cameras) -> TextEmbedding:
        """One row for all views, or the row of each view's direction."""
        return self.text[direction_index(cameras).to(self.text.sequence.device)] if self._directed else self.text

    def _predict(self, x0: Tensor, t: Tensor, n_noises: int, cameras: Cameras) -> Prediction:
        """Both guidance branches under every noise, in one call: noises are stacked along the groups."""
        noise = sample_noise(x0, n_noises, self.config.psd.antithetic, self.noise_generator)
        times = t.to(x0.device).repeat(n_noises)
        stacked = _repeat(cameras, n_noises)
        x_t = self.prior.add_noise(x0.repeat(n_noises, 1, 1, 1, 1), noise.flatten(0, 1), times)
        cond, neg = self.prior.predict(x_t, times, self._text(stacked), self.negative.embedding, stacked)
        return Prediction(x0, *(x.view(noise.shape) for x in (x_t, cond, neg)))

    def _judge(self, pair: Prediction, residuals: Tensor, cameras: Cameras) -> Verdict:
        """Decode, score and contrast the same clean estimates."""
        assert self.reward is not None
        estimates = pair.guided(self.config.psd.pair_scale)
        images = self.prior.decode(estimates.flatten(0, 1))
        rewards = judge(self.reward, images, self.prompt, _repeat(cameras, len(estimates)), self.config.psd)
        rewards = rewards.to(estimates)  # half-precision gaps would vanish when squared
        return self.psd(estimates, rewards.unflatten(0, estimates.shape[:2]), residuals)

    @torch.enable_grad()
    def _refine(self, pair: Prediction, verdict: Verdict, t: Tensor, cameras: Cameras, step: int) -> dict[str, Tensor]:
        """One update of the negative embedding from a judged pair; its noises and conditional branch are reused."""
        assert self.reward is not None
        pull, scale = self.config.negative.mode == "pull", self.config.psd.pair_scale
        moved = verdict.worst if pull else verdict.best
        x_t, cond = take(pair.x_t, moved), take(pair.cond, moved)
        _, neg = self.prior.predict(x_t, t.to(x_t.device), self._text(cameras), self.negative.watched(), cameras)
        estimate = neg + scale * (cond - neg)
        if pull:
            loss = pull_loss(estimate, take(pair.guided(scale), verdict.best))
        else:
            loss = -judge(self.reward, self.prior.decode(estimate), self.prompt, cameras, self.config.psd).mean()
        self.negative.descend(loss, step)
        return {"negative_loss": loss.detach(), "negative_shift": self.negative.delta.norm()}

    def _select(self, cameras: Cameras, groups: Tensor) -> Cameras:
        """The cameras of the given groups."""
        views = self.prior.views
        return cameras[(groups[:, None] * views + torch.arange(views)).flatten()]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on besides the render: flat, tensors only, copies."""
        parts = {"psd": self.psd.state_dict(), "negative": self.negative.state_dict()}
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
        for name, part in (("psd", self.psd), ("negative", self.negative)):
            part.load_state_dict({k.split(".", 1)[1]: v for k, v in state.items() if k.startswith(f"{name}.")})


def sample_noise(
    like: Float[Tensor, "G V C h w"], n: int, antithetic: bool, generator: torch.Generator
) -> Float[Tensor, "N G V C h w"]:
    """``n`` standard normal draws in the shape of ``like``; antithetic: the second half negates the first."""
    drawn = (n + 1) // 2 if antithetic else n
    noise = torch.randn(drawn, *like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    noise = noise.to(like.device)
    return torch.cat([noise, -noise])[:n] if antithetic else noise


def _repeat(cameras: Cameras, n: int) -> Cameras:
    """All cameras, ``n`` times over."""
    return replace(cameras, viewmats=cameras.viewmats.repeat(n, 1, 1), Ks=cameras.Ks.repeat(n, 1, 1))


def _to_floats(logs: dict[str, Tensor]) -> dict[str, float]:
    """All scalars in one transfer."""
    return dict(zip(logs, torch.stack([value.float() for value in logs.values()]).tolist(), strict=True))
