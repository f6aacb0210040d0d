"""Starting from an asset that exists: what of it may change, how it lies in the world for the work, and the way back.

An :class:`Original` is the asset as it was; a :class:`Refinement` is what a trainer has to know of it: which Gaussians
stand around those that are optimized, where these may go, what holds them back, and which one each of them was.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psd_gs import selection
from psd_gs.cameras import Cameras
from psd_gs.config import STRENGTH, Axis, Config, DensifyConfig, OptimizerConfig, RefineConfig
from psd_gs.densify import contribution, prunable
from psd_gs.errors import ConfigError, InputError
from psd_gs.export.fitting import VISIBLE, bounding_ball, moved
from psd_gs.export.formats import format_of, sha256_of
from psd_gs.export.frames import Frame, similarity
from psd_gs.export.open import SPLAT, open_splats
from psd_gs.gaussians import Gaussians, sh0_to_rgb
from psd_gs.mesh.repaint import PIECES, Coat, coat
from psd_gs.mesh.repaint import located as mesh_located
from psd_gs.render import render
from psd_gs.scoring import evaluation_cameras

RADIUS = 0.62
"""Of the ball that an asset is fitted into, world units: it fills nine tenths of an evaluation view."""

STEP_OF = 0.03
"""Gaussians with a smaller standard deviation (world units) move as much slower: no step leads far beyond its size."""

PIXEL = 0.3
"""Standard deviation of a usual Gaussian on the screen, pixels, up to which views are rendered larger than the prior
sees them: much smaller ones are blurred by the renderer, and a surface of them would look thicker than it is."""

MOST_ZOOM = 4

LARGEST = 1024
"""Largest views, pixels."""

KEEP, KEEP_WITHIN = 0.15, 0.1
"""``keep`` at the usual strength, unless told, and how far from that strength it has fallen to nothing: below, faults
are to go; above, all of it is to become another one. Chosen on edits 9, 13, 18 and 23 of
``tools/bench/refine.json``."""

ADDS = 0.6
"""Strength above which something can be added."""

BOUND = 0.1
"""Squared difference from the original, over all colours of a pixel or a Gaussian, from which being pulled back grows
weaker again: what the prior wants much stays, what merely drifts does not."""

PARTS = {"all": None, "shape": ("means", "quats", "scales", "opacities"), "colour": ("sh0", "shN")}
"""Parameters that are optimized; None is all."""


def task(asset: str | os.PathLike[str], strength: float = STRENGTH, **chosen: Any) -> dict[str, Any]:
    """Options over a preset with which an asset is refined: low noise, nothing that fades or shrinks what is there.

    Args:
        asset: a splat file, or a run folder; with ``texture_size``, a mesh.
        strength: highest noise level, 0 to 1 (SDEdit, Meng et al. 2022).
        chosen: fields of :class:`psd_gs.config.RefineConfig`; ``keep`` is :func:`usual_keep` if it is missing or None,
            ``room`` what the prior expects if it is missing where the noise is enough to add something.

    Raises:
        InputError: no such asset, or another strength.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"--strength: expected 0 to 1, received {strength}.")
    top = min(max(strength, 1e-3), 0.98)
    times = {"t_max_start": top, "t_min_start": top, "t_max_end": min(top, 0.5), "t_min_end": min(top, 0.02)}
    mesh = bool(chosen.get("texture_size"))
    if chosen.get("keep") is None:
        chosen["keep"] = 0.0 if mesh else usual_keep(strength)
    chosen.setdefault("room", None if strength > ADDS and not mesh else 0.0)
    path = mesh_located(asset) if mesh else _located(Path(asset))
    usual = asdict(OptimizerConfig()) | {"sh0": (6e-2, 6e-3)}  # red has to become blue
    share = min(1.0, strength / STRENGTH)  # less noise changes less, and what hardly changes should not tremble
    rates = {name: [max(1e-12, share * rate) for rate in usual[name]] for name in ("means", "scales", "quats", "sh0")}
    return {
        "refine": {"asset": str(path), "sha256": sha256_of(path), **chosen},
        "solid_steps": 0,
        "guidance": {"timesteps": times},
        "optimizer": {"opacity_weight": 0.0, "scale_weight": 0.0, **rates},
        "densify": {"start": 0.05, "prune_opacity": 0.005},
    }


def usual_keep(strength: float) -> float:
    """``keep`` of a splat, unless it is told: all of :data:`KEEP` at the usual strength, none far from it."""
    return round(KEEP * max(0.0, 1 - abs(strength - STRENGTH) / KEEP_WITHIN), 4)


