"""The 3DGS PLY: layout, round trip, frame, metadata, and files that are broken."""

import json
import random
import struct

import numpy as np
import pytest
import torch
from splats import turned

from psd_gs.errors import FormatError, InputError
from psd_gs.export.fitting import bounding_ball
from psd_gs.export.metadata import to_json
from psd_gs.export.ply import is_gaussian_ply, read_ply, read_ply_metadata, write_ply
from psd_gs.gaussians import Gaussians, from_points, rotation_matrices


def random_gaussians(n: int, degree: int, seed: int = 0) -> Gaussians:
    g = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.randn(n, 3, generator=g),
        quats=torch.randn(n, 4, generator=g),
        scales=torch.randn(n, 3, generator=g) - 3,
        opacities=torch.randn(n, generator=g) * 3,
        sh0=torch.randn(n, 1, 3, generator=g),
        shN=torch.randn(n, (degree + 1) ** 2 - 1, 3, generator=g) * 0.3,
    )


def read_raw(path):
    """Header lines and one dict per row, with nothing but struct."""
    head, body = path.read_bytes().split(b"end_header\n", 1)
    lines = head.decode("ascii").splitlines()
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex "))
    assert len(body) == 4 * len(names) * count
    rows = struct.iter_unpack(f"<{len(names)}f", body)
    return lines, names, [dict(zip(names, row, strict=True)) for row in rows]


def sh_basis(d):
    """The 16 real harmonics of 3DGS at a unit direction, written out from the definition."""
    x, y, z = d
    return np.array(
        [
            0.28209479177387814,
            *(-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x),
            *(
                1.0925484305920792 * x * y,
                -1.0925484305920792 * y * z,
                0.31539156525252005 * (2 * z * z - x * x - y * y),
            ),
            *(-1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y)),
            *(-0.5900435899266435 * y * (3 * x * x - y * y), 2.890611442640554 * x * y * z),
            -0.4570457994644658 * y * (4 * z * z - x * x - y * y),
            0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y),
            *(-0.4570457994644658 * x * (4 * z * z - x * x - y * y), 1.445305721320277 * z * (x * x - y * y)),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]
    )


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_round_trip_is_exact(tmp_path, degree):
    g = random_gaussians(50, degree)
    g.quats = torch.nn.functional.normalize(g.quats, dim=1)
    write_ply(g.splats(), tmp_path / "a.ply")
    back = Gaussians.of(read_ply(tmp_path / "a.ply"))
    assert back.sh_degree == degree
    for name, value in g.params().items():
        if name == "quats":  # normalized once more on the way, and turned: (w, x, -y, -z) twice is exact
            torch.testing.assert_close(back.quats, value, rtol=0, atol=2e-7)
        else:
            assert torch.equal(getattr(back, name), value), name
    assert is_gaussian_ply(tmp_path / "a.ply")


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_layout(tmp_path, degree):
    g = random_gaussians(5, degree)
    k = (degree + 1) ** 2 - 1
    write_ply(g.splats(), tmp_path / "a.ply", metadata={"prompt": "ä cat", "seed": 3})
    lines, names, rows = read_raw(tmp_path / "a.ply")
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", 'comment psd-gs {"prompt":"\\u00e4 cat","seed":3}']
    assert names == (
        ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
        + [f"f_rest_{i}" for i in range(3 * k)]
        + ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    )
    assert len(names) == (17, 26, 41, 62)[degree]
    for i, row in enumerate(rows):
        assert (row["x"], row["y"], row["z"]) == (g.means[i, 0], -g.means[i, 1], -g.means[i, 2])
        assert row["nx"] == row["ny"] == row["nz"] == 0
        assert row["f_dc_2"] == g.sh0[i, 0, 2]
        if k:  # channel-major: all coefficients of red, then green, then blue
            assert row["f_rest_0"] == -g.shN[i, 0, 0]  # -y is odd under the turn
            assert row[f"f_rest_{k + 1}"] == -g.shN[i, 1, 1]  # z is odd
            assert row[f"f_rest_{2 * k + 2}"] == g.shN[i, 2, 2]  # -x is even
        assert row["opacity"] == g.opacities[i]
        assert row["scale_1"] == g.scales[i, 1]
        assert sum(row[f"rot_{j}"] ** 2 for j in range(4)) == pytest.approx(1, abs=1e-6)
        assert row["rot_0"] == pytest.approx(float(g.quats[i, 0] / g.quats[i].norm()), abs=1e-6)


