"""Judges of images against prompts, by name.

A name is one of :data:`psd_gs.entries.REWARDS` (``mini``, ``mini-judge``, published ones and those of other
packages), with a local copy where ``=PATH`` follows, the folder of a fitted one (``psd-gs fit-reward``), or a Python
function (``module:function``, ``file.py:function``) ``images [B, 3, H, W], B prompts -> B scores``.
Several make a weighted sum: ``hpsv2.1,pickscore:0.5``.

A function is code, which runs only where whoever started the program named it (``allow_code``): never because a
configuration, a run folder or a fitted reward says so.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psd_gs.entries import REWARDS
from psd_gs.errors import ConfigError, ModelError
from psd_gs.files import short
from psd_gs.plugins import resolved

if TYPE_CHECKING:
    import torch

    from psd_gs.rewards.base import Reward


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
        PluginError: the package that offers it is broken.
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
    units = [REWARDS.get(term.name.partition("=")[0]) for term in terms]
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
    if functions := [name for name in names if ":" in name and not _is_listed(name) and not _fitted(name)]:
        raise ConfigError(
            f"reward {short(functions[0])} is code, and {where} names it. If you trust it, name it yourself (--reward, "
            "--judge) or add --allow-code; in Python pass allow_code=True."
        )


def needed(expression: str) -> list[str]:
    """Names in ``psd_gs.published`` of everything that ``load_reward(expression)`` fetches if it is not here."""
    names: dict[str, None] = {}
    for term in _terms(expression):
        name, _, path = term.partition("=")
        if entry := REWARDS.get(name):
            wanted = ({"weights": name} if entry.weights and not path else {}) | dict(entry.parts)
            names |= dict.fromkeys(part for part in wanted.values() if not _beside(path, part))
    return list(names)


def local_copies(expression: str) -> dict[str, Path]:
    """What is loaded from given paths, by name: published rewards (``imagereward=PATH``) and fitted ones."""
    out = {}
    for term in _terms(expression):
        name, _, path = term.partition("=")
        if path and name in REWARDS:
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
            f"the fitted reward {name}: expected one of {', '.join(REWARDS)} below it, received "
            f"{short(base)}. Fit it again."
        )
    return base


def _is_listed(name: str) -> bool:
    return name.partition("=")[0] in REWARDS


def check_judge(reward: str, judge: str) -> None:
    """A judge must be another model than those that are optimized.

    Raises:
        ConfigError: a model of ``judge`` is in ``reward``.
    """
    climbed = names_of(reward)
    if same := [name for name in names_of(judge) if name in climbed]:
        others = [name for name in REWARDS if name not in climbed]
        raise ConfigError(
            f"judge {judge!r}: expected a model that is not optimized, received {same[0]} of reward {reward!r}. "
            f"Choose another, such as {others[0]}."
        )


def _check_name(name: str) -> None:
    if _is_listed(name):
        known, _, path = name.partition("=")
        entry = REWARDS[known]
        if path and not (entry.weights or entry.source):
            raise ConfigError(f"reward {known}: expected no path, for it brings its own weights, received {path!r}.")
    elif ":" not in name and not _fitted(name):
        raise ConfigError(
            f"unknown reward {name!r}: expected one of {', '.join(REWARDS)}, a published one with a local copy "
            "(imagereward=PATH), a folder that `psd-gs fit-reward` wrote, or a function (module:function, "
            "file.py:function)."
        )


def _load_one(name: str, device: torch.device | str, dtype: torch.dtype | None) -> Reward:
    from psd_gs.rewards.base import CallableReward, FeatureReward
    from psd_gs.rewards.fitted import FittedReward, load_head

    if base := _fitted(name):
        below = _load_one(base, device, dtype)
        if not isinstance(below, FeatureReward):
            raise ModelError(
                f"the fitted reward {name}: expected a base that tells its features, received {base}. Fit it again."
            )
        return FittedReward(below, load_head(name), name)
    if not _is_listed(name):
        return CallableReward(_import_function(name), name)
    return _load_entry(name, device, dtype)


def _load_entry(name: str, device: torch.device | str, dtype: torch.dtype | None) -> Reward:
    """A reward of the table, from the given path or what is published."""
    import torch

    from psd_gs import weights

    known, _, path = name.partition("=")
    entry = REWARDS[known]
    if entry.source and not path:
        raise ModelError(f"reward {known} is on no hub: download {entry.source}, and name it with {known}=PATH.")
    if path and not Path(path).expanduser().exists():
        raise ModelError(f"reward {known}: expected its weights at {path}, received nothing. Check the path.")
    if entry.weights or entry.source:
        dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.float16)
    parts = {part: _beside(path, download) or weights.locate(download) for part, download in entry.parts.items()}
    files = path or (weights.locate(known) if entry.weights else None)
    with REWARDS.explained(known):
        return resolved(entry.load)(files, name=name, device=device, dtype=dtype, **parts, **entry.options)


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
