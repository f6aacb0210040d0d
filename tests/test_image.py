"""Assets from pictures: what is read and refused, how it is framed, that its view is held, and what decides a run."""

from __future__ import annotations

import json
import struct
import sys
import types
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from painted import PaintedPrior, RedReward, assert_same, red_ball, tiny_config
from PIL import Image

from psd_gs import cli
from psd_gs.config import Config, ImageConfig, from_dict, make_config, to_dict
from psd_gs.errors import ConfigError, InputError, OutputError
from psd_gs.files import read_picture
from psd_gs.job import Job, Request, differences, resolve
from psd_gs.pipeline import TextTo3DPipeline
from psd_gs.reference import SIZE, Reference, cut_out, framed, over_white, pinned
from psd_gs.render import render
from psd_gs.result import IMAGE, Result, products_of
from psd_gs.scoring import evaluation_cameras

pytestmark = pytest.mark.usefixtures("quick_files")

BLUE = (30, 60, 230)


def square(path: Path, size: tuple[int, int] = (40, 60), colour=BLUE, **options) -> Path:
    """A blue rectangle, width and height, off the middle of a transparent picture."""
    picture = Image.new("RGBA", (200, 120), (255, 0, 0, 0))
    picture.paste((*colour, 255), (30, 20, 30 + size[0], 20 + size[1]))
    picture.save(path, **options)
    return path


def image(*files: Path, **options) -> ImageConfig:
    return pinned(Config(image=ImageConfig(files=tuple(map(str, files)), **options))).image


