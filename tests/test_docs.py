"""The documents: links, paths and commands are right, the README's commands and the examples run."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import sys
import webbrowser
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
from PIL import Image

import psd_gs
from psd_gs import cli, config
from psd_gs.evaluation.arms import parse_arm
from psd_gs.export.formats import load
from psd_gs.guidance.guide import check_combination
from psd_gs.mesh import build
from psd_gs.runs import is_finished

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
RESULTS = sorted(path for path in (ROOT / "docs" / "results").glob("*.md") if path.stem != "index")
IDS = [path.relative_to(ROOT).as_posix() for path in PAGES]


# --- pages -----------------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


def anchors(page: Path) -> set[str]:
    """What ``#...`` may name in a page: its headings as GitHub and mkdocs write them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8").replace("\n", " ")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if path.parent.name == "reference":  # made of the docstrings when the site is built
            path = Path(psd_gs.__file__).parent / path.stem
            assert path.is_dir() or path.with_suffix(".py").exists(), target
            continue
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_documents_that_the_code_names_exist():
    folders = [ROOT / name for name in ("src/psd_gs", "configs", "tools", "tests", ".github", "examples")]
    for path in (path for folder in folders for path in folder.rglob("*")):
        if path.suffix not in {".py", ".yaml", ".yml", ".txt", ".md"} or "node_modules" in path.parts:
            continue
        for name in re.findall(r"\bdocs/[\w./-]+\.(?:md|png)", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}"


@pytest.mark.parametrize("page", RESULTS, ids=[path.stem for path in RESULTS])
def test_a_result_has_its_command_machine_and_date(page):
    text = page.read_text(encoding="utf-8")
    assert "```sh\n" in text
    assert re.search(r"AMD|Intel|Apple|NVIDIA", text)
    assert re.search(r"\b20\d\d-\d\d-\d\d\b", text)
    assert "**What it means.**" in text or "## What it means" in text
    assert len(text.splitlines()) <= 110


def test_included_files_exist():
    """What is between the marks of an inclusion is a file, and no formatter has touched the marks."""
    pages = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md")}
    assert not [name for name, text in pages.items() if re.search(r"--8\s+<|<\s+--\"", text)]
    included = [file for text in pages.values() for file in re.findall(r'^--8<-- "(.+)"$', text, re.MULTILINE)]
    assert included == ["examples/first_asset.py"]
    assert (ROOT / included[0]).exists()


