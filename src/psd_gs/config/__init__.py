"""Options of a run: dataclasses with defaults, presets in YAML, and what both become together.

Precedence: dataclass defaults < preset (``common``, ``published`` for all priors but the embedded one, then the
prior's family) < ``--config`` file < command line. Positions in the schedule are fractions of the run, so a
preset holds for any number of steps.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from psd_gs.config.guidance import GuidanceConfig, check_choices, check_range, hints_of
from psd_gs.config.image import ImageConfig
from psd_gs.entries import PRIORS, PUBLISHED
from psd_gs.errors import ConfigError, InputError
from psd_gs.files import YAML_BYTES, called, parse_yaml, read_bounded, read_given, short

T = TypeVar("T")

Preset = Literal["draft", "default", "quality"]
"""Tiers of quality against time."""
Recipe = Literal[
    "dreamgaussian",
    "gaussiandreamer",
    "luciddreamer",
    "mvdream",
    "dreamdpo",
    "rewardsds",
    "dreamreward",
    "psd",
]
"""Settings of published methods, in place of a preset."""
PRESETS: tuple[str, ...] = get_args(Preset)
RECIPES: tuple[str, ...] = get_args(Recipe)
MAX_PROMPT = 500
"""Characters."""
SOLID_STEPS = 150
"""Steps after which a solid no longer changes."""
STRENGTH = 0.7
"""Highest noise level of a refinement, unless another one is asked for."""

REPAINT_STRENGTH = 0.8
"""Likewise where a mesh gets other colours and nothing else."""


@dataclass(frozen=True)
class InitConfig:
    """The Gaussians before the first step."""

    source: str = "ball"
    """ball; shap-e, a sample of that model; or a file, fitted into the ball: splats are taken, a point cloud or mesh is
    sampled."""
    count: int = 1500
    """Number of Gaussians (at most, for files)."""
    radius: float = 0.5
    """Radius of the ball, world units."""
    scale: float = 0.05
    """Standard deviation of each Gaussian, world units."""
    opacity: float = 0.12
    """Opacity of each Gaussian."""

    def __post_init__(self) -> None:
        check_range(self, 1, 10_000_000, "count")
        check_range(self, 1e-4, 1e2, "radius", "scale")
        check_range(self, 1e-3, 0.999, "opacity")


@dataclass(frozen=True)
class CameraConfig:
    """Where the training views are taken from: orthogonal azimuths, one elevation, distance and field of view."""

    elevation: tuple[float, float] = (-15.0, 60.0)
    """Lowest and highest elevation, degrees above the horizon."""
    fov: tuple[float, float] = (30.0, 50.0)
    """Smallest and largest vertical field of view, degrees."""
    distance: tuple[float, float] = (0.95, 1.12)
    """Nearest and farthest, as a factor on the distance at which a ball of ``radius`` just fills the image."""
    radius: float = 0.66
    """Radius of that ball, world units."""
    size: tuple[int, int] = (64, 64)
    """Image side at the start and from ``size_at`` on, pixels."""
    size_at: float = 0.5
    """Fraction of the run at which the second size begins."""
    groups: int = 1
    """Sets of views per step, each with its own timestep; 4 is usual for single-view priors."""

    def __post_init__(self) -> None:
        check_range(self, -90, 90, "elevation")
        check_range(self, 1, 170, "fov")
        check_range(self, 1e-2, 1e2, "distance", "radius")
        check_range(self, 8, 4096, "size")
        check_range(self, 1, 64, "groups")
        check_range(self, 0, 1, "size_at")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam per parameter; rates fall exponentially from the first to the second value."""

    means: tuple[float, float] = (5e-3, 5e-4)
    """Rates of the positions."""
    scales: tuple[float, float] = (1e-2, 2e-3)
    """Rates of the logarithms of the standard deviations."""
    quats: tuple[float, float] = (1e-2, 2e-3)
    """Rates of the quaternions."""
    opacities: tuple[float, float] = (5e-2, 1e-2)
    """Rates of the logits of the opacities."""
    sh0: tuple[float, float] = (2e-2, 4e-3)
    """Rates of the colours; those of higher harmonics are a twentieth."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay of the first and the second moment."""
    eps: float = 1e-15
    """Adam's epsilon."""
    opacity_weight: float = 1e-3
    """Weight of the mean opacity, against haze."""
    scale_weight: float = 1e-2
    """Weight of the mean standard deviation in world units, against fluff."""

    def __post_init__(self) -> None:
        check_range(self, 1e-12, 1, "means", "scales", "quats", "opacities", "sh0")
        check_range(self, 0, 1 - 1e-6, "betas")
        check_range(self, 0, float("inf"), "eps", "opacity_weight", "scale_weight")


