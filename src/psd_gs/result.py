"""A finished asset and what is made of it: files, pictures, a mesh, a report."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from psd_gs import __version__, refined, runs
from psd_gs.config import Config, config_sha256, read_config, to_dict
from psd_gs.errors import InputError, OutputError, is_out_of_memory
from psd_gs.files import writing
from psd_gs.gaussians import Gaussians
from psd_gs.models import models_of
from psd_gs.priors import TextEmbedding
from psd_gs.scoring import rounded
from psd_gs.start import read_negative
from psd_gs.trainer import CHECKPOINTS, read_tensors, write_tensors

logger = logging.getLogger(__name__)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class Result:
    """A finished asset.

    Attributes:
        gaussians: the asset, world frame (+Y up, the front faces +Z).
        config: everything that decided the run.
        scores: mean score over eight evaluation views by model name: the reward that was optimized and
            the judge that was not.
        negative: the refined negative embedding.
        logs: of the last step.
        steps_done: optimization steps; fewer than the configuration's if the run was stopped and kept.
        created: when, ISO 8601 in UTC.
        failed: what could not be made of it, by name, and why.
        rows: of a refined asset: which Gaussian of the original each one was, -1 for new ones.
        refined: of a refined asset: what changed, see :func:`psd_gs.refined.facts`.
        images: of an asset made from pictures: how well each is held, see :meth:`psd_gs.reference.Reference.held`.
    """

    gaussians: Gaussians
    config: Config
    scores: dict[str, float]
    negative: TextEmbedding
    logs: dict[str, float] = field(default_factory=dict)
    steps_done: int | None = None
    created: str = field(default_factory=_now)
    failed: dict[str, str] = field(default_factory=dict)
    rows: Tensor | None = None
    refined: dict[str, Any] = field(default_factory=dict)
    images: list[dict[str, Any]] = field(default_factory=list)

    @property
    def metadata(self) -> dict[str, Any]:
        """What goes into every file: prompt, seed, options, models with their licences, scores."""
        return {
            "schema": 1,
            "psd_gs_version": __version__,
            "created": self.created,
            "prompt": self.config.prompt,
            "seed": self.config.seed,
            "preset": self.config.preset,
            "steps": self.config.steps,
            "steps_done": self.config.steps if self.steps_done is None else self.steps_done,
            "config_sha256": config_sha256(self.config),
            "prior": self.config.prior,
            "reward": self.config.reward,
            "judge": self.config.judge,
            "models": models_of(self.config),
            "scores": rounded(self.scores),
            "n_splats": len(self.gaussians),
            "sh_degree": self.gaussians.sh_degree,
            "ai_generated": True,
            **({"refined": self.refined} if self.refined else {}),
            **({"images": self.images} if self.images else {}),
        }

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """What :meth:`save` wrote, from its files.

        Raises:
            InputError: not the folder of a finished run, or a damaged file in it.
        """
        from psd_gs.export.formats import load

        folder = Path(folder)
        if not runs.is_finished(folder):
            raise InputError(
                f"{folder}: expected the folder of a finished run, received one without {runs.ASSET} or {runs.RECORD}. "
                "Name another, or finish the run with --resume."
            )
        record = runs.read_record(folder, "scores", "steps_done", "created")
        return cls(
            load(folder / runs.ASSET),
            read_config(folder / runs.OPTIONS),
            {name: math.nan if score is None else score for name, score in record["scores"].items()},
            read_negative(folder / NEGATIVE),
            steps_done=record["steps_done"],
            created=record["created"],
            failed=dict(record.get("failed", {})),
            rows=read_tensors(folder / ROWS)["rows"] if (folder / ROWS).exists() else None,
            refined=dict(record.get("refined", {})),
            images=list(record.get("images", [])),
        )

    def save_asset(self, folder: str | Path) -> None:
        """Write ``splat.ply`` alone, in one step; on a full disk in place of what only tells how it came to be.

        Raises:
            OutputError: the folder cannot be written.
        """
        from psd_gs.export.ply import write_ply

        folder = Path(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            write_ply(self.gaussians.splats(), folder / runs.ASSET, metadata=self.metadata)
        except OutputError:
            with writing(folder):
                (folder / "checkpoints" / CHECKPOINTS[1]).unlink(missing_ok=True)
            shutil.rmtree(folder / "progress", ignore_errors=True)
            write_ply(self.gaussians.splats(), folder / runs.ASSET, metadata=self.metadata)

    def save(
        self,
        folder: str | Path,
        on_file: Callable[[str], None] = lambda name: None,
        *,
        products: Mapping[str, Product] | None = None,
    ) -> Path:
        """Write ``splat.ply``, ``config.yaml`` and ``negative.safetensors``, then the :data:`PRODUCTS`, then
        ``psd_gs.json``, each replaced in one step.

        A product that cannot be made costs nothing else: it is noted in :attr:`failed` and in ``psd_gs.json``.

        Args:
            folder: created if it is missing.
            on_file: called with the name of each file before it is made.
            products: instead of :func:`products_of` it: file name to what makes it.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = Path(folder)
        on_file(runs.ASSET)
        self.save_asset(folder)
        runs.write_yaml(folder / runs.OPTIONS, to_dict(self.config))
        negative = {"sequence": self.negative.sequence, "pooled": self.negative.pooled}
        write_tensors(
            folder / NEGATIVE,
            {name: tensor for name, tensor in negative.items() if tensor is not None},
            {"prior": self.config.prior},
        )
        if self.rows is not None:
            write_tensors(folder / ROWS, {"rows": self.rows})
        self._make(folder, products_of(self.config) if products is None else products, on_file)
        return folder

    def complete(
        self,
        folder: str | Path,
        on_file: Callable[[str], None] = lambda name: None,
        *,
        products: Mapping[str, Product] | None = None,
    ) -> Path:
        """Make those of the products that are missing beside a saved asset, and note anew what failed."""
        wanted = products_of(self.config) if products is None else products
        absent = {name: make for name, make in wanted.items() if not (Path(folder) / name).exists()}
        if absent:
            self._make(Path(folder), absent, on_file)
        return Path(folder)

    def _make(self, folder: Path, products: Mapping[str, Product], on_file: Callable[[str], None]) -> None:
        for last in (False, True):  # the report shows the others and the record
            self._attempt(folder, {name: m for name, m in products.items() if (name == REPORT) == last}, on_file)
        try:
            runs.write_json(folder / runs.RECORD, self.record(folder))  # with it the run is finished
        except OutputError as error:  # a full disk, of which the report can be made at any time
            (folder / REPORT).unlink(missing_ok=True)
            self.failed[REPORT] = str(error)
            runs.write_json(folder / runs.RECORD, self.record(folder))

    def _attempt(self, folder: Path, products: Mapping[str, Product], on_file: Callable[[str], None]) -> None:
        """Make each, as many side by side as there are threads."""
        # A GPU has its memory for one of them at a time.
        workers = torch.get_num_threads() if self.gaussians.device.type == "cpu" else 1
        pool = ThreadPoolExecutor(workers, thread_name_prefix="psd-gs-product")
        try:
            made = {}
            for name, make in products.items():
                on_file(name)
                made[name] = pool.submit(make, self, folder / name)
            for name, product in made.items():
                self.failed.pop(name, None)
                try:
                    product.result()
                except Exception as error:  # the asset is there; whatever is wrong with a picture must not hide it
                    memory = "out of memory" if is_out_of_memory(error) else ""
                    self.failed[name] = memory or str(error) or type(error).__name__
                    logger.debug("no %s", name, exc_info=True)
        finally:
            pool.shutdown(cancel_futures=True)

    def record(self, folder: Path) -> dict[str, Any]:
        """What ``psd_gs.json`` says of what is there: the metadata, the files, and what failed."""
        from psd_gs.export.formats import sha256_of

        names = (runs.ASSET, IMAGE, *(name for name in PRODUCTS if name != REPORT))
        files = {name: sha256_of(folder / name) for name in names if (folder / name).exists()}
        failed = {"failed": self.failed} if self.failed else {}
        return self.metadata | {"files": files} | failed


