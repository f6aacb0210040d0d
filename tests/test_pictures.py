"""Turntable, preview strip and contact sheet, read back by their decoders."""

import json

import numpy as np
import pytest
import torch
from imageio_ffmpeg import count_frames_and_secs, read_frames
from PIL import Image

from psd_gs.errors import InputError, OutputError
from psd_gs.export.pictures import (
    contact_sheet,
    picture_png,
    preview_png,
    progress_strip,
    turntable_film,
)
from psd_gs.gaussians import Gaussians, from_points

FRONT, RIGHT, BACK, LEFT = torch.eye(3)[0], torch.eye(3)[1], torch.eye(3)[2], torch.tensor([1.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def sphere() -> Gaussians:
    """A ball away from the origin, with one colour on each side (+Z red, +X green, -Z blue, -X yellow)."""
    g = torch.Generator().manual_seed(0)
    d = torch.nn.functional.normalize(torch.randn(3000, 3, generator=g), dim=1)
    colours = torch.stack([FRONT, RIGHT, BACK, LEFT])
    sides = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0]])
    rgb = colours[(d @ sides.T).argmax(1)]
    return from_points(0.4 * d + torch.tensor([3.0, -1.0, 2.0]), rgb, scale=0.025, opacity=0.95)


def test_turntable(sphere, tmp_path):
    path = tmp_path / "turntable.mp4"
    turntable_film(sphere, path, frames=16, size=64, fps=8, elevation=0, metadata={"prompt": "a ball, läuft"})
    frames = read_frames(str(path))
    info = next(frames)
    pictures = [np.frombuffer(frame, np.uint8).reshape(64, 64, 3) for frame in frames]
    assert len(pictures) == count_frames_and_secs(str(path))[0] == 16
    assert info["size"] == (64, 64)
    assert info["fps"] == 8
    assert info["codec"] == "h264"
    assert info["pix_fmt"].startswith("yuv420p")
    for picture, colour in zip(pictures[::4], (FRONT, RIGHT, BACK, LEFT), strict=True):
        np.testing.assert_allclose(picture[32, 32], 255 * colour, atol=16)
        np.testing.assert_allclose(picture[2, 2], 255, atol=8)
    # It loops: the step from the last frame to the first is like every other one.
    steps = [
        np.abs(np.subtract(a, b, dtype=int)).mean() for a, b in zip(pictures, pictures[1:] + pictures[:1], strict=True)
    ]
    assert steps[-1] < 1.5 * max(steps[:-1])
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # faststart
    assert b'{"prompt":"a ball, l\\u00e4uft"}' in data
    assert [p.name for p in tmp_path.iterdir()] == ["turntable.mp4"]


def test_turntable_refuses_odd_sizes(sphere, tmp_path):
    with pytest.raises(InputError, match="received 65; use 66"):
        turntable_film(sphere, tmp_path / "a.mp4", size=65)


