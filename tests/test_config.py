"""Options: presets, files, precedence, and what is said about wrong ones."""

from __future__ import annotations

import random
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from psd_gs import config as config_module
from psd_gs.config import (
    PRESETS,
    CameraConfig,
    Config,
    DensifyConfig,
    InitConfig,
    OptimizerConfig,
    configs_folder,
    from_dict,
    make_config,
    merged,
    preset,
    read_yaml,
    suggestion,
    to_dict,
)
from psd_gs.config.guidance import GuidanceConfig, NegativeConfig, PSDConfig, check_range
from psd_gs.entries import FAMILIES, PUBLISHED
from psd_gs.errors import ConfigError

CHECKOUT = Path(__file__).resolve().parents[1] / "configs"


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_load(name, family):
    made = make_config(name, family)
    assert made.preset == name
    sections = yaml.safe_load((CHECKOUT / f"{name}.yaml").read_text(encoding="utf-8"))
    shared = sections.get("published", {}) if family in PUBLISHED else {}
    written = merged(sections.get("common", {}), shared, sections.get(family, {}))
    assert written

    def check(options: dict[str, Any], where: Any) -> None:
        for key, value in options.items():
            if isinstance(value, dict):
                check(value, getattr(where, key))
            else:
                expected = tuple(value) if isinstance(value, list) else value
                assert getattr(where, key) == expected, key

    check(written, made)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_files_have_no_stray_sections(name):
    sections = yaml.safe_load((CHECKOUT / f"{name}.yaml").read_text(encoding="utf-8"))
    assert set(sections) <= {"base", "common", "published", *FAMILIES}


def test_a_preset_says_only_what_its_base_does_not():
    for name in set(PRESETS) - {"default"}:
        assert make_config(name, "mini").guidance == make_config("default", "mini").guidance
        for family in FAMILIES:
            own = yaml.safe_load((CHECKOUT / f"{name}.yaml").read_text(encoding="utf-8")).get(family, {})
            base = to_dict(make_config("default", family))
            for key, value in own.items():
                assert merged(base, {key: value})[key] != base[key], f"{name}, {family}: {key} is the default's"


def test_preset_folder_of_this_installation():
    assert {path.name for path in configs_folder().glob("*.yaml")} == {path.name for path in CHECKOUT.glob("*.yaml")}
    for path in configs_folder().glob("*.yaml"):
        assert path.read_bytes() == (CHECKOUT / path.name).read_bytes()


@pytest.mark.parametrize("packed", [True, False])
def test_presets_load_from_a_wheel_and_from_a_checkout(tmp_path, monkeypatch, packed):
    package = tmp_path / "src" / "psd_gs"
    folder = package / "configs" if packed else tmp_path / "configs"
    folder.mkdir(parents=True)
    package.mkdir(parents=True, exist_ok=True)
    (folder / "draft.yaml").write_text("common: {}\nmini: {steps: 77}\n")
    monkeypatch.setattr(config_module.resources, "files", lambda name: package)
    monkeypatch.setattr(config_module, "__file__", str(package / "config" / "__init__.py"))
    assert configs_folder() == folder
    assert make_config("draft", "mini").steps == 77


def test_family_section_goes_over_common(tmp_path, monkeypatch):
    (tmp_path / "draft.yaml").write_text(
        "common: {steps: 5, guidance: {method: sds, rescale: 0.1}}\nmini: {guidance: {rescale: 0.2}}\n"
    )
    monkeypatch.setattr(config_module, "configs_folder", lambda: tmp_path)
    mini, other = make_config("draft", "mini"), make_config("draft", "mvdream")
    assert (mini.steps, mini.guidance.method, mini.guidance.rescale) == (5, "sds", 0.2)
    assert other.guidance.rescale == 0.1


def test_tiers_cost_more_in_order():
    steps = [make_config(name, "mini").steps for name in PRESETS]
    assert steps == sorted(steps)
    assert len(set(steps)) == 3


def test_default_preset_has_pair_and_refinement_on():
    guidance = make_config("default", "mini").guidance
    assert guidance.preference == "psd"
    assert guidance.psd.weight > 0
    assert guidance.psd.start < 1
    assert guidance.negative.mode != "off"
    assert guidance.negative.start < 1


def test_unknown_preset():
    with pytest.raises(ConfigError, match=r"unknown preset 'drafty'. Did you mean draft\?"):
        preset("drafty", "mini")
    with pytest.raises(ConfigError, match=r"unknown preset 'xyz'. Known: draft, default, quality."):
        make_config("xyz", "mini")


# --- precedence and round trip ---------------------------------------------------------------------------------------


