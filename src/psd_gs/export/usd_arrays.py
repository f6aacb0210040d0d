"""Reads USD files in a process of its own, because usd-core may crash or eat all memory over a broken one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from psd_gs.export.metadata import METADATA_KEY

NAMES = ("Positions", "Orientations", "Scales", "Opacities", "RadianceSphericalHarmonicsCoefficients")
MODE_KEY = "psd_gs_render_mode"
"""Custom data of the prim; USD has no attribute for it."""
_MEMORY = 2 << 30  # bytes that the process may take, besides a multiple of the file's size
_COMMAND = "import sys; from psd_gs.export.usd_arrays import dump; dump(sys.argv[1], sys.argv[2])"


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """What :func:`dump` finds in a file.

    Raises:
        ValueError: the file is broken; the text says how, as far as usd-core does.
    """
    seconds = 60 + Path(path).stat().st_size / 1e6
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "arrays.npz"
        command = [sys.executable, "-c", _COMMAND, os.fspath(path), str(out)]
        environment = {**os.environ, "PXR_WORK_THREAD_LIMIT": "1"}
        try:
            done = subprocess.run(command, capture_output=True, timeout=seconds, env=environment, check=False)
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"usd-core took more than {seconds:.0f} seconds") from error
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").split("\n")
            raise ValueError(([line.strip() for line in lines if line.strip()] or ["usd-core crashed"])[-1])
        with np.load(out, allow_pickle=False) as arrays:
            return dict(arrays)


def dump(path: str, out: str) -> None:
    """Write the Gaussian particle fields of a USD file into an ``.npz``.

    Per field i: ``i_matrix`` (column vectors, to a Y-up world in metres), ``i_Positions`` [N, 3], ``i_Orientations``
    [N, 4] as xyzw, ``i_Scales`` [N, 3], ``i_Opacities`` [N] and ``i_RadianceSphericalHarmonicsCoefficients`` [N, K, 3];
    ``mode``, of rendering, of the last one; and ``metadata``, JSON text.

    Raises:
        ValueError: arrays that do not fit each other.
        RuntimeError: usd-core finds the file broken.
    """
    _limit_memory(_MEMORY + 40 * os.path.getsize(path))
    from pxr import Sdf, Usd, UsdGeom, UsdVol

    stage = Usd.Stage.Open(Sdf.Layer.OpenAsAnonymous(path))
    turn = np.eye(4)
    if UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.z:
        turn[1:3, 1:3] = [[0, 1], [-1, 0]]
    if UsdGeom.StageHasAuthoredMetersPerUnit(stage):
        turn[:3] *= UsdGeom.GetStageMetersPerUnit(stage)
    cache = UsdGeom.XformCache()
    arrays: dict[str, np.ndarray] = {"mode": np.array("default")}
    for i, prim in enumerate(p for p in stage.Traverse() if p.IsA(UsdVol.ParticleField3DGaussianSplat)):
        arrays[f"{i}_matrix"] = turn @ np.array(cache.GetLocalToWorldTransform(prim)).T
        arrays["mode"] = np.array(str(prim.GetCustomDataByKey(MODE_KEY) or "default"))
        arrays |= {
            f"{i}_{name}": values for name, values in _columns(UsdVol.ParticleField3DGaussianSplat(prim)).items()
        }
    try:
        text = stage.GetRootLayer().customLayerData.get(METADATA_KEY, "null")
    except RuntimeError:
        text = "null"
    arrays["metadata"] = np.array(str(text))
    np.savez(out, **arrays)  # type: ignore[arg-type]  # the stubs of numpy 2.2 take every keyword for allow_pickle


def _columns(field: Any) -> dict[str, np.ndarray]:
    values = {}
    for name in NAMES:
        found = getattr(field, f"Get{name}Attr")().Get() or getattr(field, f"Get{name}hAttr")().Get()
        values[name] = np.array(found if found is not None else [], np.float32)
    n, degree = len(values["Positions"]), field.GetRadianceSphericalHarmonicsDegreeAttr().Get()
    size = (min(max(degree, 0), 100) + 1) ** 2
    shapes = [value.shape for value in values.values()]
    if n == 0 or shapes != [(n, 3), (n, 4), (n, 3), (n,), (n * size, 3)]:
        raise ValueError(f"arrays of shapes {shapes} for SH degree {degree}")
    values[NAMES[4]] = values[NAMES[4]].reshape(n, size, 3)[:, :16]
    return values


def _limit_memory(size: int) -> None:
    """Where the system can."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
