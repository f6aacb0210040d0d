"""Whether a prior, a reward or a preference score keeps its contract, for the tests of whoever writes one.

Each check raises an ``AssertionError`` that says what was expected of which method, and what was received. A model may
refuse what it cannot do by an error of :mod:`psd_gs.errors`. It runs a few dozen times, on the device where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psd_gs.cameras import Cameras, turntable
from psd_gs.config import GuidanceConfig, from_dict, to_dict
from psd_gs.entries import PREFERENCES
from psd_gs.errors import ConfigError, PsdGsError
from psd_gs.guidance.guide import Guidance, check_combination
from psd_gs.guidance.preference import preference_class
from psd_gs.priors.base import Prior, TextEmbedding
from psd_gs.rewards.base import CallableReward, FeatureReward, Reward

TIMES = (0.05, 0.3, 0.6, 0.95)
TOLERANCE = 1e-3
"""On what must be equal up to the rounding of a batched computation, relative to the largest value."""
STEPS = 3


def check_prior(prior: Prior, tolerance: float = TOLERANCE) -> None:
    """Whether a :class:`~psd_gs.priors.base.Prior` does what score distillation needs.

    Args:
        prior: to be checked, best in float32. What computes in bfloat16 rounds with the size of the batch on some
            processors (with AMX by 0.01), and needs a ``tolerance`` above that.
        tolerance: on estimates that must be equal up to rounding, relative to the largest value.

    Raises:
        AssertionError: names the method, what was expected and what was received.
    """
    says = f"prior {getattr(prior, 'name', '?')}: "
    _require(isinstance(prior.name, str) and prior.name, f"{says}name: expected a short text", prior.name)
    _require(isinstance(prior.views, int) and prior.views > 0, f"{says}views: expected 1 or more", prior.views)
    size = prior.image_size
    _require(isinstance(size, int) and size > 0, f"{says}image_size: expected pixels", size)
    _require(isinstance(prior.device, torch.device), f"{says}device: expected a torch.device", prior.device)
    text, empty = _check_embeddings(prior, says)
    images = _noise(2, prior.views, 3, size, size, seed=1).to(prior.device).sigmoid()
    x0 = _check_images(prior, says, images)
    _check_levels(prior, says, x0)
    _check_predictions(prior, says, x0, text, empty, tolerance)


def _check_embeddings(prior: Prior, says: str) -> tuple[TextEmbedding, TextEmbedding]:
    texts = prior.embed(["a red cube", ""])
    _require(isinstance(texts, TextEmbedding), f"{says}embed: expected a TextEmbedding", type(texts).__name__)
    _require(len(texts) == 2, f"{says}embed: expected one row per prompt, 2", len(texts))
    _finite(texts.sequence, f"{says}embed")
    _require(not texts.sequence.requires_grad, f"{says}embed: expected no gradients", "some")
    text, empty = texts[:1], texts[1:]
    _equal(prior.embed(["a red cube"]).sequence, text.sequence, f"{says}embed: expected the same of a prompt by itself")
    _require(not torch.equal(text.sequence, empty.sequence), f"{says}embed: expected prompts to differ", "equal rows")
    _require(
        bool(empty.sequence.norm() > 0),
        f"{says}embed: expected a nonzero embedding of the empty prompt, whose refinement is relative to its norm",
        "zeros",
    )
    return text, empty


def _check_images(prior: Prior, says: str, images: Tensor) -> Tensor:
    """``encode`` and ``decode``; returns latents."""
    images = images.requires_grad_(True)
    x0 = prior.encode(images)
    _require(
        x0.ndim == 5 and x0.shape[:2] == images.shape[:2], f"{says}encode: expected [2, V, C, h, w]", list(x0.shape)
    )
    _require(x0.dtype in (torch.float32, torch.float64), f"{says}encode: expected float32", x0.dtype)
    _finite(x0, f"{says}encode")
    _gradient(x0, images, f"{says}encode")
    _equal(prior.encode(images), x0, f"{says}encode: expected the same twice", 0.0)
    latents = x0.detach().requires_grad_(True)
    decoded = prior.decode(latents)
    _require(decoded.shape == images.shape, f"{says}decode: expected {list(images.shape)}", list(decoded.shape))
    _finite(decoded, f"{says}decode")
    low, high = decoded.detach().aminmax()
    _require(
        -0.01 <= low <= high <= 1.01,
        f"{says}decode: expected values in [0, 1]",
        f"{float(low):.3g} to {float(high):.3g}",
    )
    _gradient(decoded, latents, f"{says}decode")
    return x0.detach()


def _check_levels(prior: Prior, says: str, x0: Tensor) -> None:
    t = torch.tensor(TIMES, device=x0.device)
    alpha, sigma = prior.alpha_sigma(t)
    for name, level in (("alpha", alpha), ("sigma", sigma)):
        _require(
            level.shape == (len(t), 1, 1, 1, 1), f"{says}alpha_sigma: expected {name} [G, 1, 1, 1, 1]", level.shape
        )
        _require(bool((level > 0).all()), f"{says}alpha_sigma: expected a positive {name}", level.flatten().tolist())
    noisier = (sigma / alpha).flatten()
    _require(
        bool((noisier.diff() > 0).all()),
        f"{says}alpha_sigma: expected sigma / alpha to rise with t, which is 0 where clean",
        noisier.tolist(),
    )
    noise, some = _noise(*x0.shape, seed=2).to(x0), t[1:3]
    (a, s) = prior.alpha_sigma(some)
    _equal(prior.add_noise(x0, noise, some), a * x0 + s * noise, f"{says}add_noise: expected alpha x0 + sigma noise")


def _check_predictions(
    prior: Prior, says: str, x0: Tensor, text: TextEmbedding, empty: TextEmbedding, tolerance: float
) -> None:
    t, cameras = torch.tensor([0.3, 0.8], device=x0.device), turntable(len(x0) * prior.views, size=prior.image_size)
    x_t = prior.add_noise(x0, _noise(*x0.shape, seed=3).to(x0), t)
    cond, neg = prior.predict(x_t, t, text, empty, cameras)
    for name, estimate in (("x0_cond", cond), ("x0_neg", neg)):
        _require(estimate.shape == x_t.shape, f"{says}predict: expected {name} {list(x_t.shape)}", list(estimate.shape))
        _require(
            estimate.dtype == x0.dtype, f"{says}predict: expected {name} as encode gives, {x0.dtype}", estimate.dtype
        )
        _finite(estimate, f"{says}predict, {name}")
        _require(not estimate.requires_grad, f"{says}predict: expected weights without gradients", "some")
    twice = prior.predict(x_t, t, text, text, cameras)
    _equal(twice[0], cond, f"{says}predict: expected the same under one text for both", tolerance)
    _equal(twice[1], cond, f"{says}predict: expected twice the same where negative is text", tolerance)
    rows = prior.predict(x_t, t, text.expand(len(cameras)), empty, cameras)
    _equal(rows[0], cond, f"{says}predict: expected a row per view to count as one row for all", tolerance)
    last = torch.arange(prior.views, 2 * prior.views)
    alone = prior.predict(x_t[1:], t[1:], text, empty, cameras[last])
    _equal(alone[0], cond[1:], f"{says}predict: expected groups not to see each other", tolerance)
    with torch.enable_grad():
        sequence = empty.sequence.clone().requires_grad_(True)
        watched = prior.predict(x_t, t, text, TextEmbedding(sequence, empty.pooled, empty.mask), cameras)[1]
        _gradient(watched, sequence, f"{says}predict, from x0_neg to negative.sequence")
    early = torch.full((len(x0),), 1e-3, device=x0.device)
    alpha, sigma = prior.alpha_sigma(early)
    nearly = prior.add_noise(x0, _noise(*x0.shape, seed=4).to(x0), early)
    off = float((prior.predict(nearly, early, text, empty, cameras)[0] - nearly / alpha).square().mean().sqrt())
    most = max(10 * float((sigma / alpha).max()), 0.1 * float(x0.square().mean().sqrt()))
    _require(
        off < most,
        f"{says}predict: expected clean estimates, which at t = 0.001 are within {most:.2g} (root mean square) of x_t",
        f"{off:.2g}",
    )


def check_reward(reward: Reward, size: int = 64) -> None:
    """Whether a :class:`~psd_gs.rewards.base.Reward` does what ranking and refinement need.

    Args:
        reward: to be checked.
        size: side of the pictures, pixels.

    Raises:
        AssertionError: names the method, what was expected and what was received.
    """
    says = f"reward {getattr(reward, 'name', '?')}: "
    _require(isinstance(reward.name, str) and reward.name, f"{says}name: expected a short text", reward.name)
    _require(isinstance(reward.differentiable, bool), f"{says}differentiable: expected a bool", reward.differentiable)
    images = _noise(2, 4, 3, size, size, seed=1).sigmoid().requires_grad_(reward.differentiable)
    prompts, cameras = ["a red cube", "a corgi"], turntable(8, size=size)
    scores = reward.score(images, prompts, cameras)
    _require(
        scores.shape in ((2, 4), (2,)), f"{says}score: expected [2, 4], or [2] of whole groups", list(scores.shape)
    )
    _finite(scores, f"{says}score")
    if reward.differentiable:
        _gradient(scores, images, f"{says}score")
    else:
        _require(not scores.requires_grad, f"{says}score: expected no gradients of a black box", "some")
    with torch.no_grad():
        _equal(reward.score(images, prompts, cameras), scores, f"{says}score: expected the same twice")
        second = reward.score(images[1:], prompts[1:], cameras[torch.arange(4, 8)])
        _equal(second, scores[1:], f"{says}score: expected groups not to see each other")
        with suppress(PsdGsError):  # such as Reward3D, which sees cameras and groups of four views
            _finite(reward.score(images, prompts, None), f"{says}score without cameras")
            single = tuple(reward.score(images[:, :1], prompts, cameras[torch.tensor([0, 4])]).shape)
            _require(single in ((2, 1), (2,)), f"{says}score of single views: expected [2, 1] or [2]", list(single))
        if isinstance(reward, FeatureReward):
            again = reward.score_features(reward.features(images, prompts, cameras))
            _equal(again, scores, f"{says}score_features: expected score(x) of features(x)")


def check_preference(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Whether a preference score of :data:`psd_gs.entries.PREFERENCES` runs, repeats and goes on from a checkpoint.

    Args:
        name: as the entry point has it, of an installed package.
        options: of its section, by name; such as those that let it speak from the first step on.

    Raises:
        AssertionError: what was expected and what was received.
    """
    says = f"preference {name}: "
    _require(name in PREFERENCES, f"{says}expected one of {', '.join(PREFERENCES)}; is the package installed?", name)
    cls = preference_class(name)
    given: dict[str, Any] = {"preference": name} | ({name: dict(options)} if options else {})
    config = from_dict(GuidanceConfig, given, "check")
    _check_options(config, says)
    check_combination(config)
    if cls.wants_reward:
        _raises(
            ConfigError,
            lambda: Guidance(_Blob(1), "a red cube", config),
            f"{says}expected to refuse a run without reward",
        )
    for views in (1, 4):
        _check_runs(config, _Blob(views), _Bright() if cls.wants_reward else None, says)
    if cls.wants_reward:
        try:
            Guidance(_Blob(1), "a red cube", config, reward=CallableReward(_darkness, "black box"))
        except ConfigError:
            return  # a preference may refuse a reward without gradients, in words
        _check_runs(config, _Blob(1), CallableReward(_darkness, "black box"), says)
        lost = CallableReward(lambda images, prompts: [math.nan] * len(images), "no verdict")
        _run(Guidance(_Blob(1), "a red cube", config, reward=lost), says, range(STEPS))


