"""Runs to compare, and an annotator with a known taste who answers through the page's interface."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch

from psd_gs.export.formats import load, save
from psd_gs.gaussians import random_ball, rgb_to_sh0
from psd_gs.ranking.server import Server, Session
from psd_gs.scoring import evaluation_images

PROMPTS = [
    f"a {colour} {thing}" for thing in ("cube", "sphere", "cone", "cylinder") for colour in ("red", "blue", "green")
]


def make_runs(folder: Path, prompts: list[str] = PROMPTS, each: int = 5) -> Path:
    """Finished runs as far as ranking looks: balls of all sizes and colours."""
    generator = torch.Generator().manual_seed(0)
    for i, prompt in enumerate(prompts):
        for seed in range(each):
            run = folder / f"{i}-{seed}"
            run.mkdir(parents=True)
            radius = 0.2 + 0.3 * float(torch.rand((), generator=generator))
            ball = random_ball(80, radius, scale=0.09, opacity=0.9, generator=generator)
            colour = torch.rand(3, generator=generator) + 0.1 * torch.rand(80, 3, generator=generator)
            save(replace(ball, sh0=rgb_to_sh0(colour.clamp(0, 1))[:, None]), run / "splat.ply")
            (run / "psd_gs.json").write_text(json.dumps({"prompt": prompt}))
            (run / "turntable.mp4").write_bytes(f"film {i} {seed}".encode() * 50)
    return folder


def brightness(run: Path) -> float:
    """How bright a run's pictures are on white: small or pale things win."""
    return float(evaluation_images(load(run / "splat.ply"), size=32).mean())


def verdict(better: float) -> str:
    """Key of a difference, right minus left."""
    return "3" if abs(better) < 0.003 else str(3 + (1 if better > 0 else -1) * (1 if abs(better) < 0.03 else 2))


class Client:
    """What the page does, without a browser."""

    def __init__(self, session: Session) -> None:
        self.server = Server(session)
        self.thread = Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Client:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def raw(self, path: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers; ``path`` is below the token."""
        request = Request(self.server.url + path, data=data, headers=headers)
        try:
            with urlopen(request, timeout=10) as reply:
                return reply.status, reply.read(), dict(reply.headers)
        except HTTPError as error:
            return error.code, error.read(), dict(error.headers)

    def pair(self) -> dict[str, Any]:
        return json.loads(self.raw("pair")[1])

    def answer(self, key: str, verdict: str) -> tuple[int, dict[str, Any]]:
        status, body, _ = self.raw("answer", json.dumps({"key": key, "verdict": verdict, "seconds": 1.5}).encode())
        return status, json.loads(body)


def annotate(session: Session, taste, limit: int = 10_000) -> None:
    """Answer everything by a score of run folders."""
    values: dict[Path, float] = {}
    with Client(session) as client:
        state = client.pair()
        while state["pair"] and limit > 0:
            limit -= 1
            key = state["pair"]["key"]
            films = [session.film(key, side) for side in ("left", "right")]
            for film in films:
                values.setdefault(film.parent, taste(film.parent))
            left, right = (values[film.parent] for film in films)
            status, state = client.answer(key, verdict(right - left))
            assert status == 200