@dataclass(frozen=True)
class DensifyConfig:
    """Growing where the guidance pulls hardest, and pruning what does not show."""

    enabled: bool = True
    """Grow and prune at all."""
    start: float = 0.2
    """Fraction of the run at which growing begins."""
    stop: float = 0.7
    """Fraction of the run at which growing ends."""
    every: float = 0.05
    """Fraction of the run between two rounds."""
    grow: float = 0.12
    """Share of the Gaussians, those with the largest mean screen-space gradient, that is doubled per round."""
    cap: int = 6000
    """Most Gaussians that growth leads to."""
    split_scale: float = 0.03
    """Larger Gaussians (world units) are split in two, smaller ones cloned."""
    prune_opacity: float = 0.06
    """Gaussians below this opacity are dropped in each round and at the end."""
    prune_scale: float = 0.35
    """Gaussians larger than this (world units) are dropped in each round and at the end."""
    component_mass: float = 0.01
    """At the end, detached groups with less than this share of the opacity are dropped."""

    def __post_init__(self) -> None:
        check_range(self, 0, 1, "start", "stop", "every", "grow", "prune_opacity", "component_mass")
        check_range(self, 1, float("inf"), "cap")
        check_range(self, 0, float("inf"), "split_scale", "prune_scale")


Axis = Literal["+x", "-x", "+y", "-y", "+z", "-z"]