def _check_options(config: GuidanceConfig, says: str) -> None:
    options = config.chosen
    if options is None:
        return
    parameters = getattr(options, "__dataclass_params__", None)
    _require(parameters and parameters.frozen, f"{says}options: expected a frozen dataclass", options)
    again = from_dict(GuidanceConfig, to_dict(config), "check")
    _require(again == config, f"{says}options: expected to be read as they are written, {config.chosen}", again.chosen)
    wrong = {config.preference: {"no such option": 1}}
    _raises(ConfigError, lambda: from_dict(GuidanceConfig, wrong, "check"), f"{says}expected to refuse unknown options")


def _check_runs(config: GuidanceConfig, prior: _Blob, reward: Reward | None, says: str) -> None:
    def fresh() -> Guidance:
        return Guidance(prior, "a red cube", config, reward=reward, seed=1)

    first, second = fresh(), fresh()
    images = _run(first, says, range(STEPS))
    _equal(_run(second, says, range(STEPS)), images, f"{says}expected the same of the same seed", 0.0)
    state = first.state_dict()
    _require(all(isinstance(value, Tensor) for value in state.values()), f"{says}state_dict: expected tensors", state)
    resumed = fresh()
    resumed.load_state_dict(state)
    after = _run(first, says, range(STEPS, 2 * STEPS), images)
    _equal(
        _run(resumed, says, range(STEPS, 2 * STEPS), images), after, f"{says}load_state_dict: expected to go on", 0.0
    )