def test_precedence():
    file = {"steps": 40, "guidance": {"guidance_scale": 3.0, "psd": {"weight": 0.5}}}
    flags = {"steps": 50, "guidance": {"psd": {"weight": 0.25}}}
    made = make_config("default", "mini", file, flags)
    assert made.steps == 50
    assert made.guidance.psd.weight == 0.25
    assert made.guidance.guidance_scale == 3.0
    untouched = make_config("default", "mini")
    assert made.guidance.psd.antithetic == untouched.guidance.psd.antithetic
    assert made.cameras == untouched.cameras


def test_merged_leaves_its_arguments_alone():
    base, update = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "d": {"e": 5}}
    assert merged(base, update, {"a": {"c": 6}}) == {"a": {"b": 4, "c": 6}, "d": {"e": 5}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
    assert update == {"a": {"b": 4}, "d": {"e": 5}}


def shaken(cls: type, rng: random.Random) -> Any:
    """The dataclass with every number moved a little and every choice drawn anew."""
    values = {}
    for name, hint in get_type_hints(cls).items():
        value = getattr(cls(), name)
        if is_dataclass(hint):
            values[name] = shaken(hint, rng)
        elif get_origin(hint) is Literal:
            values[name] = rng.choice(get_args(hint))
        elif isinstance(value, bool):
            values[name] = rng.random() < 0.5
        elif isinstance(value, int):
            values[name] = value + rng.randint(0, 5)
        elif isinstance(value, float):
            values[name] = value * rng.uniform(0.9, 1)
        elif isinstance(value, tuple):
            values[name] = tuple(
                v + rng.randint(0, 3) if isinstance(v, int) else v * rng.uniform(0.9, 1) for v in value
            )
        elif name == "others":  # of packages that are not installed
            values[name] = {}
        elif isinstance(value, dict):
            values[name] = {"mvdream/unet": f"{rng.getrandbits(256):064x}"}
        else:
            values[name] = rng.choice([value, "off", "1e-3", "äöü: [x]", "yes", "3"])
    if cls.__name__ == "TimestepConfig":
        values["t_min_start"], values["t_min_end"] = 0.5, 0.01
        values["dreamtime"] = (0.7, 0.6, 0.2, 0.1)
    if cls.__name__ == "RefineConfig":
        values |= {"box": rng.choice([None, (0.5, -1.0, 0.0, 1.0, 1e-3, 2.0)]), "sphere": None, "mask": None}
        values |= {
            "texture_size": 0,
            "max_splats": rng.choice([None, 7]),
            "up": rng.choice([None, "-z"]),
            "front": None,
        }
    return cls(**values)


@pytest.mark.parametrize("seed", range(6))
def test_yaml_round_trip(seed):
    made = shaken(Config, random.Random(seed))
    text = yaml.safe_dump(to_dict(made), allow_unicode=True)
    assert from_dict(Config, yaml.safe_load(text), "config") == made


def test_defaults_round_trip_and_infinity():
    assert from_dict(Config, to_dict(Config()), "config") == Config()
    unguarded = replace(Config(), guidance=GuidanceConfig(psd=PSDConfig(guard=float("inf"))))
    assert from_dict(Config, yaml.safe_load(yaml.safe_dump(to_dict(unguarded))), "config") == unguarded


def test_to_dict_is_plain_and_complete():
    def check(data: Any, cls: type) -> None:
        hints = get_type_hints(cls)
        assert list(data) == [f.name for f in fields(cls) if "sections" not in f.metadata]
        for name, value in data.items():
            if is_dataclass(hints[name]):
                check(value, hints[name])
            else:
                assert isinstance(value, str | int | float | bool | list | dict | None), name

    check(to_dict(Config()), Config)


# --- conversions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("guidance: {rescale: 1}", "guidance.rescale", 1.0),
        ("guidance: {negative: {lr: 1e-3}}", "guidance.negative.lr", 1e-3),
        ("cameras: {size: [32, 64]}", "cameras.size", (32, 64)),
        ("cameras: {fov: [20, 50.5]}", "cameras.fov", (20.0, 50.5)),
        ("negative_embedding: null", "negative_embedding", None),
        ("negative_embedding: x.safetensors", "negative_embedding", "x.safetensors"),
        ("guidance: {negative: {mode: off}}", "guidance.negative.mode", "off"),
        ("guidance: {preference: none}", "guidance.preference", "none"),
        ("guidance: {psd: {antithetic: no}}", "guidance.psd.antithetic", False),
        ("guidance: {psd: {guard: .inf}}", "guidance.psd.guard", float("inf")),
    ],
)
def test_values_that_yaml_writes_in_its_own_way(text, path, value):
    found: Any = from_dict(Config, yaml.safe_load(text), "config")
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"stepz": 3}, r"config: unknown option 'stepz'. Did you mean steps\?"),
        ({"guidance": {"guidence_scale": 3}}, r"config.guidance: unknown option 'guidence_scale'. Did you mean guid"),
        ({"guidance": {"psd": {"antithetical": True}}}, r"config.guidance.psd: unknown option 'antithetical'. Did "),
        ({"qwertyuiop": 1}, r"unknown option 'qwertyuiop'. Known: prompt, seed, preset"),
        ({3: 1}, r"unknown option 3. Known: "),
        ({"steps": "many"}, r"config.steps: expected int, received 'many'."),
        ({"steps": 3.5}, r"config.steps: expected int, received 3.5."),
        ({"steps": True}, r"config.steps: expected int, received True."),
        ({"steps": None}, r"config.steps: expected int, received None."),
        ({"prompt": 7}, r"config.prompt: expected str, received 7."),
        ({"guidance": 3}, r"config.guidance: expected options by name, received 3."),
        ({"guidance": {"rescale": "much"}}, r"config.guidance.rescale: expected float, received 'much'."),
        ({"guidance": {"rescale": True}}, r"config.guidance.rescale: expected float, received True."),
        ({"guidance": {"method": "sdz"}}, r"config.guidance.method: expected 'sds' or 'recon' or .*, received 'sdz'."),
        ({"guidance": {"method": ["sds"]}}, r"config.guidance.method: expected 'sds' or .*, received \['sds'\]."),
        ({"guidance": {"psd": {"antithetic": 1}}}, r"config.guidance.psd.antithetic: expected bool, received 1."),
        ({"cameras": {"size": [64]}}, r"config.cameras.size: expected .*, received \[64\]."),
        ({"cameras": {"size": 64}}, r"config.cameras.size: expected .*, received 64."),
        ({"cameras": {"fov": [20, "wide"]}}, r"config.cameras.fov: expected float, received 'wide'."),
        ({"steps": 0}, r"config.steps: expected a value from 1 .*, received 0."),
        ({"seed": -1}, r"config.seed: expected a value from 0 .*, received -1."),
        ({"seed": 2**80}, r"config.seed: expected a value from 0 "),
        ({"init": {"count": 0}}, r"config.init.count: expected a value from 1 .*, received 0."),
        ({"init": {"opacity": 1.0}}, r"config.init.opacity: expected a value from 0.001 to 0.999, received 1.0."),
        ({"cameras": {"size": [64, 0]}}, r"config.cameras.size: expected a value from 8 to 4096, received \(64, 0\)."),
        ({"cameras": {"fov": [0, 50]}}, r"config.cameras.fov: expected a value from 1 to 170, received"),
        ({"optimizer": {"means": [0, 0]}}, r"config.optimizer.means: expected a value from 1e-12 to 1, received"),
        ({"densify": {"grow": 1.5}}, r"config.densify.grow: expected a value from 0 to 1, received 1.5."),
        ({"densify": {"prune_opacity": float("nan")}}, r"config.densify.prune_opacity: expected a value from 0 to 1"),
        ({"guidance": {"rescale": 2}}, r"config.guidance.rescale: expected a value from 0 to 1, received 2.0."),
    ],
)  # fmt: skip
def test_wrong_options_are_named(data, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_dict(Config, data, "config")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0, 3, "a value from 0 to 3"),
        (0, float("inf"), "a value from 0 upwards"),
        (float("-inf"), float("inf"), "a number"),
    ],
)
def test_a_bound_that_is_none_is_not_told(low, high, message):
    with pytest.raises(ConfigError, match=f"opacity: expected {message}, received nan"):
        check_range(SimpleNamespace(opacity=float("nan")), low, high, "opacity")