def test_turn_keeps_colours_and_ellipsoids():
    g = random_gaussians(20, 3)
    there = turned(g)
    turn = np.diag([1.0, -1.0, -1.0])
    rng = np.random.default_rng(0)
    for d in rng.normal(size=(20, 3)):
        d /= np.linalg.norm(d)
        before = np.einsum("k,nkc->nc", sh_basis(d), g.sh.numpy())
        after = np.einsum("k,nkc->nc", sh_basis(turn @ d), there.sh.numpy())
        np.testing.assert_allclose(after, before, atol=1e-5)
        unsigned = np.einsum("k,nkc->nc", sh_basis(turn @ d), g.sh.numpy())
        assert np.abs(unsigned - before).max() > 0.05  # the control: without the signs it is another colour

    def covariances(h):
        axes = rotation_matrices(h.quats).double() * h.scales.double().exp()[:, None]
        return (axes @ axes.transpose(1, 2)).numpy()

    np.testing.assert_allclose(covariances(there), turn @ covariances(g) @ turn.T, atol=1e-6)
    for name, value in turned(there).params().items():
        assert torch.equal(value, getattr(g, name))


def test_turned_render_is_the_same_picture():
    from dataclasses import replace

    from psd_gs.cameras import orbit
    from psd_gs.render import render

    g = random_gaussians(40, 3)
    g.means *= 0.3
    view = torch.tensor([30.0]), torch.tensor([20.0]), torch.tensor([4.0]), torch.tensor([40.0])
    camera = orbit(*view, 48, 48)
    turned_camera = replace(camera, viewmats=camera.viewmats @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])))
    expected = render(g, camera).rgb
    assert expected.std() > 0.05
    torch.testing.assert_close(render(turned(g), turned_camera).rgb, expected, rtol=0, atol=1e-4)


def test_writing_clips_and_drops(tmp_path):
    g = random_gaussians(6, 0)
    g.opacities[0], g.opacities[1] = 40.0, -40.0
    g.scales[2] = 50.0
    g.means[3, 1] = float("nan")
    g.sh0[4, 0, 0] = float("inf")
    g.quats[5] = 0
    write_ply(g.splats(), tmp_path / "a.ply")
    back = Gaussians.of(read_ply(tmp_path / "a.ply"))
    assert len(back) == 3
    assert back.opacities[:2].tolist() == [15.0, -15.0]
    assert back.scales[2].tolist() == [20.0, 20.0, 20.0]
    with pytest.raises(InputError, match="none is usable"):
        write_ply(g.select(torch.tensor([3, 4, 5])).splats(), tmp_path / "b.ply")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_metadata(tmp_path):
    g = random_gaussians(3, 0)
    write_ply(g.splats(), tmp_path / "a.ply")
    assert read_ply_metadata(tmp_path / "a.ply") is None
    metadata = {"prompt": "a very long prompt\n" * 200, "seed": 7, "score": float("nan"), "path": tmp_path}
    write_ply(g.splats(), tmp_path / "a.ply", metadata=metadata)
    stored = read_ply_metadata(tmp_path / "a.ply")
    assert stored is not None
    assert stored["prompt"].startswith("a very long prompt\na very")
    assert stored["prompt"].endswith("...")
    assert stored["seed"] == 7
    assert stored["score"] is None
    lines, _, _ = read_raw(tmp_path / "a.ply")
    assert max(map(len, lines)) < 1024
    huge = {"numbers": list(range(1000)), "seed": 1}
    assert json.loads(to_json(huge, limit=100)) == {"seed": 1}
    assert json.loads(to_json(huge)) == huge