def _run(guidance: Guidance, says: str, steps: range, images: Tensor | None = None) -> Tensor:
    """A few steps of gradient descent on the pictures."""
    views = guidance.prior.views
    images = _noise(2, views, 3, 8, 8, seed=5).sigmoid() if images is None else images
    for step in steps:
        images = images.detach().requires_grad_(True)
        out = guidance(images, turntable(2 * views, size=8), step / (2 * STEPS), step)
        _require(out.loss.shape == (), f"{says}loss: expected a scalar", list(out.loss.shape))
        _require(all(isinstance(v, float) for v in out.logs.values()), f"{says}logs: expected numbers", out.logs)
        images = images - 0.05 * _gradient(out.loss, images, f"{says}loss", zero=True)
    return images.detach()


class PixelPrior:
    """The part of a :class:`~psd_gs.priors.base.Prior` that priors in closed form share: latents are pixels in [-1, 1],
    and ``x_t = cos(pi t / 2) x0 + sin(pi t / 2) noise``."""

    def encode(self, images: Tensor) -> Tensor:
        return 2 * images - 1

    def decode(self, x0: Tensor) -> Tensor:
        return (0.5 * x0 + 0.5).clamp(0, 1)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = t.view(-1, 1, 1, 1, 1) * math.pi / 2
        return angle.cos(), angle.sin()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        return alpha * x0 + sigma * noise