@dataclass(frozen=True)
class RefineConfig:
    """An asset that is there already, and what of it may change (``psd-gs refine``, ``psd-gs retexture``); coordinates
    are the file's own."""

    asset: str | None = None
    """A splat file, or with ``texture_size`` a mesh; with it, ``init`` does not count."""
    sha256: str = ""
    """SHA-256 of that file."""
    only: Literal["all", "shape", "colour"] = "all"
    """shape: places, sizes, rotations and opacities; colour: colours and harmonics."""
    box: tuple[float, float, float, float, float, float] | None = None
    """x0, y0, z0, x1, y1, z1: only Gaussians with their centres inside change, and new ones grow only there."""
    sphere: tuple[float, float, float, float] | None = None
    """x, y, z, radius: likewise, in a ball."""
    mask: str | None = None
    """A splat file of those that may change; new ones grow where no other one is nearer."""
    keep: float = 0.0
    """Weight of the original's views and parameters; at 1 small differences count as much as what the prior wants.
    ``psd-gs refine`` chooses it by the strength unless it is told."""
    max_splats: int | None = None
    """Most Gaussians of the result; None: as many as there are and ``densify.cap`` more, on a mesh 20000."""
    up: Axis | None = None
    """Which axis of the file is up; None: as usual for its format."""
    front: Axis | None = None
    """Which axis of the file the asset's front looks along, likewise."""
    room: float | None = 0.0
    """Free room above the asset in the views of the prior, for what is put on it: in radii of the ball that the asset
    fits in. None: as much as the prior expects of the prompt, which the run then puts here."""
    texture_size: int = 0
    """Side of the textures that a mesh gets, texels; 0: the asset is a splat."""
    material: str | None = None
    """Name of the only material of a mesh that changes."""

    def __post_init__(self) -> None:
        check_range(self, 0, 1e6, "keep")
        check_range(self, 0, 4096, "texture_size")
        if self.room is not None:
            check_range(self, 0, 2, "room")
        regions = [name for name in ("box", "sphere", "mask") if getattr(self, name) is not None]
        if len(regions) > 1:
            raise ConfigError(f"expected one of --box, --sphere and --mask, received {' and '.join(regions)}.")
        if self.texture_size and (regions or self.only != "colour"):
            raise ConfigError(
                "texture_size: expected a mesh to be painted with only: colour and without box, sphere and mask, "
                f"received {' and '.join([f'only: {self.only}', *regions])}. Leave these out, or texture_size out."
            )
        if self.box and not all(low < high for low, high in zip(self.box[:3], self.box[3:], strict=True)):
            raise ConfigError(f"--box: expected X0,Y0,Z0,X1,Y1,Z1 with X0 < X1, Y0 < Y1, Z0 < Z1, received {self.box}.")
        if self.sphere and not self.sphere[3] > 0:
            raise ConfigError(f"--sphere: expected X,Y,Z,RADIUS with a radius above 0, received {self.sphere}.")
        if self.max_splats is not None and self.max_splats < 1:
            raise ConfigError(f"--max-splats: expected 1 or more, received {self.max_splats}.")
        if self.up and self.front and self.up[1] == self.front[1]:
            raise ConfigError(f"expected --up and --front along two axes, received {self.up} and {self.front}.")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run, besides the code."""

    prompt: str = ""
    seed: int = 0
    """Seed of everything random."""
    preset: str = "default"
    prior: str = "auto"
    """Diffusion model that is distilled: a name, a hub id or a folder; auto: what the device has room for."""
    reward: str = "auto"
    """What ranks the noise pairs: a name or a weighted sum; auto: the one that belongs to the prior."""
    judge: str = "auto"
    """What scores the finished asset and is never optimized; auto: the one that belongs to the prior."""
    device: str = "auto"
    """Where the networks run: auto, cuda, cuda:0, xpu, mps or cpu."""
    renderer: Literal["auto", "gsplat", "triton", "cpu"] = "auto"
    """What draws the Gaussians, which live on its device; auto: the fastest that runs beside the networks at once."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Type of the prior's weights; auto: what the device computes fastest."""
    vram: Literal[0, 8, 12, 24] = 0
    """GPU memory to fit into, GB; 0: as much as there is."""
    prior_size: int = 0
    """Side of the images that the prior sees, pixels; 0: what it was trained for."""
    weights: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files that were loaded, recorded by the run."""
    steps: int = 300
    """Optimization steps; the schedule stretches with them."""
    backgrounds: Literal["augment", "white"] = "augment"
    """augment: white, mid-grey, dark grey or sometimes a colour, drawn anew in every step; white: always white."""
    negative_embedding: str | None = None
    """File of a refined negative embedding to start from."""
    solid_steps: int = 0
    """Steps of a last phase that turns fog into a solid (SOLID_STEPS are enough); 0: none."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    init: InitConfig = field(default_factory=InitConfig)
    cameras: CameraConfig = field(default_factory=CameraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    densify: DensifyConfig = field(default_factory=DensifyConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    image: ImageConfig = field(default_factory=ImageConfig)

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, 1, float("inf"), "steps")
        check_range(self, 0, 2**63 - 1, "seed")
        check_range(self, 0, 4096, "prior_size")
        check_range(self, 0, 100_000, "solid_steps")


def check_prompt_text(prompt: str) -> None:
    """Refuse what cannot be a prompt.

    Raises:
        InputError: empty, without any letter, not Unicode, or longer than :data:`MAX_PROMPT` characters.
    """
    if any("\ud800" <= c <= "\udfff" for c in prompt):
        raise InputError(f"expected a prompt in UTF-8, received {prompt!a}. Check the terminal's encoding.")
    if not any(c.isalpha() for c in prompt):
        raise InputError(f'expected a prompt in words, such as "a corgi", received {prompt!r}.')
    if len(prompt) > MAX_PROMPT:
        raise InputError(f"expected a prompt of at most {MAX_PROMPT} characters, received {len(prompt)}. Shorten it.")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dicts, lists and scalars, ready for YAML or JSON."""
    out: dict[str, Any] = {}
    for f in fields(config):
        value = _plain(getattr(config, f.name))
        out |= value if "sections" in f.metadata else {f.name: value}
    return out


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_dict(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def from_dict(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """A dataclass from nested dicts; keys that are missing keep their defaults.

    Args:
        cls: the dataclass.
        data: nested mappings, as ``yaml.safe_load`` gives them. A field with ``sections`` in its metadata, a function
            from names to dataclasses, takes those keys of which it knows one.
        where: named in messages.

    Raises:
        ConfigError: a key that does not exist (the nearest one is named), or a value of another type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected options by name, received {short(data)}.")
    hints = hints_of(cls)  # type: ignore[arg-type]  # types are hashable
    places = {f.name: f.metadata.get("sections") for f in fields(cls)}  # type: ignore[arg-type]
    names = [name for name, sections in places.items() if not sections]
    values: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{where}.{key}"
        if key not in names:
            for place, sections in places.items():
                if sections and (options := sections(str(key))):
                    values.setdefault(place, {})[key] = from_dict(options, value, path)
                    break
            else:
                raise ConfigError(f"{where}: unknown option {short(key)}.{suggestion(str(key)[:80], names)}")
            continue
        hint = hints[key]
        values[key] = (
            from_dict(hint, value, path)
            if isinstance(hint, type) and is_dataclass(hint)
            else _convert(value, hint, path)
        )
    try:
        return cls(**values)
    except ConfigError as error:  # a class does not know where its options were written
        raise ConfigError(re.sub(rf"^{cls.__name__}(?=\.)", lambda match: where, str(error))) from None


def _convert(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the annotation ``hint`` wants it; ints pass for floats, lists for tuples, "1e-3" for floats."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal and value is False and "off" in args:
        return "off"  # YAML 1.1 reads an unquoted off as false
    if origin is Literal and value in args:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(value, next(a for a in args if a is not type(None)), where)
    if origin is dict and isinstance(value, Mapping):
        return {_convert(key, args[0], where): _convert(item, args[1], where) for key, item in value.items()}
    if origin is tuple and args[-1] is Ellipsis and isinstance(value, list | tuple):
        return tuple(_convert(item, args[0], where) for item in value)
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(args):
        return tuple(_convert(item, arg, where) for item, arg in zip(value, args, strict=True))
    if hint is float and not isinstance(value, bool):
        try:  # YAML reads 1e-3 as text
            return float(value)
        except (TypeError, ValueError):
            pass
    if isinstance(hint, type) and type(value) is hint:
        return value
    expected = " or ".join(map(repr, args)) if origin is Literal else getattr(hint, "__name__", str(hint))
    expected = "a list" if origin is tuple and args[-1] is Ellipsis else expected
    raise ConfigError(f"{where}: expected {expected}, received {short(value)}.")


def merged(base: Mapping[str, Any], *updates: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, later ones winning key by key."""
    out = dict(base)
    for update in updates:
        for key, value in update.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merged(out[key], value) if both else value
    return out


def split_pairs(text: str) -> list[str]:
    """``a.b=1,c=[2,3]`` to its pairs; a comma inside a value does not count."""
    return re.split(r",(?=[\w.]+=)", text)


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """``["a.b=1", "steps=20"]`` to ``{"a": {"b": 1}, "steps": 20}``; values are read as YAML.

    Raises:
        ConfigError: no equals sign, a value that is not YAML, or a key inside a value.
    """
    nested: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        *outer, last = name.strip().split(".")
        inside = nested
        for part in outer:
            inside = inside.setdefault(part, {}) if isinstance(inside, dict) else inside
        if not equals or not last or not isinstance(inside, dict):
            raise ConfigError(f"expected key=value, such as guidance.psd.weight=2, received {pair!r}.")
        try:
            inside[last] = parse_yaml(value)
        except ValueError as error:
            raise ConfigError(f"{pair!r}: {value!r} is not YAML ({error}). Put texts in quotes.") from error
    return nested


def suggestion(word: str, known: list[str] | tuple[str, ...]) -> str:
    """ " Did you mean ...?" with the nearest known words, or all of them if none is near."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else f" Known: {', '.join(known)}."


def configs_folder() -> Path:
    """Where the presets are: packed into the package in a wheel, beside ``src`` in a checkout."""
    packed = Path(str(resources.files("psd_gs"))) / "configs"
    return packed if packed.is_dir() else Path(__file__).resolve().parents[3] / "configs"


def read_yaml(path: str | Path, *, given: bool = False) -> dict[str, Any]:
    """A YAML file of options.

    Args:
        path: of the file.
        given: a person named it, so that it may be a pipe or ``-``, see :func:`psd_gs.files.read_given`.

    Raises:
        ConfigError: the file cannot be read or parsed, is too large, or is not a mapping.
    """
    try:
        data = parse_yaml((read_given if given else read_bounded)(path, YAML_BYTES))
    except InputError as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise ConfigError(f"{called(path)} is not valid YAML ({error}). Compare it with a file in configs/.") from error
    if data is None:  # everything is commented out
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{called(path)}: expected options by name, received {type(data).__name__}.")
    return data


def preset(name: str, family: str) -> dict[str, Any]:
    """The options of a preset or recipe for one prior family; a recipe's own prior is among them.

    Args:
        name: one of :data:`PRESETS` or :data:`RECIPES`.
        family: section of the files, or the prior of another package with presets of its own; any other leaves what
            holds for all.

    Raises:
        ConfigError: no such preset.
        PluginError: the package is broken.
    """
    if name not in PRESETS + RECIPES:
        raise ConfigError(f"unknown preset {name!r}.{suggestion(name, PRESETS)}")
    files = _with_bases(configs_folder() / ("." if name in PRESETS else "recipes") / f"{name}.yaml")
    entry = PRIORS[family] if family in PRIORS.plugins else None
    kin = entry.family if entry else family
    shared = ("common", "published") if kin in PUBLISHED else ("common",)
    sections = [file.get(section, {}) for section in (*shared, kin) for file in files]
    own = [entry.presets.get(section, {}) for section in ("common", name)] if entry else []
    return merged({"preset": name}, *sections, *own)


@cache
def _with_bases(path: Path) -> tuple[dict[str, Any], ...]:
    """A file of options, after the one beside it that its ``base`` names; read once, and not to be changed."""
    data = read_yaml(path)
    base = data.get("base")
    return (*(_with_bases(path.with_name(f"{base}.yaml")) if base else ()), data)


def config_sha256(config: Config) -> str:
    """Names everything that decides a run: equal runs have equal ones."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]


def read_config(path: str | Path) -> Config:
    """The configuration that a run wrote.

    Raises:
        ConfigError: it cannot be read, or has options that do not exist.
    """
    return from_dict(Config, read_yaml(path), str(path))


def make_config(name: str, family: str, *overrides: Mapping[str, Any], where: str = "config") -> Config:
    """A complete configuration: preset, then ``overrides`` in order.

    Raises:
        ConfigError: an unknown preset, key or value.
    """
    return from_dict(Config, merged(preset(name, family), *overrides), where)
