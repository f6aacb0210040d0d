"""OpenUSD ``ParticleField3DGaussianSplat`` (UsdVol, OpenUSD 26.03): ``.usdc``, and zipped as ``.usdz``.

Positions, quaternions, linear scales, opacities and harmonics (basis-major, degree 0 included) of one prim
under a Y-up stage in metres. Needs usd-core, the extra ``usd``.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np

from psd_gs.errors import BackendError, FormatError, UnsupportedError
from psd_gs.export.blocks import (
    blocks,
    check_unpacked,
    damaged,
    exp,
    gather,
    log_scale,
    logit,
    open_file,
    read_bytes,
    sigmoid,
    usable_rows,
)
from psd_gs.export.frames import Frame, similarity, transform
from psd_gs.export.metadata import METADATA_KEY, Metadata, to_json
from psd_gs.export.packed import Zip
from psd_gs.export.usd_arrays import MODE_KEY, NAMES, read_arrays
from psd_gs.files import atomic_path, loads
from psd_gs.splats import RenderMode, Splats, ranges

_DATE = 946_728_000
"""Date of the member of a ``.usdz``, seconds since 1970: fixed, so that the same asset gives the same bytes."""


def write_usd(
    splats: Splats, path: str | os.PathLike[str], *, frame: Frame = "gltf", metadata: Metadata | None = None
) -> None:
    """Write a ``.usdc`` or ``.usdz``; metadata goes into the layer's ``customLayerData`` as JSON.

    Arguments and errors are those of :func:`psd_gs.export.formats.write_splats`, and :class:`BackendError` without
    usd-core.
    """
    require_usd()
    from pxr import Gf, Sdf, Usd, UsdGeom, UsdUtils, UsdVol, Vt

    rows = usable_rows(splats, path)
    columns = zip(*(_columns(g) for g in blocks(splats, rows, frame)), strict=True)
    means, quats, scales, opacities, sh = (np.concatenate(column) for column in columns)
    with atomic_path(path) as temporary:
        temporary.touch()  # fails in a missing folder, which usd-core would create
        inner = temporary.with_suffix(".usdc")
        try:
            stage = Usd.Stage.Open(Sdf.Layer.CreateAnonymous(".usdc"))
            UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
            UsdGeom.SetStageMetersPerUnit(stage, 1.0)
            field = UsdVol.ParticleField3DGaussianSplat.Define(stage, "/asset")
            stage.SetDefaultPrim(field.GetPrim())
            field.CreatePositionsAttr(Vt.Vec3fArray.FromNumpy(means))
            field.CreateOrientationsAttr(Vt.QuatfArray.FromNumpy(quats))
            field.CreateScalesAttr(Vt.Vec3fArray.FromNumpy(scales))
            field.CreateOpacitiesAttr(Vt.FloatArray.FromNumpy(opacities))
            field.CreateRadianceSphericalHarmonicsDegreeAttr(splats.sh_degree)
            field.CreateRadianceSphericalHarmonicsCoefficientsAttr(Vt.Vec3fArray.FromNumpy(sh))
            reach = 3 * scales.max(axis=1, keepdims=True)
            corners = ((means - reach).min(axis=0), (means + reach).max(axis=0))
            field.CreateExtentAttr([Gf.Vec3f(*corner.tolist()) for corner in corners])
            if splats.mode != "default":
                field.GetPrim().SetCustomDataByKey(MODE_KEY, splats.mode)
            if metadata is not None:
                stage.GetRootLayer().customLayerData = {METADATA_KEY: to_json(metadata)}
            stage.GetRootLayer().Export(str(inner))
            if temporary.suffix == ".usdz":
                os.utime(inner, (_DATE, _DATE))
                UsdUtils.CreateNewUsdzPackage(str(inner), str(temporary), "asset.usdc")
        except RuntimeError as error:  # what usd-core raises where a file cannot be written
            raise OSError(" ".join(str(error).split())[:200]) from error
        finally:
            if temporary.suffix == ".usdz":
                inner.unlink(missing_ok=True)


def _columns(g: Splats) -> tuple[np.ndarray, ...]:
    xyzw = g.quats[:, [1, 2, 3, 0]]  # the order of GfQuatf in memory
    return g.means, xyzw, exp(g.scales), sigmoid(g), g.sh.reshape(-1, 3)


def read_usd(
    path: str | os.PathLike[str], *, frame: Frame = "gltf", lenient: bool = False, large: bool = False
) -> Splats:
    """Read the Gaussian particle fields of a ``.usdc`` or ``.usdz``, with the transforms of their prims.

    Arguments and errors are those of :func:`psd_gs.export.formats.read_splats`, and :class:`BackendError` without
    usd-core.
    """
    require_usd()
    open_file(path).close()
    _check_zip(path)
    fields: list[tuple[list[np.ndarray], np.ndarray]] = []
    try:
        arrays = read_arrays(path)
        while f"{len(fields)}_matrix" in arrays:
            matrix, *columns = (arrays[f"{len(fields)}_{name}"] for name in ("matrix", *NAMES))
            try:
                similarity(matrix)
            except ValueError as error:
                raise UnsupportedError(
                    f"{path}: a prim that scales the axes of its splats differently, which no Gaussian can follow "
                    "exactly. Apply its transform in the tool that made it."
                ) from error
            fields.append((columns, matrix))
    except ValueError as error:
        raise damaged(path, f"no sound USD ({' '.join(str(error).split())[-100:]})") from error
    if not fields:
        raise FormatError(f"{path}: expected a ParticleField3DGaussianSplat, received none. Export the asset again.")
    count = sum(len(arrays[0]) for arrays, _ in fields)
    check_unpacked(path, count, 3, os.path.getsize(path), large)
    most = max(arrays[4].shape[1] for arrays, _ in fields)

    def parts() -> Iterator[Splats]:
        for (means, quats, scales, opacities, sh), matrix in fields:
            for begin, end in ranges(len(means)):
                rows = slice(begin, end)
                harmonics = np.zeros((end - begin, most - 1, 3))
                harmonics[:, : sh.shape[1] - 1] = sh[rows, 1:]
                block = Splats(
                    means=means[rows].astype(np.float64),
                    quats=quats[rows][:, [3, 0, 1, 2]],
                    scales=log_scale(scales[rows]),
                    opacities=logit(opacities[rows]),
                    sh0=sh[rows, :1],
                    shN=harmonics,
                )
                yield transform(block, matrix) if (matrix != _IDENTITY).any() else block

    mode = str(arrays["mode"])
    return gather(parts(), count, path, frame, lenient, next((m for m in get_args(RenderMode) if m == mode), "default"))


_IDENTITY = np.eye(4)


def _check_zip(path: str | os.PathLike[str]) -> None:
    """Raises:
    UnsupportedError: a ``.usdz`` of another kind than usd-core, which calls it broken, reads.
    """
    data = read_bytes(path)
    with contextlib.suppress(zipfile.BadZipFile):
        if data.startswith(b"PK") and not Zip(data, path).stored():
            raise UnsupportedError(
                f"{path}: its files are packed or encrypted, which OpenUSD does not read. Unpack it, and zip them "
                "again with zip -0."
            )


def read_usd_metadata(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The metadata that :func:`write_usd` stored; None if the file is from elsewhere or unreadable.

    Raises:
        InputError: the file cannot be opened.
        BackendError: usd-core is not installed.
    """
    require_usd()
    open_file(path).close()
    try:
        return loads(str(read_arrays(path)["metadata"]), dict[str, Any])
    except ValueError:
        return None


def require_usd() -> None:
    """Raises:
    BackendError: usd-core is missing, or older than 26.3.
    """
    try:
        from pxr import UsdVol

        UsdVol.ParticleField3DGaussianSplat  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise BackendError(
            'expected usd-core 26.3 or newer for .usdc and .usdz, received none. pip install "psd-gs[usd]"'
        ) from error