class _Blob(PixelPrior):
    """A prior in closed form: pixels around one grey, of variance 1."""

    name, image_size, device = "closed form", 8, torch.device("cpu")

    def __init__(self, views: int) -> None:
        self.views = views

    def embed(self, prompts: list[str]) -> TextEmbedding:
        return TextEmbedding(torch.stack([torch.full((1, 1), 0.5 + 0.01 * len(prompt)) for prompt in prompts]))

    def predict(
        self, x_t: Tensor, t: Tensor, text: TextEmbedding, negative: TextEmbedding, cameras: Cameras
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha_sigma(t)
        rows = (embedding.expand(len(cameras)).sequence.view(*x_t.shape[:2], 1, 1, 1) for embedding in (text, negative))
        cond, neg = (mean + alpha * (x_t - alpha * mean) / (alpha**2 + sigma**2) for mean in rows)
        return cond, neg


class _Bright:
    """How bright the upper half of a view is."""

    name, differentiable = "bright", True

    def score(self, images: Tensor, prompts: list[str], cameras: Cameras | None) -> Float[Tensor, "G V"]:
        return images[..., : images.shape[-2] // 2, :].mean((2, 3, 4))


def _darkness(images: Tensor, prompts: list[str]) -> Tensor:
    return -images.mean((1, 2, 3))


def _noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _require(holds: object, expected: str, received: object) -> None:
    if not holds:
        raise AssertionError(f"{expected}, received {received}.")


def _finite(values: Tensor, what: str) -> None:
    _require(
        values.isfinite().all(), f"{what}: expected finite numbers", f"{int((~values.isfinite()).sum())} that are not"
    )


@torch.no_grad()
def _equal(received: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    _require(received.shape == expected.shape, f"{what}, {list(expected.shape)}", list(received.shape))
    off, most = float((received - expected).abs().max()), tolerance * max(float(expected.abs().max()), 1.0)
    _require(off <= most, what, f"a difference of {off:.3g}")


def _gradient(of: Tensor, to: Tensor, what: str, zero: bool = False) -> Tensor:
    """The gradient, which must arrive, finite and, unless it may be, not all zero."""
    _require(of.requires_grad, f"{what}: expected gradients", "none")
    (gradient,) = torch.autograd.grad(of.sum(), to, allow_unused=True, retain_graph=True)
    _require(gradient is not None, f"{what}: expected gradients to arrive", "none")
    assert gradient is not None
    _finite(gradient, f"{what}, gradient")
    _require(zero or gradient.abs().max() > 0, f"{what}: expected a gradient", "zeros")
    return gradient


def _raises(kind: type[Exception], call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{what} with a {kind.__name__}, received no error.")
