"""Packages that add priors, rewards, preferences and exporters: the one of the guide, and broken ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from conftest import ROOT

from psd_gs.cli import main
from psd_gs.config import Config, GuidanceConfig, from_dict, make_config, to_dict
from psd_gs.config import guidance as guidance_module
from psd_gs.entries import PREFERENCES, PRIORS, REWARDS
from psd_gs.errors import ConfigError, InputError, PluginError
from psd_gs.export.formats import FORMATS, save
from psd_gs.gaussians import random_ball
from psd_gs.models import models_of, published, resolve
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.plugins import Registry
from psd_gs.priors import load_prior, prior_family
from psd_gs.rewards import load_reward
from psd_gs.testing import check_preference, check_prior, check_reward

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guide" / "extending.md"
TABLES = {"psd_gs.priors": PRIORS, "psd_gs.rewards": REWARDS, "psd_gs.preferences": PREFERENCES}

BROKEN = {
    "pyproject.toml": """
[project]
name = "psd-gs-faulty"
version = "2.0"
[project.entry-points."psd_gs.priors"]
crashing = "psd_gs_faulty:ENTRY"
leaving = "psd_gs_faulty_exit:ENTRY"
mini = "psd_gs_faulty:ENTRY"
[project.entry-points."psd_gs.rewards"]
absent = "psd_gs_nowhere:ENTRY"
mistyped = "psd_gs_sound:NUMBER"
stumbling = "psd_gs_sound:STUMBLING"
[project.entry-points."psd_gs.preferences"]
best = "psd_gs_faulty:ENTRY"
unfit = "psd_gs_sound:UNFIT"
""",
    "psd_gs_faulty.py": 'raise RuntimeError("no such\\nluck")\n',
    "psd_gs_faulty_exit.py": "import sys\nsys.exit(3)\n",
    "psd_gs_sound.py": """
