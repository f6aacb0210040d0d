"""Judges of images against prompts, by name.

A name is an embedded reward (``mini``, ``mini-judge``), a published one of :data:`RECIPES`, with a
local copy where ``=PATH`` follows, the folder of a fitted one (``psd-gs fit-reward``), or a Python
function (``module:function``, ``file.py:function``) ``images [B, 3, H, W], B prompts -> B scores``.
Several make a weighted sum: ``hpsv2.1,pickscore:0.5``.

A function is code, which runs only where whoever started the program named it (``allow_code``): never because a
configuration, a run folder or a fitted reward says so.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psd_gs.errors import ConfigError, ModelError
from psd_gs.files import short

if TYPE_CHECKING:
    import torch

    from psd_gs.rewards.base import Reward

EMBEDDED = {"mini": "reward", "mini-judge": "judge"}
"""Name to folder of the weights that ship with the package."""


@dataclass(frozen=True)
class Recipe:
    """How a published reward is put together.

    Attributes:
        load: module and function of this package; the function takes a path per part, ``name``, ``device``, ``dtype``.
        mean: typical score of a render, which sums subtract.
        std: typical standard deviation of its scores at one prompt, which sums divide by.
        parts: besides the weights themselves: argument to the name of its download in ``psd_gs.published``.
        options: further arguments.
        source: where the weights are, if no hub has them.
    """

    load: tuple[str, str]
    mean: float
    std: float
    parts: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


_WORDS = {"tokenizer": "clip-tokenizer"}
_BERT = {"tokenizer": "bert-tokenizer"}
RECIPES = {
    "clip": Recipe(("clip", "load_clip_reward"), 0.26, 0.03, _WORDS),
    "hpsv1": Recipe(
        ("clip", "load_hps_v1"), 0.20, 0.01, _WORDS, source="hpc.pth, linked at https://github.com/tgxs002/align_sd"
    ),
    "hpsv2": Recipe(("clip", "load_hps_v2"), 0.26, 0.01, _WORDS, {"files": ("HPS_v2_compressed.pt",)}),
    "hpsv2.1": Recipe(("clip", "load_hps_v2"), 0.25, 0.02, _WORDS),
    "pickscore": Recipe(("clip", "load_pickscore"), 20.0, 1.0, _WORDS),
    "imagereward": Recipe(("blip", "load_blip_reward"), 0.0, 1.0, _BERT),
    "reward3d": Recipe(("blip", "load_blip_reward"), 0.0, 1.0, _BERT, {"head": "scorer"}),
    "reward3d-fusion": Recipe(("blip", "load_blip_reward"), 0.0, 0.2, _BERT, {"head": "fusion"}),
    "aesthetic": Recipe(("aesthetic", "load_aesthetic"), 5.5, 0.5, {"clip": "clip"}),
    "aesthetic-linear": Recipe(
        ("aesthetic", "load_aesthetic"),
        5.0,
        0.5,
        {"clip": "clip"},
        {"files": ("sa_0_4_vit_l_14_linear.pth",)},
        source="sa_0_4_vit_l_14_linear.pth of https://github.com/LAION-AI/aesthetic-predictor",
    ),
}
"""By name. Means and deviations are read off published ranges of scores: they set units, not ranks."""


def load_reward(
    expression: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    allow_code: bool = False,
) -> Reward:
    """Load a reward, downloading published weights that are not on this machine.

    Args:
        expression: a name, or several with weights; see the module.
        device: where it runs.
        dtype: of its weights; None is float16 for published ones on a GPU, else float32.
        allow_code: whether it may name functions, see :func:`refuse_code`.

    Raises:
        ConfigError: no reward has this name, or a function that cannot be imported or may not be.
        ModelError: files that cannot be had, are missing, damaged or of another architecture.
    """
    from psd_gs.rewards.combine import Scored, WeightedSum, parse_expression

    terms = parse_expression(expression)
    for term in terms:
        _check_name(term.name)
    if not allow_code:
        refuse_code(expression)
    rewards = [_load_one(term.name, device, dtype) for term in terms]
    if len(terms) == 1 and terms[0].weight == 1:
        return rewards[0]
    units = [RECIPES.get(term.name.partition("=")[0]) for term in terms]
    parts = [
        Scored(reward, term.weight, *((unit.mean, unit.std) if unit else ()))
        for reward, term, unit in zip(rewards, terms, units, strict=True)
    ]
    return WeightedSum(parts, expression)


def refuse_code(expression: str, where: str = "a file") -> None:
    """Refuse names of functions that nobody typed.

    Args:
        expression: of a reward or judge.
        where: it was read.

    Raises:
        ConfigError: it names a function.
    """
    from psd_gs.rewards.combine import parse_expression

    names = (term.name for term in parse_expression(expression))
    if functions := [name for name in names if not _is_listed(name) and not _fitted(name)]:
        raise ConfigError(
            f"reward {short(functions[0])} is code, and {where} names it. If you trust it, name it yourself (--reward, "
            "--judge) or add --allow-code; in Python pass allow_code=True."
        )


def _is_listed(name: str) -> bool:
    return name in EMBEDDED or name.partition("=")[0] in RECIPES


def needed(expression: str) -> list[str]:
    """Names in ``psd_gs.published`` of everything that ``load_reward(expression)`` fetches if it is not here."""
    names: dict[str, None] = {}
    for term in _terms(expression):
        name, _, path = term.partition("=")
        if recipe := RECIPES.get(name):
            wanted = ({} if path or recipe.source else {"weights": name}) | dict(recipe.parts)
            names |= dict.fromkeys(part for part in wanted.values() if not _beside(path, part))
    return list(names)


def local_copies(expression: str) -> dict[str, Path]:
    """What is loaded from given paths, by name: published rewards (``imagereward=PATH``) and fitted ones."""
    out = {}
    for term in _terms(expression):
        name, _, path = term.partition("=")
        if path and name in RECIPES:
            out[name] = Path(path).expanduser()
        elif _fitted(term):
            out[term] = Path(term).expanduser()
    return out


def names_of(expression: str) -> list[str]:
    """The models of an expression, without weights and paths; a fitted one after the base whose features it reads."""
    return [term if _fitted(term) else term.partition("=")[0] for term in _terms(expression)]


def _terms(expression: str) -> list[str]:
    """The names of an expression; a fitted one after its base."""
    from psd_gs.rewards.combine import parse_expression

    out = []
    for term in parse_expression(expression):
        base = _fitted(term.name)
        out += [base, term.name] if base else [term.name]
    return out


def _fitted(name: str) -> str | None:
    """The base of a fitted reward; None if ``name`` is not the folder of one.

    Raises:
        ConfigError: the base is none of our list.
    """
    if _is_listed(name):
        return None
    from psd_gs.rewards.fitted import read_base

    base = read_base(name)
    if base is not None and not _is_listed(base):
        raise ConfigError(
            f"the fitted reward {name}: expected one of {', '.join([*EMBEDDED, *RECIPES])} below it, received "
            f"{short(base)}. Fit it again."
        )
    return base


def check_judge(reward: str, judge: str) -> None:
    """A judge must be another model than those that are optimized.

    Raises:
        ConfigError: a model of ``judge`` is in ``reward``.
    """
    climbed = names_of(reward)
    if same := [name for name in names_of(judge) if name in climbed]:
        others = [name for name in (*EMBEDDED, *RECIPES) if name not in climbed]
        raise ConfigError(
            f"judge {judge!r}: expected a model that is not optimized, received {same[0]} of reward {reward!r}. "
            f"Choose another, such as {others[0]}."
        )


def _check_name(name: str) -> None:
    if not _is_listed(name) and ":" not in name and not _fitted(name):
        raise ConfigError(
            f"unknown reward {name!r}; expected one of {', '.join([*EMBEDDED, *RECIPES])}, one of the latter "
            "with a local copy (imagereward=PATH), a folder that `psd-gs fit-reward` wrote, or a function "
            "(module:function, file.py:function)."
        )


def _load_one(name: str, device: torch.device | str, dtype: torch.dtype | None) -> Reward:
    import torch

    from psd_gs import weights
    from psd_gs.rewards.base import CallableReward
    from psd_gs.rewards.mini import MiniReward

    if name in EMBEDDED:
        with as_file(files("psd_gs") / "assets" / "mini" / EMBEDDED[name]) as folder:
            return MiniReward.from_pretrained(folder, name=name, device=device, dtype=dtype or torch.float32)
    if base := _fitted(name):
        from psd_gs.rewards.base import FeatureReward
        from psd_gs.rewards.fitted import FittedReward, load_head

        below = _load_one(base, device, dtype)
        if not isinstance(below, FeatureReward):
            raise ModelError(f"the fitted reward {name}: {base} does not tell its features. Fit it again.")
        return FittedReward(below, load_head(name), name)
    known, _, path = name.partition("=")
    if known not in RECIPES:
        return CallableReward(_import_function(name), name)
    recipe = RECIPES[known]
    if recipe.source and not path:
        raise ModelError(f"reward {known} is on no hub: download {recipe.source}, and name it with {known}=PATH.")
    if path and not Path(path).expanduser().exists():
        raise ModelError(f"reward {known}: expected its weights at {path}, received nothing. Check the path.")
    dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.float16)
    parts = {part: _beside(path, download) or weights.locate(download) for part, download in recipe.parts.items()}
    module = importlib.import_module(f"psd_gs.rewards.{recipe.load[0]}")
    load = partial(getattr(module, recipe.load[1]), **recipe.options)
    return load(path or weights.locate(known), name=name, device=device, dtype=dtype, **parts)


def _beside(path: str, download: str) -> Path | None:
    """The folder of ``path``, if the files of a download lie in it."""
    from psd_gs.weights import WEIGHTS

    if not path:
        return None
    given = Path(path).expanduser()
    folder = given if given.is_dir() else given.parent
    return folder if all((folder / name).is_file() for name in WEIGHTS[download].files) else None


def _import_function(name: str) -> Any:
    """The function that ``module:function`` or ``file.py:function`` names.

    Raises:
        ConfigError: there is no such module, file or function.
    """
    where, _, attribute = name.rpartition(":")
    try:
        if where.endswith(".py"):
            path = Path(where).expanduser()
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec
            assert spec.loader
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        function = getattr(module, attribute)
    except (ImportError, OSError, AttributeError, SyntaxError, ValueError) as error:
        raise ConfigError(f"reward {name!r}: cannot import {attribute} from {where}: {error}.") from error
    if not callable(function):
        raise ConfigError(f"reward {name!r}: expected a function images, prompts -> scores, received {function!r}.")
    return function
