"""Every option is described, with the range and the defaults that count."""

from __future__ import annotations

import pytest

from psd_gs import cli
from psd_gs.config import Config, from_dict, make_config, merged, parse_overrides, to_dict
from psd_gs.config.describe import NOT_OPTIONS, options
from psd_gs.errors import ConfigError


def leaves(data: dict, prefix: str = "") -> set[str]:
    nested = {name: value for name, value in data.items() if isinstance(value, dict) and name not in NOT_OPTIONS}
    names = {prefix + name for name in data if name not in nested and prefix + name not in NOT_OPTIONS}
    return names.union(*(leaves(value, f"{prefix}{name}.") for name, value in nested.items()))


def test_every_option_is_listed_once_and_explained():
    found = options()
    names = [option.name for option in found]
    assert len(names) == len(set(names))
    assert set(names) == leaves(to_dict(Config()))
    assert [option.name for option in found if not option.text] == []


def test_ranges_are_those_that_are_checked():
    for option in options():
        if option.range and not isinstance(option.default, tuple):
            low = float(option.range.removeprefix("from ").split(" to ")[0])
            if low == float("-inf"):
                continue
            wrong = to_dict(Config())
            below = merged(wrong, parse_overrides([f"{option.name}={low - 1:.17g}"]))
            with pytest.raises(ConfigError):
                from_dict(Config, below, "")


def test_defaults_are_those_of_the_presets():
    (weight,) = options("guidance.psd.weight")
    assert weight.default == Config().guidance.psd.weight
    assert weight.presets["mini"] == str(make_config("default", "mini").guidance.psd.weight)
    assert weight.range == "from 0"
    (steps,) = (option for option in options("steps") if option.name == "steps")
    values = [make_config(preset, "mini").steps for preset in ("draft", "default", "quality")]
    assert steps.presets["mini"] == "draft {}, default {}, quality {}".format(*values)


def test_the_command(capsys):
    cli.main(["options", "guard"])
    out = capsys.readouterr().out
    assert "guidance.psd.guard  (float, from 0)\n    Largest norm of the weighted preference score" in out
    assert "Default: 1.0; mini: 2.0." in " ".join(out.split())
    cli.main(["options", "pooling"])
    assert "guidance.psd.pooling  (mean | min | softmin)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["options", "xyzzy"])
    assert "no option has 'xyzzy'" in capsys.readouterr().err