# --- the asset as it was ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Original:
    """An asset before it is refined.

    Attributes:
        path: of its file.
        frame: axes of the file.
        gaussians: in its own place and size, along the world's axes as far as ``frame`` tells.
        unit: of the file, in units of ``gaussians``.
        to_world: 4x4, double: fits it into the world for the work.
        chosen: which may change.
        region: where these and new ones may be, in the coordinates of ``gaussians``.
        coat: of a mesh, whose surface they are.
    """

    path: Path
    frame: Frame
    gaussians: Gaussians
    unit: float
    to_world: Float[Tensor, "4 4"]
    chosen: Bool[Tensor, " N"]
    region: selection.Region | None
    coat: Coat | None = None

    @classmethod
    def of(cls, config: RefineConfig) -> Original:
        """Read the asset that a configuration names.

        Raises:
            FormatError: a damaged or foreign file.
            InputError: it cannot be read, is another one than when the run began, or nothing of it may change.
        """
        assert config.asset is not None
        path = Path(config.asset)
        if config.sha256 and sha256_of(path) != config.sha256:
            raise InputError(f"{path} is another file than when the run began. Start anew with --overwrite.")
        if config.texture_size:
            return cls._of_mesh(path, config)
        asset = open_splats(path)
        gaussians, frame = asset.gaussians, asset.frame
        signs = torch.tensor([1.0, 1.0, 1.0] if frame == "gltf" else [1.0, -1.0, -1.0], dtype=torch.float64)
        chosen, region = _select(config, gaussians, signs)
        if not chosen.any():
            what = "box" if config.box else "sphere"
            own = (gaussians.means + torch.tensor(gaussians.origin, dtype=torch.float64)) * signs
            lower, upper = (" ".join(f"{x:.6g}" for x in corner) for corner in (own.amin(0), own.amax(0)))
            raise InputError(
                f"--{what}: expected Gaussians inside, received none of {len(gaussians)}. "
                f"The file's own coordinates reach from {lower} to {upper}."
            )
        if config.max_splats is not None and config.max_splats < len(gaussians):
            raise InputError(
                f"--max-splats: expected at least the {len(gaussians)} Gaussians that {path.name} has, received "
                f"{config.max_splats}. Reduce it first with psd-gs export --max-splats {config.max_splats}."
            )
        scale = asset.metadata.get("scale", 1)
        unit = float(scale) if isinstance(scale, float | int) else 1.0
        original = cls(path, frame, gaussians, unit, _fit(gaussians, _turn(config, signs)), chosen, region)
        return original.with_room(config.room or 0.0)

    @classmethod
    def _of_mesh(cls, path: Path, config: RefineConfig) -> Original:
        most = PIECES if config.max_splats is None else config.max_splats
        surface = coat(path, config.texture_size, config.material, most, config.sha256)
        if not surface.chosen.any():
            faces = "triangles" if config.material is None else f"triangles of --material {config.material!r}"
            raise InputError(f"{path.name}: expected {faces} with an area, received none. Nothing of it can be seen.")
        to_world = _fit(surface.gaussians, _turn(config, torch.ones(3, dtype=torch.float64)))
        return cls(path, "gltf", surface.gaussians, 1.0, to_world, surface.chosen, None, surface)

    def with_room(self, room: float) -> Original:
        """Smaller and lower in the world: in a ball of which the upper ``room`` radii of the old one are free."""
        if not room:
            return self
        larger = torch.eye(4, dtype=torch.float64)
        larger[:3] /= 1 + room / 2
        larger[1, 3] = -RADIUS * room / 2 / (1 + room / 2)
        return replace(self, to_world=larger @ self.to_world)

    def fitted(self, gaussians: Gaussians) -> Gaussians:
        """From its own place into the world."""
        return moved(gaussians, self.to_world)

    def returned(self, gaussians: Gaussians) -> Gaussians:
        """From the world into its own place."""
        return moved(gaussians, inverse(self.to_world))

    def inside(self, points: Float[Tensor, "N 3"]) -> Bool[Tensor, " N"]:
        """Which points of the world lie in the region."""
        if self.region is None:
            return torch.ones(len(points), dtype=torch.bool, device=points.device)
        back = inverse(self.to_world)
        own = points.detach().cpu().double() @ back[:3, :3].T + back[:3, 3]
        return self.region(own).to(points.device)

    def restored(self, asset: Gaussians, rows: Int[Tensor, " N"], parts: tuple[str, ...] | None) -> Gaussians:
        """A refined asset in its own place; what was not to change is the original's, to the bit.

        Args:
            asset: in the world.
            rows: which Gaussian of the original each one was, -1 for new ones.
            parts: names of the parameters that were optimized; None is all.
        """
        out = self.returned(asset.detach().to("cpu"))
        old, same = rows >= 0, (rows >= 0) & ~self.chosen[rows.clamp_min(0)]
        for name, tensor in out.params().items():
            exact = same if parts is None or name in parts else old
            tensor[exact] = getattr(self.gaussians, name)[rows[exact]]
        return out