def test_documents_hold_no_raw_lines():
    files = [path for path in (ROOT / "docs").rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    assert {path.suffix for path in files} <= {".md", ".png", ".py"}


# --- commands --------------------------------------------------------------------------------------------------------


OTHERS = {"pip", "npm", "pytest", "pre-commit", "mkdocs", "hf", "export"}
"""Programs in the documents that are not ours."""


def commands(page: Path) -> list[list[str]]:
    """Argument vectors of the commands in a page: those of its shell blocks and the first column of its tables."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^( *)```sh\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    lines = [line for _, block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    lines += re.findall(r"^\| `(psd-gs [^`]+)` \|", text, re.MULTILINE)
    words = [[*shlex.split(line, comments=True), "&&"] for line in lines]
    runs = groupby((word for line in words for word in line), lambda word: word in ("&&", "&"))
    return [list(run) for ends, run in runs if not ends]


class Parsed(Exception):  # noqa: N818 - not an error
    """Ends a tool once its arguments are read."""


def read_tool(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a script of ``tools/`` read its arguments, and nothing more."""
    original = argparse.ArgumentParser.parse_args

    def parse(self, args=None, namespace=None):
        original(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    assert (ROOT / script).is_file(), script
    module = importlib.import_module(Path(script).relative_to("tools").with_suffix("").as_posix().replace("/", "."))
    with pytest.raises(Parsed):
        module.main()


@pytest.fixture
def parse(monkeypatch):
    """The options that an argument vector of ``psd-gs`` stands for; nothing is run."""
    found = []
    original = tyro.cli

    def read(*args, **options):
        found.append(original(*args, **options))
        return SimpleNamespace(run=lambda: None)

    monkeypatch.setattr(tyro, "cli", read)

    def parsed(arguments: list[str]):
        cli.main(arguments)
        return found[-1]

    return parsed


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_is_understood(page, parse, monkeypatch):
    for program, *arguments in commands(page):
        if program == "psd-gs":
            if "--help" in arguments:
                with pytest.raises(SystemExit, match=r"^0$"):
                    parse(arguments)
                continue
            options = parse(arguments)
            if arguments[:2] == ["eval", "run"]:
                check_arms(options.action)
        elif program == "python":
            read_tool(arguments[0], arguments[1:], monkeypatch)
        else:
            assert program in OTHERS, (program, *arguments)


def check_arms(run) -> None:
    """The arms of an evaluation have options that exist and go together."""
    for text in (*run.arms.split(","), *run.arm):
        if "=" in text and ":" not in text:  # NAME=FILE.yaml
            continue
        check_combination(
            config.make_config(run.recipe or run.preset or "draft", "mini", parse_arm(text).options).guidance
        )


def test_commands_are_found():
    assert sum(len(commands(page)) for page in PAGES) > 60
    assert commands(README)[0] == ["pip", "install", "."]
    assert ["psd-gs", "words"] in commands(README)


def test_the_readme_names_every_subcommand(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    usage = re.search(r"\{([a-z,-]+)\}", "".join(capsys.readouterr().out.split()))
    assert usage
    text = README.read_text(encoding="utf-8")
    assert {name for name in usage[1].split(",") if f"psd-gs {name}" not in text} == set()


ELSEWHERE = {"rank": "test_ranking.py", "fit-reward": "test_fit_reward.py"}
"""Commands of the README that need a person, or fifty answers of one, and the tests that stand in for them."""
SHORTER = {"eval run": ["--prompts", "1"]}
"""Arguments that make a command short enough."""


def kind(arguments: list[str]) -> str:
    return " ".join(arguments[:2]) if arguments[0] == "eval" else arguments[0]


def of_the_readme() -> list[list[str]]:
    """The arguments of every ``psd-gs`` command of the README, in order."""
    return [arguments for program, *arguments in commands(README) if program == "psd-gs"]


@pytest.fixture
def beginner(tmp_path, monkeypatch, quick_files):
    """A folder with a picture and prompts, presets of four steps, coarse meshes, and no browser."""
    folder = tmp_path / "configs"
    shutil.copytree(config.configs_folder(), folder)
    for path in folder.rglob("*.yaml"):
        short = re.sub(r"steps: \d+", "steps: 4", path.read_text(encoding="utf-8"))
        path.write_text(short, encoding="utf-8")
    monkeypatch.setattr(config, "configs_folder", lambda: folder)
    monkeypatch.setitem(build.PRESETS, "game", build.Quality(40, 500, 64))
    monkeypatch.setattr(webbrowser, "open", lambda *_: True)
    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (64, 64), "tan").crop((-16, -16, 80, 80)).save(tmp_path / "dog.png")
    (tmp_path / "prompts.txt").write_text("a corgi\na red car\n", encoding="utf-8")
    return tmp_path


@pytest.mark.full
def test_the_commands_of_the_readme_run(beginner):
    for arguments in of_the_readme():
        if kind(arguments) not in ELSEWHERE:
            cli.main([*arguments, *SHORTER.get(kind(arguments), [])])
    assert len(load("corgi.spz")) == len(load("corgi.sog")) == len(load("outputs/a-corgi-0/splat.ply"))
    made = {path.name for path in beginner.iterdir()}
    assert made >= {"sheet.png", "corgi.html", "corgi.glb", "corgi_lod2.glb", "corgi.webp"}
    assert len([path for path in beginner.glob("outputs/**/splat.ply")]) >= 10


def test_the_other_blocks_of_the_readme_run_in_the_gate():
    text = README.read_text(encoding="utf-8")
    gates = [ROOT / ".ci" / "run", *(ROOT / ".github" / "workflows").glob("*.yml")]
    gate = "\n".join(path.read_text(encoding="utf-8") for path in gates)
    for mark, block in re.findall(r"(?:<!-- (\w+) -->\n)?```sh\n(.*?)```", text, re.DOTALL):
        assert f"$(readme_command {mark})" in gate if mark else block.strip() in gate, block


def test_the_commands_that_run_elsewhere_do():
    for name, file in ELSEWHERE.items():
        assert f'"{name}"' in (Path(__file__).parent / file).read_text(encoding="utf-8")


@pytest.mark.full
def test_the_python_of_the_readme_runs(beginner):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert is_finished(Path("outputs/corgi"))


# --- examples --------------------------------------------------------------------------------------------------------


def example(name: str):
    """A script of ``examples/`` as a module."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", ROOT / "examples" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested_and_described():
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    source = Path(__file__).read_text(encoding="utf-8")
    start = (ROOT / "docs" / "guide" / "start.md").read_text(encoding="utf-8")
    assert all(f'example("{name}").main(' in source for name in names)
    assert set(re.findall(r"^\| `(\w+)\.py`", start, re.MULTILINE)) == names


@pytest.mark.full
def test_first_asset(beginner):
    example("first_asset").main(folder=beginner / "corgi", steps=4)
    assert is_finished(beginner / "corgi")
    example("game_mesh").main(beginner / "corgi/splat.ply", folder=beginner, faces=400, resolution=40, texture_size=64)
    assert {path.name for path in beginner.glob("*.glb")} == {"mesh.glb", "mesh_lod1.glb", "mesh_lod2.glb"}


@pytest.mark.full
def test_from_picture(beginner):
    example("from_picture").main(beginner / "dog.png", folder=beginner / "dog", preset="draft", steps=4)
    assert is_finished(beginner / "dog")
    assert (beginner / "dog" / "image.png").is_file()


@pytest.mark.full
def test_refine_splat(beginner):
    example("first_asset").main(folder=beginner / "corgi", steps=4)
    example("refine_splat").main(beginner / "corgi/splat.ply", folder=beginner / "hat", preset="draft", steps=2)
    assert {path.name for path in (beginner / "hat").iterdir()} >= {"splat.ply", "moved.png", "before-after.html"}


@pytest.mark.full
def test_retexture_mesh(beginner):
    example("first_asset").main(folder=beginner / "corgi", steps=4)
    settings = {"preset": "draft", "steps": 2, "texture_size": 64}
    example("retexture_mesh").main(beginner / "corgi/mesh.glb", folder=beginner / "blue", **settings)
    assert {path.name for path in (beginner / "blue").iterdir()} >= {"mesh.glb", "before-after.html"}


@pytest.mark.full
def test_own_reward(beginner):
    example("own_reward").main(folder=beginner / "red", steps=4)
    assert is_finished(beginner / "red")
    assert any("redness" in name for name in json.loads((beginner / "red/psd_gs.json").read_text())["scores"])


@pytest.mark.full
def test_compare_methods(beginner):
    means = example("compare_methods").main(("a corgi",), seeds=1, steps=4)
    assert set(means) == {"psd", "base"}
