"""Turntable, preview strip and contact sheet, read back by their decoders."""

import json

import numpy as np
import pytest
import torch
from imageio_ffmpeg import count_frames_and_secs, read_frames
from PIL import Image

from psd_gs.errors import InputError, OutputError
from psd_gs.export.pictures import contact_sheet, preview_png, turntable_video
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
    turntable_video(sphere, path, frames=16, size=64, fps=8, elevation=0, metadata={"prompt": "a ball, läuft"})
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
        turntable_video(sphere, tmp_path / "a.mp4", size=65)


def test_unwritable_folder(sphere, tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        preview_png(sphere, tmp_path / "nowhere" / "a.png", views=1, size=16)
    with pytest.raises(OutputError, match="cannot write"):
        turntable_video(sphere, tmp_path / "nowhere" / "a.mp4", frames=2, size=16)


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
    with pytest.raises(InputError, match="cannot read the picture"):
        contact_sheet([tmp_path / "nothing.png"], tmp_path / "a.png")