def _located(asset: Path) -> Path:
    """The splat file that is meant: ``asset`` itself, or that of a run folder.

    Raises:
        InputError: a folder of something else, or no splat file by its name.
    """
    path = asset / SPLAT if asset.is_dir() else asset
    if asset.is_dir() and not path.is_file():
        raise InputError(f"{asset}: expected a run folder with {SPLAT}, received one without. Name a file in it.")
    format_of(path)  # refuses what is none
    return path.resolve()


def inverse(matrix: Float[Tensor, "4 4"]) -> Float[Tensor, "4 4"]:
    """Of a rotation, a scale and a translation, exactly as good as they are."""
    factor, turn = similarity(matrix.numpy())
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3] = torch.from_numpy(turn.T / factor)
    out[:3, 3] = -out[:3, :3] @ matrix[:3, 3]
    return out


def _select(
    config: RefineConfig, gaussians: Gaussians, signs: Float[Tensor, " 3"]
) -> tuple[Bool[Tensor, " N"], selection.Region | None]:
    """Which Gaussians may change, and the region that they stay in; ``signs`` lead from the file's axes to ours."""
    origin = torch.tensor(gaussians.origin, dtype=torch.float64)
    if config.mask is not None:
        wanted = open_splats(config.mask).gaussians
        places = wanted.means + torch.tensor(wanted.origin, dtype=torch.float64) - origin
        chosen = selection.matching(gaussians.means, places, config.mask)
        return chosen, selection.nearest(gaussians.means, chosen)
    if config.box is not None:
        corners = torch.tensor(config.box, dtype=torch.float64).view(2, 3) * signs - origin
        region = selection.box(corners.amin(0), corners.amax(0))
    elif config.sphere is not None:
        centre = torch.tensor(config.sphere[:3], dtype=torch.float64) * signs - origin
        region = selection.ball(centre, config.sphere[3])
    else:
        return torch.ones(len(gaussians), dtype=torch.bool), None
    return region(gaussians.means), region


def _direction(axis: Axis) -> Float[Tensor, " 3"]:
    out = torch.zeros(3, dtype=torch.float64)
    out["xyz".index(axis[1])] = 1.0 if axis[0] == "+" else -1.0
    return out


def _turn(config: RefineConfig, signs: Float[Tensor, " 3"]) -> Float[Tensor, "3 3"]:
    """The rotation from axes that are ours as far as the format tells, to those that the user names."""
    if config.up is None and config.front is None:
        return torch.eye(3, dtype=torch.float64)
    y, z = torch.eye(3, dtype=torch.float64)[1:]
    up = _direction(config.up) * signs if config.up else None
    front = _direction(config.front) * signs if config.front else None
    if front is None:
        assert up is not None
        front = z if abs(float(up @ z)) < 0.5 else -y * (up @ z)  # z up: the front looks along -y, as in Blender
    if up is None:
        up = y if abs(float(front @ y)) < 0.5 else z
    return torch.stack([torch.linalg.cross(up, front), up, front])


def _fit(gaussians: Gaussians, turn: Float[Tensor, "3 3"]) -> Float[Tensor, "4 4"]:
    """What fits the asset into the world; fog around it, less than half as opaque as is usual in it, does not count."""
    opacity = gaussians.opacities.sigmoid()
    shows = opacity >= VISIBLE
    usual = opacity[shows if shows.any() else slice(None)].median()
    centre, reach = bounding_ball(gaussians.select(opacity >= 0.5 * usual))
    factor = RADIUS / reach
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3] = factor * turn
    out[:3, 3] = -factor * turn @ centre.double()
    return out


# --- the work --------------------------------------------------------------------------------------------------------