from psd_gs.entries import PreferenceEntry, RewardEntry
NUMBER = 3
STUMBLING = RewardEntry(lambda path, **options: 1 / 0)
UNFIT = PreferenceEntry(dict)
""",
}


def guide_files() -> dict[str, str]:
    """The files of the page's package."""
    blocks = re.findall(r"^```\w+ title=\"([^\"]+)\"\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    return dict(blocks) | {"psd_gs_example/__init__.py": ""}


def install(files: dict[str, str], target: Path) -> None:
    """What ``pip install --target`` leaves of a pure package: its files, and its metadata beside them."""
    for name, text in files.items():
        if name.endswith(".py"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_text(text, encoding="utf-8")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    fields = {"Name": project["name"], "Version": project["version"], "License-Expression": project.get("license", "")}
    header = "".join(f"{key}: {value}\n" for key, value in fields.items() if value)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\n{header}", encoding="utf-8")
    points = (
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text("\n".join(points), encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the package of the guide and the broken one."""
    target = tmp_path_factory.mktemp("site")
    install(guide_files(), target)
    install(BROKEN, target)
    return target


@pytest.fixture(scope="module")
def installed(site):
    """This process, as if it had been started with both packages installed."""
    tables = (*TABLES.values(), FORMATS)
    assert not any(table.plugins for table in tables), "of the packages that are really installed"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        for table in tables:
            fresh = Registry(table.kind, table.entry, table.group, table.own, table.prefix)
            patch.setattr(table, "plugins", fresh.plugins)
        patch.setattr(guidance_module, "Preference", Literal[tuple(PREFERENCES)])
        guidance_module.hints_of.cache_clear()
        yield
        for table in tables:
            table._loaded.clear()
    guidance_module.hints_of.cache_clear()


# --- the package of the guide ----------------------------------------------------------------------------------------


def test_names_are_known_before_anything_is_imported(site):
    code = (
        "import sys; from psd_gs.config.guidance import Preference; from psd_gs.entries import PRIORS, REWARDS; "
        "from typing import get_args; assert 'best' in get_args(Preference); assert 'plain' in PRIORS; "
        "assert {'colourful', 'absent'} < set(REWARDS); "
        "assert not [name for name in sys.modules if name == 'torch' or name.startswith(('psd_gs_', 'PIL'))]"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_the_kit_passes(installed):
    check_prior(load_prior("plain"))
    check_reward(load_reward("colourful"))
    check_preference("best", {"share": 0.5})


def test_a_run_with_all_of_them(installed, tmp_path):
    assert resolve("plain", "auto", "auto") == ("plain", "mini", "mini-judge")
    assert published("plain", "colourful", "mini-judge") == []
    pipeline = TextTo3DPipeline.from_pretrained("plain", reward="colourful", judge="mini-judge")
    assert prior_family("plain") == "plain"
    options = {"guidance": {"preference": "best", "best": {"start": 0.0}}, "init": {"count": 60}}
    result = pipeline("a red ball", preset="draft", steps=3, overrides=options)
    made = to_dict(result.config)
    assert (made["prior"], made["cameras"]["size"], made["solid_steps"]) == (
        "plain",
        [32, 32],
        0,
    )  # the entry's presets
    assert made["guidance"]["best"]["share"] == 1.0
    assert from_dict(Config, json.loads(json.dumps(made)), "config") == result.config
    assert set(result.scores) == {"colourful", "mini-judge"}
    package = {"repository": "package psd-gs-example 0.1", "licence": "MIT"}
    assert models_of(result.config)["reward"] == [{"name": "colourful", **package}]
    save(result.gaussians, tmp_path / "ball.xyz")
    rows = [line.split() for line in (tmp_path / "ball.xyz").read_text().splitlines()]
    assert len(rows) == len(result.gaussians)
    assert [float(value) for value in rows[0][:3]] == pytest.approx(result.gaussians.means[0].tolist(), rel=1e-4)


def test_the_presets_of_an_entry_go_over_those_of_its_family(installed):
    ours, theirs = make_config("draft", "mini"), make_config("draft", "plain")
    assert theirs.steps == 40
    assert theirs.optimizer == ours.optimizer
    assert theirs.guidance == ours.guidance
    assert make_config("default", "plain").steps == make_config("default", "mini").steps


def test_sums_use_the_units_of_an_entry(installed):
    pictures = torch.rand(1, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = load_reward("colourful").score(pictures, ["a"])
    torch.testing.assert_close(load_reward("colourful:2").score(pictures, ["a"]), 2 * (alone - 0.15) / 0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best": {"shere": 1}}, r"test\.best: unknown option 'shere'. Did you mean share"),
        ({"best": {"share": "most"}}, r"test\.best\.share: expected float, received 'most'"),
        ({"best": {"share": 3}}, r"test\.best\.share: expected a value from 0 to 1, received 3.0"),
        ({"bast": {}}, "unknown option 'bast'"),
        ({"preference": "bast"}, "test.preference: expected .*'best'"),
        ({"others": {"best": {}}}, "unknown option 'others'"),
    ],
)
def test_options_are_checked_like_ours(installed, options, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(GuidanceConfig, options, "test")


def test_options_of_a_preference_that_is_not_chosen_are_kept(installed):
    config = from_dict(GuidanceConfig, {"best": {"share": 0.25}}, "test")
    assert (config.preference, config.others["best"].share) == ("psd", 0.25)
    assert to_dict(config)["best"]["share"] == 0.25
    assert "best" not in to_dict(GuidanceConfig())


# --- broken packages -------------------------------------------------------------------------------------------------


def test_a_broken_package_is_a_line_of_warning(installed, capsys):
    main(["models", "list"])
    listed = capsys.readouterr().out.splitlines()
    rows = [re.split(r"  +", line) for line in listed]
    assert ["plain", "prior", "installed", "yes", "MIT", "psd-gs-example 0.1"] in rows
    assert next(row for row in rows if row[0] == "mvdream")[:5] == ["mvdream", "prior", "2.6 GB", "no", "3.0 GB"]
    assert {row[0] for row in rows if row[-1] == "psd-gs-example 0.1"} == {"plain", "colourful", "best", ".xyz"}
    warnings = [line for line in listed if line.startswith("warning: ")]
    expected = [
        "prior crashing of the package psd-gs-faulty 2.0 is broken (RuntimeError: no such). Update the package, or "
        "uninstall it: pip uninstall psd-gs-faulty.",
        "prior leaving of the package psd-gs-faulty 2.0 is broken (SystemExit: 3).",
        "prior mini of psd-gs-faulty 2.0 is hidden by that of psd-gs",
        "reward absent of the package psd-gs-faulty 2.0 is broken (ModuleNotFoundError: No module named",
        "reward mistyped of the package psd-gs-faulty 2.0 is broken (TypeError: expected psd_gs_sound:NUMBER to be a "
        "RewardEntry, received 3)",
        "preference best of psd-gs-faulty 2.0 is hidden by that of psd-gs-example 0.1",
    ]
    for warning, start in zip(warnings, expected, strict=False):
        assert warning.startswith(f"warning: {start}")
    assert len(warnings) == len(expected)
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--offline"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert "ok       prior plain: of the package psd-gs-example 0.1" in told
    assert "note     prior crashing: prior crashing of the package psd-gs-faulty 2.0 is broken" in told


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: load_prior("crashing"), "prior crashing of the package psd-gs-faulty 2.0 is broken .RuntimeError"),
        (lambda: load_reward("stumbling"), "reward stumbling of .* is broken .ZeroDivisionError: division by zero"),
        (lambda: check_preference("unfit"), "preference unfit of .* expected a subclass of Preference, received"),
    ],
)
def test_using_it_is_one_line_of_error(installed, use, message):
    with pytest.raises(PluginError, match=message):
        use()


def test_nobody_is_replaced(installed):
    assert PRIORS["mini"] is PRIORS.own["mini"]
    assert PREFERENCES.package("best") == "psd-gs-example 0.1"


def test_an_exporter_that_fails_is_told(installed, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[FORMATS[".xyz"].write.__module__], "write_atomic", None)
    ball = random_ball(3, 0.5, scale=0.1, opacity=0.5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(PluginError, match=r"exporter .xyz of the package psd-gs-example 0.1 is broken .TypeError"):
        save(ball, tmp_path / "ball.xyz")
    with pytest.raises(InputError, match=r"expected a splat file, one of .*\.xyz"):
        save(ball, tmp_path / "ball.abc")


@pytest.mark.full
def test_pip_installs_the_package_of_the_guide(tmp_path):
    for name, text in guide_files().items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text(text, encoding="utf-8")
    how = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--target", str(tmp_path / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *how, str(tmp_path / "source")], check=True, timeout=120)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])}

    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", *arguments], env=environment, check=True, timeout=300, cwd=tmp_path)

    run("pytest", "-q", str(tmp_path / "source" / "tests"))
    own = ["--prior", "plain", "--reward", "colourful", "--preference", "best"]
    run("psd_gs", "generate", "a red ball", *own, "--steps", "5")
    run("psd_gs", "export", "outputs/a-red-ball-0/splat.ply", "ball.xyz")
    assert (tmp_path / "ball.xyz").stat().st_size > 0


@pytest.mark.full
def test_the_preference_of_the_examples(tmp_path):
    """Installed beside the program, by its name and with its own options; the kit passes."""
    folder = ROOT / "examples" / "own_preference"
    target, out = tmp_path / "site", tmp_path / "out"
    install({path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.is_file()}, target)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), *sys.path])}
    kit = "from psd_gs.testing import check_preference; check_preference('away', {'weight': 2.0})"
    subprocess.run([sys.executable, "-c", kit], check=True, env=environment, timeout=300)
    command = ["generate", "a red ball", "--preference", "away", "--steps", "4", "--preset", "draft", "--prior", "mini"]
    command += ["--set", "guidance.away.weight=2", "--set", "solid_steps=0", "--output-dir", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "psd_gs", *command], env=environment, timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((out / "a-red-ball-0" / "config.yaml").read_text(encoding="utf-8"))
    assert config["guidance"]["preference"] == "away"
    assert config["guidance"]["away"]["weight"] == 2.0
