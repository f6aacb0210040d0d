"""What ``generate``, ``batch`` and ``eval run`` let the user decide about a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from psd_gs.config import SOLID_STEPS, Preset, Recipe
from psd_gs.config.guidance import Method, Preference

if TYPE_CHECKING:
    from psd_gs.config import Config
    from psd_gs.job import Request

Text = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
Number = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]


@dataclass(kw_only=True)
class SharedOptions:
    """What runs can have in common: a preset or recipe, then the --config file, then what is given here."""

    preset: Annotated[Preset | None, arg(help_behavior_hint="")] = None
    """Tier of quality against time (configs/*.yaml). Default: default."""
    recipe: Annotated[Recipe | None, arg(help_behavior_hint="")] = None
    """Settings of a published method instead of a preset (configs/recipes/*.yaml), with its prior and reward."""
    prior: Text = None
    """Diffusion model: auto, mini (embedded), mvdream, imagedream, sd15, sd21, sdxl, sd3, a hub id or a local
    folder."""
    reward: Text = None
    """What ranks the noise pairs: mini, hpsv2.1, hpsv2, hpsv1, pickscore, imagereward, clip, aesthetic,
    aesthetic-linear, reward3d or reward3d-fusion, NAME=PATH for a local copy, file.py:function for your own,
    or a weighted sum such as hpsv2.1,pickscore:0.5. Default: the one that belongs to the prior."""
    judge: Text = None
    """What scores the result, likewise, and is never optimized. Default: the one that belongs to the prior."""
    method: Annotated[Method | None, arg(help_behavior_hint="")] = None
    """Base score. Default: the preset's."""
    negative_prompt: Text = None
    """What the asset should not look like; where the refinement of the negative embedding starts."""
    negative_embedding: File = None
    """Start from a refined negative embedding (negative.safetensors of an earlier run)."""
    steps: Number = None
    """Optimization steps. Default: the preset's; the schedule stretches with it."""
    device: Text = None
    """Where the networks run: auto, cuda, cuda:N, xpu (Intel), mps (Apple) or cpu. Default, and auto: CUDA where it is,
    else xpu or mps for published priors, else the CPU."""
    renderer: Annotated[Literal["auto", "gsplat", "triton", "cpu"] | None, arg(help_behavior_hint="")] = None
    """What draws the Gaussians. Default, and auto: gsplat where its kernels are built, else triton where it compiles
    for the GPU, else the CPU, beside networks on the GPU too."""
    vram: Annotated[Literal[0, 8, 12, 24] | None, arg(help_behavior_hint="")] = None
    """GPU memory to fit into, GB. Default, and 0: as much as there is."""
    init: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Start from a splat, a point cloud (.ply), a mesh (.glb, .obj, .stl), or shap-e, instead of a ball."""
    image: Annotated[UseAppendAction[tuple[Path, ...]], arg(metavar="FILE", help_behavior_hint="")] = ()
    """A picture of the thing, with transparency around it: its view is held, and the prior makes the rest; repeatable,
    each with an --image-azimuth."""
    image_azimuth: Annotated[UseAppendAction[tuple[float, ...]], arg(metavar="DEGREES", help_behavior_hint="")] = ()
    """Where the picture was taken from: 0 in front, which is the default, 90 from the thing's left."""
    image_elevation: Annotated[UseAppendAction[tuple[float, ...]], arg(metavar="DEGREES", help_behavior_hint="")] = ()
    """How far above the horizon. Default: 0."""
    for_mesh: bool = False
    """Make the splat itself solid at the end, as its mesh is; the presets of mini always do."""
    config: File = None
    """YAML file of options that goes over the preset, or - for standard input; a run's config.yaml repeats the run."""
    allow_code: bool = False
    """Let --config, or the run that is resumed, name a function as reward or judge, whose code then runs."""
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE", help_behavior_hint="")] = ()
    """One option by its full name, such as guidance.psd.weight=3; repeatable. `psd-gs options` lists all."""

    @property
    def named(self) -> dict[str, Any]:
        """The options that are given here, nested."""
        from psd_gs.config import merged, parse_overrides

        pictures: dict[str, Any] = {"files": list(map(str, self.image)), "sha256": []} if self.image else {}
        places = {"azimuth": list(self.image_azimuth), "elevation": list(self.image_elevation)}
        pictures |= {name: value for name, value in places.items() if value}
        flags: dict[str, Any] = {
            "image": pictures or None,
            "prior": self.prior,
            "reward": self.reward,
            "judge": self.judge,
            "device": self.device,
            "renderer": self.renderer,
            "vram": self.vram,
            "steps": self.steps,
            "solid_steps": SOLID_STEPS if self.for_mesh else None,
            "negative_embedding": str(self.negative_embedding) if self.negative_embedding else None,
            "init": {"source": self.init} if self.init else None,
        }
        flags["guidance"] = given({"method": self.method, "negative_prompt": self.negative_prompt}) or None
        return merged(given(flags), parse_overrides(self.set))

    def check_code(self, config: Config) -> None:
        """Refuse functions among the models of a run that were not named here.

        Raises:
            ConfigError: see :func:`psd_gs.rewards.refuse_code`.
        """
        from psd_gs.rewards import refuse_code

        named = self.named
        for role, name in (("reward", config.reward), ("judge", config.judge)):
            if not self.allow_code and named.get(role) != name:
                refuse_code(name, str(self.config or "the run that is resumed"))

    def request(self, prompt: str) -> Request:
        """What is asked for with this prompt."""
        from psd_gs.config import read_yaml
        from psd_gs.files import called
        from psd_gs.job import Request

        return Request(
            prompt,
            self.preset,
            self.recipe,
            read_yaml(self.config, given=True) if self.config else {},
            self.named,
            called(self.config) if self.config else "command line",
        )

    def resolve(self, prompt: str) -> Config:
        """Everything that decides the run of this prompt, see :func:`psd_gs.job.resolve`."""
        from psd_gs.job import resolve

        return resolve(self.request(prompt))


@dataclass(kw_only=True)
class RunOptions(SharedOptions):
    """Options of a run: a preset or recipe, then the --config file, then what is given here."""

    preference: Annotated[Preference | None, arg(help_behavior_hint="")] = None
    """Preference score. Default: the preset's."""
    seed: Number = None
    """Seed of everything random. Default: 0."""

    @property
    def named(self) -> dict[str, Any]:
        """The options that are given here, nested; --set has the last word."""
        from psd_gs.config import merged

        own = given({"seed": self.seed, "guidance": given({"preference": self.preference}) or None})
        return merged(own, super().named)


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were named."""
    return {name: value for name, value in flags.items() if value is not None}


def parse_shard(text: str) -> tuple[int, int]:
    """``i/n``: which of n parts, from 0.

    Raises:
        ConfigError: anything else.
    """
    from psd_gs.errors import ConfigError

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"--shard: expected i/n with i from 0 to n - 1, such as 0/4, received {text!r}.")
    return int(index), int(count)