class Refinement:
    """What a trainer has to know of the asset that it changes.

    Attributes:
        original: the asset.
        start: the Gaussians that may change, in the world.
        around: the others, which are rendered with them.
        parts: names of the parameters that are optimized; None is all.
        rows: which Gaussian of the original each of the present ones was, -1 for new ones.
        zoom: how many times as large as the prior sees them views are rendered.
    """

    def __init__(self, original: Original, config: Config, device: torch.device | None = None) -> None:
        if config.solid_steps:
            raise ConfigError(f"solid_steps: expected 0 where an asset is refined, received {config.solid_steps}.")
        self.original, self.config = original, config.refine
        whole = original.fitted(original.gaussians).to(device or torch.device("cpu"))
        self.start, self.around = whole.select(original.chosen), whole.select(~original.chosen)
        self.parts = PARTS[config.refine.only]
        self.rows = original.chosen.nonzero()[:, 0]
        self._ties = original.coat.ties[original.chosen].to(whole.device) if original.coat else None
        self.zoom = _zoom(whole, config)
        self._across = 2 * config.cameras.radius
        self._kept = whole if config.refine.keep else None
        self._covered = _covered(whole) if config.refine.keep else None
        room = config.densify.cap
        if config.refine.max_splats is not None:
            room = config.refine.max_splats - len(whole)
        grows = config.densify.enabled and config.refine.only != "colour"
        self.densify: DensifyConfig = replace(config.densify, cap=len(self.start) + room, enabled=grows)
        self._spared = prunable(self.start, self.densify)

    def scene(self, gaussians: Gaussians) -> Gaussians:
        """The present Gaussians and all that stand around them."""
        if not len(self.around):
            return gaussians
        out = replace(gaussians)
        for name, tensor in gaussians.params().items():
            setattr(out, name, torch.cat([tensor, getattr(self.around, name)]))
        return out

    def optimizes(self, name: str) -> bool:
        return self.parts is None or name in self.parts

    def spared(self) -> Bool[Tensor, " N"]:
        """Which of the present ones are not to be dropped: those that were as faint or large from the beginning."""
        lookup = torch.zeros(len(self.original.chosen), dtype=torch.bool)
        lookup[self.original.chosen] = self._spared.cpu()
        return ((self.rows >= 0) & lookup[self.rows.clamp_min(0)]).to(self.start.device)

    @torch.no_grad()
    def pool(self, gaussians: Gaussians, step: int, seen: int) -> Float[Tensor, "N 3"]:
        """Let small Gaussians share their gradients that lie together in a cell, as large as a pixel of the prior's.

        It cannot tell them apart, so that each one's own gradient is noise, which Adam would make as large as what it
        means. What varies between them in the original goes on varying. On a mesh, texels tie them instead.

        Args:
            gaussians: with gradients, which are changed in place.
            step: its number; the cells lie elsewhere in each, so that no seams show.
            seen: side of the images that the prior sees, pixels.

        Returns:
            Where each one is, for :meth:`confine`.
        """
        means = gaussians.means.detach()
        if self.original.coat is None:
            cell = self._across / seen
            offset = torch.rand(3, generator=torch.Generator().manual_seed(step)).to(means.device)
            number = cells(means / cell + offset)
            # All of it up to a quarter of a cell, nothing from half a cell on: those are seen by themselves.
            share = (2 - 4 * gaussians.scales.detach().exp().amax(1) / cell).clamp(0, 1)
            for parameter in gaussians.params().values():
                if parameter.grad is not None and parameter.grad.numel():
                    weight = share.view(-1, *[1] * (parameter.ndim - 1))
                    parameter.grad.lerp_(shared(parameter.grad, number), weight.expand_as(parameter))
        return means.clone()

    @torch.no_grad()
    def confine(self, before: Float[Tensor, "N 3"], gaussians: Gaussians) -> None:
        """Shorten the last step of small Gaussians, take back those that lead out of the region, and give those that
        one texel of a mesh paints one colour.

        Args:
            before: where each was.
            gaussians: where they are now; changed in place.
        """
        size = gaussians.scales.exp().amax(1, keepdim=True)
        gaussians.means.copy_(before.lerp(gaussians.means, (size / STEP_OF).clamp_max(1)))
        self.hold(before, gaussians)
        if self._ties is not None:
            gaussians.sh0.copy_(shared(gaussians.sh0, self._ties))

    @torch.no_grad()
    def hold(self, before: Float[Tensor, "N 3"], gaussians: Gaussians) -> None:
        """Put what left the region back to where it was, in place."""
        if self.original.region is not None:
            inside = self.original.inside(gaussians.means)
            gaussians.means.copy_(torch.where(inside[:, None], gaussians.means, before))

    def follow(self, index: Int[Tensor, " M"], new: Bool[Tensor, " M"]) -> None:
        """The Gaussians became those at ``index``; ``new`` are second copies."""
        self.rows = torch.where(new.cpu(), -1, self.rows[index.cpu()])

    def anchor(
        self, gaussians: Gaussians, rgb: Float[Tensor, "C H W 3"], cameras: Cameras, background: Tensor
    ) -> Tensor:
        """How far views and parameters are from the original's, weighted by ``keep``; the farther, the less more of it
        counts (Geman and McClure's estimator with :data:`BOUND`).

        In the units of the score's loss for a prior in pixel space (x0 = 2 image - 1): a pixel that is wrong by a
        difference is pulled as a clean estimate that differs as much would pull it. A parameter counts by the pixels
        that its Gaussian covers.
        """
        if self._kept is None or self._covered is None:
            return rgb.new_zeros(())
        half = max(1, len(cameras) // 2)  # which they are is drawn anew in every step, as all views are
        with torch.no_grad():
            wanted = render(self._kept, cameras[:half], background).rgb
        views = bounded((rgb[:half] - wanted).square().sum(-1)).sum() / (self.zoom**2 * half)
        old = (self.rows >= 0).to(rgb.device)
        rows = self.rows.clamp_min(0).to(rgb.device)
        before = self._kept.select(rows)
        off = (sh0_to_rgb(gaussians.sh0) - sh0_to_rgb(before.sh0)).square().sum((1, 2))
        off = off + (gaussians.opacities.sigmoid() - before.opacities.sigmoid()).square()
        off = off + 0.1 * (gaussians.scales - before.scales).square().sum(1)
        size = before.scales.exp().amax(1, keepdim=True)
        off = off + 0.1 * ((gaussians.means - before.means) / size).square().sum(1)
        return 2 * self.config.keep * (views + (old * self._covered[rows] * bounded(off)).sum())

    def finished(self, gaussians: Gaussians) -> tuple[Gaussians, Int[Tensor, " N"]]:
        """The whole asset in its own place, in the order of the original and new ones last, and what each one was.

        New ones that hardly show are left out.

        Args:
            gaussians: the present ones.
        """
        others = (~self.original.chosen).nonzero()[:, 0]
        rows = torch.cat([self.rows, others])
        whole = self.scene(gaussians.detach()).to("cpu")
        keep = (rows >= 0) | (whole.opacities.sigmoid() >= VISIBLE)
        rows, whole = rows[keep], whole.select(keep)
        order = torch.where(rows < 0, len(self.original.gaussians), rows).argsort(stable=True)
        return self.original.restored(whole.select(order), rows[order], self.parts), rows[order]

    def state_dict(self) -> dict[str, Tensor]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.rows = state["rows"].clone()


def shared(values: Float[Tensor, "N 1 3"], ties: Int[Tensor, " N"]) -> Float[Tensor, "N 1 3"]:
    """The mean of the values that have the same number, in the place of each."""
    count = int(ties.max()) + 1
    total = values.new_zeros(count, *values.shape[1:]).index_add_(0, ties, values)
    members = values.new_zeros(count).index_add_(0, ties, torch.ones_like(ties, dtype=values.dtype))
    return (total / members.clamp_min(1).view(-1, *[1] * (values.ndim - 1)))[ties]


def bounded(error: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Squared differences that count in full while they are small, and together never more than :data:`BOUND`."""
    return error / (1 + error / BOUND)


def cells(places: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
    """The number of the unit cube that each place lies in, from 0 without gaps."""
    cube = places.nan_to_num(0.0).clamp(-1e5, 1e5).floor().long()
    cube -= cube.amin(0)
    _, height, depth = (cube.amax(0) + 1).tolist()
    return ((cube[:, 0] * height + cube[:, 1]) * depth + cube[:, 2]).unique(return_inverse=True)[1]


def _covered(whole: Gaussians) -> Float[Tensor, " N"]:
    """Pixels that each Gaussian makes up in a view of 64, mean over the evaluation views."""
    views = evaluation_cameras(64).to(whole.device)
    return contribution(whole, views) / len(views)


def _zoom(whole: Gaussians, config: Config) -> int:
    size = whole.scales.exp().topk(2, dim=1).values.log().mean(1).exp()
    shows = whole.opacities.sigmoid() >= VISIBLE
    usual = float((size[shows] if shows.any() else size).median())
    side = config.cameras.size[0]
    pixel = 2 * config.cameras.radius / side
    return max(1, min(math.ceil(PIXEL * pixel / max(usual, 1e-6)), MOST_ZOOM, LARGEST // side))
