"""What every option means, read off the dataclasses themselves."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from psd_gs.config import PRESETS, Config, make_config, to_dict
from psd_gs.entries import FAMILIES
from psd_gs.errors import ConfigError

NOT_OPTIONS = ("prompt", "preset", "weights")
"""Fields that a run records but nobody sets."""


@dataclass(frozen=True)
class Option:
    """One option of a run.

    Attributes:
        name: with its sections, as ``--set`` takes it: ``guidance.psd.weight``.
        kind: its type or choices.
        text: what it means.
        range: the values that are accepted; empty if it has none.
        default: without a preset.
        presets: other values, by the family of the prior and the preset; one value for all presets of a family where
            they agree.
    """

    name: str
    kind: str
    text: str
    range: str
    default: Any
    presets: Mapping[str, str]


def options(word: str = "") -> list[Option]:
    """All options, or those whose name or meaning has the ``word`` in it; plug-ins' sections included."""
    found = _walk(Config, Config(), "")
    return [option for option in found if word.lower() in f"{option.name} {option.text}".lower()]


def _walk(cls: type, default: Any, prefix: str) -> Iterator[Option]:
    hints, texts = get_type_hints(cls), docstrings(cls)
    for f in fields(cls):
        hint, value, name = hints[f.name], getattr(default, f.name), prefix + f.name
        if name in NOT_OPTIONS:
            continue
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _walk(hint, value, f"{name}.")
        elif sections := f.metadata.get("sections"):
            for section in value or {}:
                yield from _walk(sections(section), value[section], f"{prefix}{section}.")
        else:
            yield Option(
                name, _kind(hint), texts.get(f.name, ""), _range(default, f.name), value, _presets(name, value)
            )


def _kind(hint: Any) -> str:
    args = get_args(hint)
    if get_origin(hint) is Literal:
        return " | ".join(map(str, args))
    if get_origin(hint) is tuple:
        if args[-1] is Ellipsis:
            return f"list of {_kind(args[0])}"
        return ", ".join(map(_kind, args))
    if args:  # a union with None
        return " | ".join("none" if arg is type(None) else _kind(arg) for arg in args)
    return getattr(hint, "__name__", str(hint))


def docstrings(cls: type) -> dict[str, str]:
    """The text below each field of a dataclass, in one line."""
    out: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                out[field.target.id] = " ".join(str(below.value.value).split())  # type: ignore[attr-defined]
    return out


def _range(default: Any, name: str) -> str:
    """The interval that the dataclass names when it refuses what is no number."""
    value = getattr(default, name)
    numbers = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        return ""
    wrong = tuple(float("nan") for _ in numbers)
    try:
        replace(default, **{name: wrong if isinstance(value, tuple) else wrong[0]})
    except ConfigError as error:
        match = re.search(r"expected a value from (\S+) (?:upwards|to (\S+)), received", str(error))
        return "" if not match else f"{match[1]} to {match[2]}" if match[2] else f"from {match[1]}"
    return ""


@cache
def _values(preset: str, family: str) -> dict[str, Any]:
    return to_dict(make_config(preset, family))


def _presets(name: str, default: Any) -> dict[str, str]:
    """Where presets say something else."""
    plain = list(default) if isinstance(default, tuple) else default
    out: dict[str, str] = {}
    for family in FAMILIES:
        values = {}
        for preset in PRESETS:
            value: Any = _values(preset, family)
            for part in name.split("."):
                value = value[part]
            values[preset] = value
        if all(value == plain for value in values.values()):
            continue
        if len({str(value) for value in values.values()}) == 1:
            out[family] = str(values["default"])
        else:
            out[family] = ", ".join(f"{preset} {value}" for preset, value in values.items())
    return out
