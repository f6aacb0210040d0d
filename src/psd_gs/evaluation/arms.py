"""Arms of a comparison: options over a preset, by name.

| arm | is |
|---|---|
| ``psd``, ``dreamdpo``, ``rewardsds``, ``dreamfl``, ``none`` | the preset with this preference score |
| ``NAME*N``, ``best-of-N`` | N seeds of it (of ``none``), of which the reward picks one |
| ``NAME:KEY=VALUE,KEY=VALUE`` | options over the preset, or over the preference NAME |
| ``NAME=FILE.yaml`` | the same from a file |
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, get_args

from psd_gs.config import parse_overrides, read_yaml, split_pairs
from psd_gs.config.guidance import Preference
from psd_gs.errors import ConfigError

BASE = "none"
"""The arm without a preference score."""

SHARED = ("prompt", "seed", "preset", "prior", "prior_size", "reward", "judge", "device", "dtype", "vram", "weights")
"""Options that all arms have in common."""


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        name: for tables and folders.
        options: over the preset, nested.
        runs: seeds that share the arm's budget; the optimized reward picks one of the results.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    runs: int = 1

    @property
    def folder(self) -> str:
        """The name without what a file system may refuse."""
        return self.name.replace("*", "x")


def parse_arm(text: str) -> Arm:
    """An arm as it is written on the command line, see the module.

    Raises:
        ConfigError: another form, an unknown name without options, or options that all arms share.
    """
    match = re.fullmatch(r"([\w.+-]+)(?:\*(\d+))?(?:([=:])(.+))?", text.strip())
    if not match:
        raise ConfigError(
            "expected an arm such as NAME, NAME*N, best-of-N, NAME:KEY=VALUE,KEY=VALUE or NAME=FILE.yaml, "
            f"received {text!r}."
        )
    name, number, mark, rest = match.groups()
    runs = int(number or 1)
    best = re.fullmatch(r"best-of-(\d+)", name)
    options: dict[str, Any] = {}
    if best:
        runs *= int(best[1])
    if best or name in get_args(Preference):
        options = {"guidance": {"preference": BASE if best else name}}
    elif not rest:
        known = ", ".join([*get_args(Preference), "best-of-N"])
        raise ConfigError(
            f"arm: expected one of {known}, or options such as {name}:guidance.psd.weight=3, received {text!r}."
        )
    if rest:
        given = read_yaml(rest) if mark == "=" else parse_overrides(split_pairs(rest))
        if shared := [key for key in given if key in SHARED]:
            raise ConfigError(f"arm {name}: {', '.join(shared)} is the same for all arms. Leave it out of the arm.")
        guidance = options.get("guidance", {}) | given.get("guidance", {})
        options = given | ({"guidance": guidance} if guidance else {})
    if runs < 1:
        raise ConfigError(f"arm {text!r}: expected 1 run or more, received {runs}.")
    return Arm(name if not number else f"{name}*{number}", options, runs)


def parse_arms(texts: Iterable[str]) -> list[Arm]:
    """Several, of different names.

    Raises:
        ConfigError: see :func:`parse_arm`; none, or two of one name.
    """
    arms = [parse_arm(text) for text in texts]
    names = [arm.folder for arm in arms]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"arms: expected different names, received {', '.join(double)} more than once.")
    if not arms:
        raise ConfigError("arms: expected one or more, such as psd,none, received none.")
    return arms