def png(depth: int, kind: int, rows: np.ndarray) -> bytes:
    """A PNG written by hand: ``kind`` 0 is grey, 2 RGB, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    raw = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# --- reading ---------------------------------------------------------------------------------------------------------


def test_the_thing_is_in_the_middle_and_takes_its_share(tmp_path):
    tall = framed(cut_out(str(square(tmp_path / "a.png"))), 0.75)
    rows, columns = (tall[3] > 0.5).nonzero().T
    assert (rows.min(), rows.max() + 1) == (SIZE / 8, SIZE * 7 / 8)
    assert (columns.min(), columns.max() + 1) == (SIZE / 2 - 128, SIZE / 2 + 128)
    inside = tall[:3, tall[3] > 0.99]
    torch.testing.assert_close(inside, (torch.tensor(BLUE) / 255)[:, None].expand_as(inside), atol=4e-3, rtol=0)
    assert float((tall[:3] / tall[3].clamp_min(1e-6))[0].max()) < 0.2, "nothing of the hidden red shows at the edge"


def test_the_camera_of_an_exif_picture_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # held on its side: has to be turned by 90 degrees to the right
    turned = square(tmp_path / "turned.png", exif=exif)
    assert cut_out(str(turned)).size == (120, 200)
    plain = read_picture(square(tmp_path / "plain.png"), "RGBA")
    upright = plain.transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(framed(cut_out(str(turned)), 0.75), framed(upright, 0.75))
    assert read_picture(turned, "RGBA").size == (200, 120), "other readers leave pictures as they are stored"


def test_sixteen_bits_are_read_as_eight(tmp_path):
    rgba = np.zeros((64, 64, 4), np.uint16)
    rgba[16:48, 16:48] = (0x2080, 0x8040, 0xFF00, 0xFFFF)
    (tmp_path / "deep.png").write_bytes(png(16, 6, rgba))
    assert cut_out(str(tmp_path / "deep.png")).getpixel((32, 32)) == (0x20, 0x80, 0xFF, 255)
    grey = np.arange(64 * 64).reshape(64, 64) * 16
    (tmp_path / "grey.png").write_bytes(png(16, 0, grey))
    assert (np.asarray(read_picture(tmp_path / "grey.png"))[..., 0] == grey >> 8).all()


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_of_a_film_the_first_frame_counts(tmp_path, caplog, suffix):
    frames = [Image.open(square(tmp_path / f"{i}.png", colour=colour)) for i, colour in enumerate((BLUE, (0, 255, 0)))]
    options = {"lossless": True} if suffix == "webp" else {"disposal": 2} if suffix == "gif" else {}
    frames[0].save(tmp_path / f"film.{suffix}", save_all=True, append_images=frames[1:], **options)
    _, green, blue, alpha = cut_out(str(tmp_path / f"film.{suffix}")).getpixel((50, 50))
    assert (alpha, green < 80, blue > 200) == (255, True, True)
    assert caplog.messages == [f"{tmp_path / f'film.{suffix}'}: a film, of which the first picture is taken"]


def opaque(path: Path) -> None:
    Image.new("RGB", (64, 64), BLUE).save(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (opaque, r"expected a picture with transparency around the thing.*psd-gs\[background\]"),
        (lambda p: p.write_bytes(png(16, 2, np.full((32, 32, 3), 999))), "expected a picture with transparency"),
        (lambda p: Image.new("RGBA", (64, 64)).save(p), "received 0 x 0"),
        (lambda p: square(p, (4, 60)), "at least 16 x 16 pixels that are more than half opaque, received 4 x 60"),
        (lambda p: p.write_bytes(b"hello"), "expected a sound PNG"),
        (lambda p: Image.new("L", (9, 9)).save(p, "TIFF"), "TIFF pictures are not read"),
        (lambda p: Image.new("RGBA", (9, 9)).save(p, "BMP"), "BMP pictures are not read. Convert it to PNG"),
        (lambda p: p.write_bytes(b"\0\0\0\x1cftypavif" + bytes(99)), "AVIF or HEIC pictures are not read"),
        (lambda p: p.write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "SVG pictures are not read"),
        (lambda p: p.write_bytes(png(8, 6, np.zeros((1, 1, 4)))[:40]), "expected a sound PNG"),
        (lambda p: p.write_bytes(png(8, 0, np.zeros((6000, 6000)))), "36000000|6000 x 6000 pixels are more than"),
        (lambda p: p.mkdir(), "it is a folder"),
        (lambda p: None, "cannot read"),
    ],
    ids=[
        *("opaque", "deep", "empty", "thin", "text", "TIFF", "BMP", "AVIF", "SVG"),
        *("cut off", "huge", "folder", "missing"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, monkeypatch, make, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        image(path)
    assert "\n" not in str(caught.value)


def test_a_background_is_removed_where_the_package_is(tmp_path, monkeypatch):
    """A stand-in for rembg: its model is not to be had here."""
    asked = []

    def remove(picture, session, only_mask):
        asked.append((picture.mode, session, only_mask))
        mask = Image.new("L", picture.size)
        mask.paste(255, (8, 8, 40, 40))
        return mask

    stand_in = types.SimpleNamespace(new_session=lambda name: name, remove=remove)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "rembg", stand_in)
    opaque(tmp_path / "a.png")
    config = image(tmp_path / "a.png")
    assert not asked, "nothing is fetched before the run begins"
    assert float(Reference(config).pictures[0, 3].mean()) == pytest.approx(0.75**2, abs=0.01)
    assert asked == [("RGB", "u2net", True)]
    stand_in.remove = lambda *_, **__: sys.exit(1)
    with pytest.raises(InputError, match="rembg says: 1"):
        Reference(config)


# --- holding ---------------------------------------------------------------------------------------------------------


def test_the_cameras_are_those_of_the_evaluation(tmp_path):
    file = square(tmp_path / "a.png")
    known = Reference(image(file, file, azimuth=(0.0, 135.0), elevation=(15.0, 30.0)))
    torch.testing.assert_close(known.cameras(128).viewmats, evaluation_cameras(128).viewmats[[0, 5]])
    torch.testing.assert_close(known.cameras(128).Ks, evaluation_cameras(128).Ks[[0, 5]])
    assert image(file, file, azimuth=(0.0, 90.0), elevation=(7.0,)).places == [(0.0, 7.0), (90.0, 7.0)]


def test_the_loss_is_that_of_its_units(tmp_path):
    known = Reference(image(square(tmp_path / "a.png"), weight=(4.0, 1.0)))
    wanted, grey = known.wanted(32), torch.full((3,), 0.5)
    exact = wanted[..., :3] + 0.5 * (1 - wanted[..., 3:])
    loss, psnr = known.loss(exact, wanted[..., 3:], grey, 0.0, 10)
    assert float(loss) == pytest.approx(0, abs=1e-12)
    assert float(psnr) == pytest.approx(100)
    loss, psnr = known.loss(exact + 0.1, wanted[..., 3:] - 0.2, grey, 0.5, 10)
    assert float(psnr) == pytest.approx(20, abs=1e-3)
    assert float(loss) == pytest.approx(2.0 * 0.5 * 10 * 4 * (0.1**2 + 0.2**2), rel=1e-4)  # half a squared 2 x error


def holding(path: Path, **options):
    """A short run toward a red ball with a blue rectangle in front."""
    config = tiny_config(image=image(path, elevation=(15.0,), weight=(30.0, 10.0)), **options)
    return replace(config, backgrounds="augment")


def made(config, folder: Path) -> Result:
    with Job.open(folder, config) as job:
        job.begin(TextTo3DPipeline(PaintedPrior(), RedReward()))
        assert job.run()
        return job.finish(products={IMAGE: products_of(config)[IMAGE]} if config.image.files else {})


def test_the_view_is_held_and_the_prior_makes_the_rest(tmp_path):
    config = holding(square(tmp_path / "blue.png"))
    result = made(config, tmp_path / "run")
    known = Reference(config.image)
    (held,), (free,) = known.held(result.gaussians, 64), known.held(red_ball(), 64)
    assert held["psnr"] > free["psnr"] + 3
    front, back = render(result.gaussians, evaluation_cameras(64)[torch.tensor([0, 2])]).rgb.sum((1, 2))
    assert front[2] > 1.5 * front[0]
    assert back[0] > back[2]
    record = json.loads((tmp_path / "run" / "psd_gs.json").read_text())
    assert record["images"] == result.images == Result.load(tmp_path / "run").images
    assert record["images"][0]["file"] == "blue.png"
    assert set(record["files"]) == {"splat.ply", IMAGE}
    with Image.open(tmp_path / "run" / IMAGE) as sheet:
        assert sheet.width >= 2 * 256
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["image_psnr"] > log[0]["image_psnr"]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    config = holding(square(tmp_path / "blue.png"), steps=12)
    pipeline = TextTo3DPipeline(PaintedPrior(), RedReward())
    whole = pipeline.trainer(config)
    for event in whole.run():
        if event.step == 5:
            kept = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    again = pipeline.trainer(config)
    again.load_state_dict(kept)
    for _ in again.run():
        pass
    assert_same(whole.state_dict(), again.state_dict())


# --- what decides a run ----------------------------------------------------------------------------------------------


def test_numbers_of_places_have_to_fit():
    files = ("a.png", "b.png")
    with pytest.raises(ConfigError, match="--image-azimuth: expected one for each of the 2 pictures, received 1"):
        ImageConfig(files=files)
    with pytest.raises(ConfigError, match="--image-elevation: expected one, or one for each of the 2"):
        ImageConfig(files=files, azimuth=(0.0, 90.0), elevation=(1.0, 2.0, 3.0))
    with pytest.raises(ConfigError, match="expected a list, received"):
        from_dict(ImageConfig, {"files": "a.png"}, "image")


def test_pictures_are_told_apart_by_what_they_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    square(Path("a.png"))
    pipeline = TextTo3DPipeline(PaintedPrior(), RedReward(), RedReward())
    options = {"image": {"files": ["a.png"]}}
    config = resolve(Request("a ball", options=options), pipeline)
    assert config.image.files == (str(tmp_path / "a.png"),)
    assert len(config.image.sha256[0]) == 64
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config))), "") == config
    Path("a.png").rename("b.png")
    moved = resolve(Request("a ball", options={"image": {"files": ["b.png"]}}), pipeline)
    assert differences(config, moved) == []
    square(Path("b.png"), colour=(0, 0, 0))
    other = resolve(Request("a ball", options={"image": {"files": ["b.png"]}}), pipeline)
    assert differences(config, other) == ["image"]
    with pytest.raises(InputError, match=r"b\.png is another picture than when the run began"):
        pinned(moved)


def test_a_run_of_another_picture_gets_a_folder_of_its_own(tmp_path):
    config = tiny_config(steps=3, image=image(square(tmp_path / "a.png")))
    made(config, tmp_path / "runs" / "a-red-ball-0")
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    moved = replace(config, image=image(tmp_path / "b.png"))
    with Job.find(tmp_path / "runs", moved, resume=True) as job:
        assert job.folder.name == "a-red-ball-0"
        assert job.config.image == moved.image
    other = replace(config, image=image(square(tmp_path / "c.png", colour=(0, 0, 0))))
    with Job.find(tmp_path / "runs", other) as job:
        assert job.folder.name == "a-red-ball-0-2"
    with pytest.raises(OutputError, match="differs in image"):
        Job.open(tmp_path / "runs" / "a-red-ball-0", other)


def test_the_command_says_what_it_resolved(tmp_path, capsys):
    file = square(tmp_path / "a.png")
    places = ["--image-azimuth=0", "--image", str(file), "--image-azimuth=-90", "--image-elevation=10"]
    cli.main(["generate", "a mug", "--image", str(file), *places, "--dry-run"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"image: files: - {file} - {file} azimuth: - 0.0 - -90.0 elevation: - 10.0 sha256:" in shown
    with pytest.raises(SystemExit):
        cli.main(["generate", "a mug", "--image", str(tmp_path / "b.png"), "--dry-run"])
    assert "b.png" in capsys.readouterr().err
    cli.main(["options", "image.files"])
    assert "image.files (list of str)" in " ".join(capsys.readouterr().out.split())
    assert make_config("draft", "mini").image == ImageConfig()


def test_what_stands_over_white():
    torch.testing.assert_close(over_white(torch.tensor([[0.2, 0.1, 0.0, 0.4]])), torch.tensor([[0.8, 0.7, 0.6]]))