@pytest.mark.parametrize("cls", [InitConfig, CameraConfig, OptimizerConfig, DensifyConfig, NegativeConfig])
def test_every_number_is_checked(cls):
    """No field takes NaN, which would pass through comparisons and end in a blank asset."""
    for field in fields(cls):
        value = getattr(cls(), field.name)
        if isinstance(value, float):
            with pytest.raises(ConfigError, match=field.name):
                cls(**{field.name: float("nan")})
        elif isinstance(value, tuple) and isinstance(value[0], float):
            with pytest.raises(ConfigError, match=field.name):
                cls(**{field.name: (value[0], float("nan"))})


# --- files -----------------------------------------------------------------------------------------------------------


def test_unreadable_yaml(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*missing.yaml: No such file or directory. Check the path."):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match=r"cannot read "):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"steps: [1, 2", b"\xff\xfe\x00", b"a: b: c", b"steps: !!python/object:os.system x", b"when: 2020-13-45"],
)
def test_invalid_yaml_is_one_clear_line(tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken.yaml is not valid YAML \(.*\). Compare it with") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_yaml_that_is_no_mapping(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match=r"expected options by name, received list"):
        read_yaml(path)
    path.write_text("# steps: 5\n")
    assert read_yaml(path) == {}


def test_suggestions():
    assert suggestion("draf", PRESETS) == " Did you mean draft?"
    assert re.fullmatch(r" Known: draft, default, quality\.", suggestion("zzz", PRESETS))