def test_unwritable_folder(sphere, tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        preview_png(sphere, tmp_path / "nowhere" / "a.png", views=1, size=16)
    with pytest.raises(OutputError, match="cannot write"):
        turntable_film(sphere, tmp_path / "nowhere" / "a.mp4", frames=2, size=16)


def test_preview(sphere, tmp_path):
    metadata = {"prompt": "ein Bär 🐻", "seed": 3}
    preview_png(sphere, tmp_path / "preview.png", size=64, elevation=0, metadata=metadata)
    with Image.open(tmp_path / "preview.png") as picture:
        picture.load()
        assert json.loads(picture.text["psd-gs"]) == metadata
        pixels = np.asarray(picture)
    assert pixels.shape == (64, 256, 3)
    for i, colour in enumerate((FRONT, RIGHT, BACK, LEFT)):
        np.testing.assert_allclose(pixels[32, 64 * i + 32], 255 * colour, atol=8)
        covered = (pixels[:, 64 * i : 64 * i + 64] < 250).any(-1)
        # Centred, whole and filling the frame, wherever the asset lies.
        assert not covered[0].any()
        assert not covered[:, 0].any()
        assert covered[:, 32].sum() > 48
        assert covered[::-1].argmax(0)[32] == pytest.approx(covered.argmax(0)[32], abs=1)


def test_contact_sheet(tmp_path):
    red = torch.tensor([1.0, 0.0, 0.0]).expand(20, 40, 3)
    Image.new("RGBA", (10, 30), "blue").save(tmp_path / "blue.png")
    images = [red, tmp_path / "blue.png", red]
    contact_sheet(images, tmp_path / "plain.png", columns=2, size=64, metadata={"n": 3})
    captions = ["one", "a caption far too long for the two lines that it may take " * 3, ""]
    contact_sheet(images, tmp_path / "captions.png", captions=captions, columns=2, size=64)
    with Image.open(tmp_path / "plain.png") as picture:
        assert json.loads(picture.text["psd-gs"]) == {"n": 3}
        plain = np.asarray(picture)
    captioned = np.asarray(Image.open(tmp_path / "captions.png"))
    assert plain.shape == (8 + 2 * 72, 8 + 2 * 72, 3)
    assert plain[8 + 32, 8 + 32].tolist() == [255, 0, 0]
    assert plain[8 + 8, 8 + 32].tolist() == [255, 255, 255]  # the wide picture keeps its proportions
    assert plain[8 + 32, 80 + 32].tolist() == [0, 0, 255]
    assert plain[80 + 32, 8 + 32].tolist() == [255, 0, 0]
    assert (plain[80:, 80:] == 255).all()
    assert captioned.shape[0] > plain.shape[0]
    below = captioned[8 + 64 : captioned.shape[0] // 2]
    assert (below[:, 8:72] < 100).any()
    assert (below[:, 80:144] < 100).any()
    assert (below[:, 145:] == 255).all()  # no text leaves its cell
    with pytest.raises(InputError, match="3 images and 1 captions"):
        contact_sheet(images, tmp_path / "a.png", captions=["one"])
    with pytest.raises(InputError, match="cannot read"):
        contact_sheet([tmp_path / "nothing.png"], tmp_path / "a.png")


# --- animated pictures -----------------------------------------------------------------------------------------------


def film(path) -> np.ndarray:
    """All frames ``[F, H, W, 4]``."""
    with Image.open(path) as picture:
        frames = []
        for i in range(picture.n_frames):
            picture.seek(i)
            frames.append(np.asarray(picture.convert("RGBA")))
        assert len(frames) == 1 or picture.info["loop"] == 0
        return np.stack(frames)


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_animated_pictures_are_transparent_and_turn(sphere, tmp_path, suffix):
    path = tmp_path / f"turn{suffix}"
    turntable_film(sphere, path, frames=4, size=64, fps=8, elevation=0, metadata={"prompt": "a ball, läuft"})
    frames = film(path)
    assert frames.shape == (4, 64, 64, 4)
    for frame, colour in zip(frames, (FRONT, RIGHT, BACK, LEFT), strict=True):
        np.testing.assert_allclose(frame[32, 32, :3], 255 * colour, atol=24)
        assert frame[32, 32, 3] > 250
        assert frame[2, 2, 3] == 0
    assert b"a ball, l\\u00e4uft" in path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    turntable_film(sphere, path, frames=2, size=64, background=(0.0, 0.0, 1.0))
    frames = film(path)
    assert (frames[..., 3] == 255).all()
    np.testing.assert_allclose(frames[:, 2, 2, :3], [(0, 0, 255)] * 2, atol=12)


def test_colours_of_transparent_pictures_are_not_darkened(sphere, tmp_path):
    """Over white they must look like the film on white."""
    turntable_film(sphere, tmp_path / "a.webp", frames=1, size=64)
    turntable_film(sphere, tmp_path / "b.webp", frames=1, size=64, background=(1.0, 1.0, 1.0))
    clear, white = (film(tmp_path / name)[0].astype(float) for name in ("a.webp", "b.webp"))
    alpha = clear[..., 3:] / 255
    assert np.abs(clear[..., :3] * alpha + 255 * (1 - alpha) - white[..., :3]).mean() < 3


def test_depth_and_normals_of_a_ball(sphere, tmp_path):
    turntable_film(sphere, tmp_path / "depth.webp", kind="depth", frames=1, size=64, elevation=0)
    turntable_film(sphere, tmp_path / "normal.webp", kind="normal", frames=1, size=64, elevation=0)
    depth, normal = film(tmp_path / "depth.webp")[0], film(tmp_path / "normal.webp")[0]
    assert depth[32, 32, 0] > depth[32, 44, 0] > depth[32, 52, 0]
    assert depth[2, 2, 3] == normal[2, 2, 3] == 0

    def facing(rows: slice, columns: slice) -> np.ndarray:
        vector = normal[rows, columns, :3].reshape(-1, 3).mean(0) / 127.5 - 1
        return vector / np.linalg.norm(vector)

    middle = slice(28, 36)
    np.testing.assert_allclose(facing(middle, middle), [0, 0, 1], atol=0.2)
    assert facing(middle, slice(44, 50))[0] > 0.2
    assert facing(middle, slice(14, 20))[0] < -0.2
    assert facing(slice(14, 20), middle)[1] > 0.2
    assert facing(slice(44, 50), middle)[1] < -0.2


def test_films_that_cannot_be(sphere, tmp_path):
    for name, options, said in (
        ("a.avi", {}, r"expected a film ending in .mp4, .webp, .gif, received .avi"),
        ("a", {}, "received no extension"),
        ("a.gif", {"frames": 0}, "received 0 of 320 at 24"),
        ("a.gif", {"fps": 0}, "at 0"),
        ("a.mp4", {"size": 65}, "use 66"),
    ):
        with pytest.raises(InputError, match=said):
            turntable_film(sphere, tmp_path / name, **options)
    with pytest.raises(OutputError, match="cannot write"):
        turntable_film(sphere, tmp_path / "missing" / "a.webp", frames=1, size=16)
    assert list(tmp_path.iterdir()) == []


def test_how_an_asset_came_to_be(sphere, tmp_path):
    frames = [tmp_path / f"{step:06d}.png" for step in (0, 40, 300)]
    for frame in frames:
        picture_png(sphere, frame, size=48)
    progress_strip(frames, tmp_path / "progress.png")
    strip = Image.open(tmp_path / "progress.png")
    assert strip.width > 2.8 * 192
    assert strip.height < 300
    with pytest.raises(InputError, match="cannot read"):
        progress_strip([tmp_path / "000001.png"], tmp_path / "progress.png")