def test_foreign_file(tmp_path):
    """ASCII, doubles, another order, no normals, extra properties and an extra element."""
    names = ["rot_3", "rot_2", "rot_1", "rot_0", "opacity", "extra", "z", "y", "x"]
    names += ["scale_0", "scale_1", "scale_2", "f_dc_0", "f_dc_1", "f_dc_2"] + [f"f_rest_{i}" for i in range(9)]
    values = [float(i + 1) for i in range(len(names))]
    header = ["ply", "format ascii 1.0", "comment by another tool", "element vertex 1"]
    header += [f"property double {name}" for name in names]
    header += ["element face 1", "property list uchar int vertex_indices", "end_header"]
    path = tmp_path / "a.ply"
    path.write_text("\n".join([*header, " ".join(map(str, values)), "3 0 0 0", ""]))
    g = Gaussians.of(read_ply(path))
    assert g.means.tolist() == [[9.0, -8.0, -7.0]]
    assert g.quats.tolist() == [[4.0, 3.0, -2.0, -1.0]]
    assert g.opacities.tolist() == [5.0]
    assert g.sh0.tolist() == [[[13.0, 14.0, 15.0]]]
    assert g.shN.tolist() == [[[-16.0, -19.0, -22.0], [-17.0, -20.0, -23.0], [18.0, 21.0, 24.0]]]
    assert read_ply_metadata(path) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a PLY file"),
        (b"\x00\x01binary", "is not a PLY file"),
        (b"ply\nformat binary_little_endian 1.0\n", "does not end"),
        (b"ply\nformat ascii 2.0\nend_header\n", "malformed PLY header"),
        (b"ply\nformat ascii 1.0\nelement vertex -3\nend_header\n", "malformed PLY header"),
        (b"ply\nformat ascii 1.0\nelement vertex 99999999999\nend_header\n", "not a 3D Gaussian one"),
        (
            b"ply\nformat binary_little_endian 1.0\nelement vertex 99999999999\nproperty float x\nend_header\n1234",
            "expected at least 399999999996 bytes",
        ),
        (
            b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
            b"end_header\n1 2 3\n",
            "not a 3D Gaussian one.*--init",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "a.ply"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_ply(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nothing\.ply.*Check the path"):
        read_ply(tmp_path / "nothing.ply")


def test_non_finite_file_is_refused(tmp_path):
    path = tmp_path / "a.ply"
    write_ply(random_gaussians(4, 0).splats(), path)
    data = bytearray(path.read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    path.write_bytes(data)
    with pytest.raises(FormatError, match="received 4 of which 1 hold NaN"):
        read_ply(path)


def test_wrong_number_of_harmonics(tmp_path):
    path = tmp_path / "a.ply"
    write_ply(random_gaussians(4, 1).splats(), path)
    path.write_bytes(path.read_bytes().replace(b"f_rest_8\n", b"g_rest_8\n"))
    with pytest.raises(FormatError, match="received 8"):
        read_ply(path)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Truncated, with flipped bytes, with a piece cut out, or with a piece repeated."""
    kind = rng.randrange(4)
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    if kind == 0:
        return data[:a]
    if kind == 1:
        out = bytearray(data)
        # Half of the flips hit the beginning, where the structure is.
        for _ in range(rng.randint(1, 4)):
            out[rng.randrange(min(len(out), 700) if rng.random() < 0.5 else len(out))] = rng.randrange(256)
        return bytes(out)
    b = min(b, a + 40)
    return data[:a] + data[b:] if kind == 2 else data[:b] + data[a:b] + data[b:]


def test_broken_files_give_format_errors_only(tmp_path):
    path = tmp_path / "a.ply"
    write_ply(random_gaussians(12, 1).splats(), path, metadata={"prompt": "a cat"})
    good, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        path.write_bytes(mutate(good, rng))
        try:
            g = Gaussians.of(read_ply(path))
            assert all(bool(p.isfinite().all()) for p in g.params().values())
            assert len(g) > 0
            read_ply_metadata(path)
        except FormatError:
            refused += 1
    assert 200 < refused < 400


def test_bounding_ball_ignores_strays():
    g = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(2000, 3, generator=g), dim=1)
    points = direction * 0.5 + torch.tensor([1.0, 2.0, 3.0])
    points[:4] = 100.0
    centre, radius = bounding_ball(from_points(points, torch.zeros(2000, 3), scale=0.01, opacity=0.5))
    torch.testing.assert_close(centre, torch.tensor([1.0, 2.0, 3.0]), rtol=0, atol=0.01)
    assert radius == pytest.approx(0.52, abs=0.01)
