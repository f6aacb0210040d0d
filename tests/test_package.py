"""What is installed: metadata, dependencies, layers, and a wheel that has everything."""

from __future__ import annotations

import ast
import graphlib
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import psd_gs
from psd_gs.config import PRESETS, RECIPES
from psd_gs.evaluation.suites import SUITES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(psd_gs.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# --- metadata --------------------------------------------------------------------------------------------------------


def test_version_is_the_same_everywhere():
    assert psd_gs.__version__ == PROJECT["version"] == metadata.version("psd-gs")


def test_licence():
    assert metadata.metadata("psd-gs")["License-Expression"] == "Apache-2.0"
    names = [str(path) for path in metadata.files("psd-gs") or []]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_entry_point():
    (script,) = (entry for entry in metadata.entry_points(group="console_scripts") if entry.name == "psd-gs")
    assert script.value == "psd_gs.cli:main"
    assert callable(script.load())


def test_the_public_names_resolve():
    assert psd_gs.TextTo3DPipeline is importlib.import_module("psd_gs.pipeline").TextTo3DPipeline
    assert all(hasattr(psd_gs, name) for name in psd_gs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        psd_gs.Pipelin  # noqa: B018
    assert (PACKAGE / "py.typed").exists()


def requirements(name: str, extras: frozenset[str] = frozenset(), seen: set | None = None) -> set[str]:
    """Names of everything that an installation of ``name`` brings along on this platform."""
    seen = set() if seen is None else seen
    if (name, extras) in seen:
        return set()
    seen.add((name, extras))
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return set()
    found = set()
    for line in lines:
        requirement = Requirement(line)
        chosen = extras or {""}
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in chosen):
            continue
        needed = re.sub(r"[-_.]+", "-", requirement.name).lower()
        found |= {needed} | requirements(needed, frozenset(requirement.extras), seen)
    return found


def test_gsplat_has_an_upper_bound():
    """Its modules moved in 1.6."""
    (gsplat,) = (one for line in metadata.requires("psd-gs") or [] if (one := Requirement(line)).name == "gsplat")
    assert [version in gsplat.specifier for version in ("1.5.2", "1.5.3", "1.6.0")] == [False, True, False]


def test_what_breaks_beside_a_cpu_torch_is_not_installed():
    found = requirements("psd-gs")
    assert {"torch", "diffusers", "transformers", "safetensors", "numba"} <= found
    assert not {"torchvision", "timm", "open-clip-torch"} & found


def test_every_dependency_of_the_main_job_is_a_base_one():
    base = {Requirement(line).name.lower() for line in PROJECT["dependencies"]}
    installed = {
        *("imageio_ffmpeg", "skimage", "yaml", "PIL", "huggingface_hub", "mapbox_earcut"),
        *sys.stdlib_module_names,
        "psd_gs",
        "peft",  # of the extra vsd
        "pxr",  # of the extra usd
        "coacd",  # of the extra collision
        "rembg",  # of the extra background
        "ray",  # of the extra ray
        "triton",  # of torch's wheels for GPUs
    }
    named = {"imageio-ffmpeg", "scikit-image", "pyyaml", "pillow", "huggingface-hub", "mapbox-earcut"}
    assert named <= {name.replace("_", "-") for name in base}
    for path in PACKAGE.rglob("*.py"):
        for module in imported(path):
            top = module.split(".")[0]
            assert top in installed or top in base, f"{path.name} imports {module}"


# --- layers ----------------------------------------------------------------------------------------------------------


def imported(path: Path, top_level: bool = False) -> set[str]:
    """Modules that a file imports (at its top level only, on request), without those for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(tree.body) if top_level else list(ast.walk(tree))
    if not top_level:
        typing_only = [
            node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        ]
        skipped = {id(child) for node in typing_only for child in ast.walk(node)}
        nodes = [node for node in nodes if id(node) not in skipped]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


LAYERS = {
    "errors": set(),
    "adam": set(),
    "cores": set(),
    "text_encoder": set(),
    "plugins": {"errors"},
    "published": set(),
    "entries": {"plugins", "published"},
    "files": {"errors"},
    "config": {"errors", "entries", "files"},
    "splats": set(),
    "gaussians": {"splats"},
    "colours": set(),
    "cameras": set(),
    "kernels": set(),
    "resize": set(),
    "report": {"errors", "files"},
    "runs": {"errors", "files"},
    "weights": {"errors", "entries", "files", "published"},
    "render": {"errors", "gaussians", "cameras", "kernels", "resize"},
    "priors": {"text_encoder", "errors", "resize", "cameras", "files", "weights", "entries", "plugins"},
    "rewards": {"text_encoder", "errors", "resize", "cameras", "files", "weights", "entries", "plugins", "config"},
    "guidance": {"adam", "errors", "resize", "cameras", "priors", "rewards", "entries", "plugins", "config"},
    "testing": {"errors", "cameras", "config", "entries", "plugins", "priors", "rewards", "guidance"},
    "densify": {"errors", "gaussians", "cameras", "config", "render"},
    "export": {"colours", "errors", "files", "splats", "gaussians", "cameras", "render", "plugins"},
    "solidify": {"adam", "gaussians", "cameras", "render", "export"},
    "mesh": {
        *("colours", "errors", "files", "kernels", "splats", "gaussians", "cameras", "render", "export", "solidify"),
    },
    "asset": {"errors", "gaussians", "export", "mesh", "runs"},
    "selection": {"errors"},
    "trainer": {
        "adam",
        "errors",
        "files",
        "gaussians",
        "cameras",
        "config",
        "render",
        "guidance",
        "densify",
        "solidify",
    },
    "viewer": {"errors", "files", "gaussians", "export"},
    "run_report": {"errors", "files", "report", "runs"},
    "scoring": {"cameras", "gaussians", "render", "rewards"},
    "refine": {
        *("cameras", "config", "densify", "errors", "export", "gaussians", "mesh", "render", "scoring", "selection"),
    },
    "refined": {
        "cameras",
        "config",
        "export",
        "files",
        "gaussians",
        "refine",
        "render",
        "runs",
        "scoring",
        "selection",
    },
    "framing": {"cameras", "config", "guidance", "refine", "render", "trainer"},
    "reference": {"cameras", "config", "errors", "export", "files", "gaussians", "render", "resize"},
    "models": {"config", "entries", "errors", "priors", "published", "rewards", "weights"},
    "start": {"asset", "colours", "config", "errors", "export", "gaussians", "mesh", "priors", "trainer", "weights"},
    "result": {
        *("errors", "files", "gaussians", "config", "priors", "export", "mesh", "models", "scoring", "start"),
        *("reference", "refined", "run_report", "runs", "trainer"),
    },
    "pipeline": {
        *("errors", "files", "framing", "gaussians", "config", "priors", "rewards", "guidance", "export", "models"),
        *("reference", "refine", "refined", "render", "result", "runs", "scoring", "start", "trainer"),
    },
    "benchmark": {"cameras", "config", "gaussians", "pipeline", "priors", "render"},
    "job": {
        *("config", "errors", "files", "guidance", "models", "pipeline", "priors", "reference", "result", "runs"),
        "trainer",
    },
    "evaluation": {
        *("errors", "files", "gaussians", "cameras", "weights", "published", "render", "config", "priors", "rewards"),
        *("guidance", "export", "mesh", "report", "runs", "scoring", "trainer", "pipeline", "job", "result"),
    },
    "ranking": {"errors", "files", "evaluation", "export", "rewards", "runs", "scoring", "viewer"},
    "live": {"errors", "export", "gaussians", "report", "trainer", "viewer"},
    "batch": {"errors", "files", "config", "job", "pipeline", "priors", "report", "runs", "trainer"},
}
"""Every module of the package, but the command line, to those that it may import; each stands below those."""


def modules() -> dict[str, Path]:
    """Files of the package by the names of their modules."""
    names = {path: path.relative_to(PACKAGE.parent).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in names.items()}


def test_every_module_has_a_layer_and_only_those_above_import_it():
    above = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir()} - {"__pycache__", "assets", "py"}
    assert above - {"__init__", "__main__", "cli", "configs"} == set(LAYERS)
    for place, (layer, below) in enumerate(LAYERS.items()):
        assert below <= set(list(LAYERS)[:place]), layer


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down(layer):
    folder = PACKAGE / layer
    files = list(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    assert files
    for path in files:
        for module in imported(path):
            parts = module.split(".")
            if parts[0] == "psd_gs" and len(parts) > 1 and parts[1] != "__version__":
                assert parts[1] in LAYERS[layer] | {layer}, f"{path.name} imports {module}"


def test_no_module_imports_itself_round_a_circle():
    """Imports inside functions count too; the package itself only hands out names of its modules."""
    known = modules()
    graph = {name: (imported(path) & known.keys()) - {name, "psd_gs"} for name, path in known.items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_only_the_command_line_prints_parses_and_reads_the_environment():
    for path in PACKAGE.rglob("*.py"):
        if "cli" in path.relative_to(PACKAGE).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "input", "eval", "exec"), path
            assert not (isinstance(node, ast.Attribute) and node.attr == "argv"), path


def test_nothing_is_unpickled():
    for path in PACKAGE.rglob("*.py"):
        assert not {"pickle", "dill", "joblib", "shelve"} & {module.split(".")[0] for module in imported(path)}, path
        for call in re.findall(r"torch\.load\(.*", path.read_text(encoding="utf-8")):
            assert "weights_only=True" in call, path


def test_every_module_imports_and_is_described():
    for module in pkgutil.walk_packages(psd_gs.__path__, "psd_gs."):
        assert importlib.import_module(module.name).__doc__, module.name


def test_no_file_is_long():
    for folder in (PACKAGE, ROOT / "tools"):
        for path in folder.rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path


# --- the wheel -------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_wheel_has_everything_and_runs(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 40e6
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    expected = {f"psd_gs/configs/{name}.yaml" for name in PRESETS} | {"psd_gs/py.typed"}
    expected |= {f"psd_gs/configs/recipes/{name}.yaml" for name in RECIPES}
    prior = ["model_index.json", "words.txt", "nouns.txt", "unet/diffusion_pytorch_model.safetensors"]
    expected |= {f"psd_gs/assets/mini/prior/{name}" for name in prior}
    expected |= {f"psd_gs/assets/mini/{name}/model.safetensors" for name in ("reward", "judge")}
    expected |= {f"psd_gs/assets/suites/{name}.txt" for name in SUITES}
    expected |= {f"psd_gs/assets/viewer/{name}" for name in ("page.html", "THIRD_PARTY_NOTICES.txt")}
    assert expected <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"psd_gs", f"psd_gs-{psd_gs.__version__}.dist-info"}
    assert not any("__pycache__" in name for name in names)
    code = (
        "import psd_gs; from psd_gs.config import PRESETS, configs_folder, make_config; "
        "from psd_gs import TextTo3DPipeline; from psd_gs.priors.mini import nouns; "
        "print(psd_gs.__file__, configs_folder(), sep='\\n'); "
        "assert all(make_config(name, 'mini').steps for name in PRESETS); assert 'corgi' in nouns(); "
        "TextTo3DPipeline.from_pretrained('mini')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    where, configs = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path / "site")
    assert Path(configs).is_relative_to(tmp_path / "site")
