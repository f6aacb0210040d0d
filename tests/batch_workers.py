"""Worker processes that paint: the real queue and the real files, without models to load."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial

from painted import PaintedPrior, RedReward

from psd_gs import result
from psd_gs.export import pictures
from psd_gs.mesh import extract
from psd_gs.pipeline import TextTo3DPipeline


class Clock(datetime):
    """Stands still, so that equal runs write equal files."""

    @classmethod
    def now(cls, tz=None):
        return datetime(2026, 1, 1, tzinfo=UTC)


class SlowPrior(PaintedPrior):
    """Slow enough to be killed over a step."""

    def predict(self, *arguments, **options):
        time.sleep(0.1)
        return super().predict(*arguments, **options)


def paint(slow: bool = True) -> None:
    """Called first in every worker."""
    result.datetime = Clock
    prior = SlowPrior if slow else PaintedPrior
    TextTo3DPipeline.from_pretrained = classmethod(lambda cls, *names, **options: cls(prior(), RedReward()))
    pictures.preview_png = partial(pictures.preview_png, size=48)
    pictures.turntable_film = partial(pictures.turntable_film, frames=4, size=48)
    extract.extract_mesh = partial(extract.extract_mesh, options=extract.MeshOptions(resolution=32, views=6, faces=500))