Product = Callable[[Result, Path], object]
"""Makes one file of a result."""


def _preview(result: Result, path: Path) -> None:
    from psd_gs.export.pictures import preview_png

    preview_png(result.gaussians, path, metadata=result.metadata)


def _turntable(result: Result, path: Path) -> None:
    from psd_gs.export.pictures import turntable_film

    turntable_film(result.gaussians, path, metadata=result.metadata)


def _progress(result: Result, path: Path) -> None:
    from psd_gs.export.pictures import progress_strip

    if frames := runs.progress_frames(path.parent, result.metadata["steps_done"]):  # it was watched
        progress_strip(frames, path)


def _mesh(result: Result, path: Path) -> None:
    from psd_gs.mesh.extract import extract_mesh
    from psd_gs.mesh.glb import write_glb

    write_glb(extract_mesh(result.gaussians), path, metadata=result.metadata)


def _report(result: Result, path: Path) -> None:
    from psd_gs.run_report import write_report

    write_report(path.parent, cast(runs.Record, result.record(path.parent)))


def _image(result: Result, path: Path) -> None:
    from psd_gs.export.pictures import contact_sheet
    from psd_gs.reference import Reference, over_white

    known = Reference(result.config.image)
    size, rows = 256, known.held(result.gaussians)
    pairs = zip(over_white(known.wanted(size)), known.seen(result.gaussians, size).cpu(), strict=True)
    captions = [text for row in rows for text in (row["file"], f"{row['psnr']:.1f} dB")]
    pictures = [picture for pair in pairs for picture in pair]
    contact_sheet(pictures, path, captions=captions, columns=2, size=size, metadata=result.metadata)


NEGATIVE, REPORT, ROWS, IMAGE = "negative.safetensors", "report.html", "rows.safetensors", "image.png"

PRODUCTS: Mapping[str, Product] = {
    "mesh.glb": _mesh,
    "turntable.mp4": _turntable,
    "preview.png": _preview,
    "progress.png": _progress,
    REPORT: _report,
}
"""What is made of a finished asset: file name to what makes it; what takes longest is begun first, the report last."""


def products_of(config: Config) -> Mapping[str, Product]:
    """What is made of the result of a run: :data:`PRODUCTS`, with pictures beside their views; or those of a
    refinement."""
    if config.refine.asset is None:
        return {IMAGE: _image, **PRODUCTS} if config.image.files else PRODUCTS
    return refined.products(config.refine) | {name: make for name, make in PRODUCTS.items() if name != "mesh.glb"}
