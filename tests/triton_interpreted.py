"""The Triton kernels under Triton's interpreter against the CPU backend; test_render_triton.py runs this file.

    TRITON_INTERPRET=1 pytest tests/triton_interpreted.py

The variable must be set before Triton is imported. The interpreter pays for every operation, so scenes are tiny.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from test_render import SCENES, large_batches, odd_cameras, random_scene  # noqa: F401
from torch import Tensor

from psd_gs.cameras import Cameras
from psd_gs.errors import InputError
from psd_gs.gaussians import Gaussians
from psd_gs.render import choose, render

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, for lanes that are masked later


@dataclass
class Everything:
    """All outputs of a backend, and the gradients of a random linear loss."""

    images: dict[str, Tensor]
    radii: Tensor
    gradients: dict[str, Tensor]


def run(backend: str, gaussians: Gaussians, cameras: Cameras, **options) -> Everything:
    generator = torch.Generator().manual_seed(0)
    gaussians = gaussians.map(lambda p: p.detach().clone().requires_grad_())
    background = torch.rand(len(cameras), 3, generator=generator).requires_grad_()
    out = render(gaussians, cameras, background, median_depth=True, absgrad=True, backend=backend, **options)
    out.meta["means2d"].retain_grad()
    # Expected depth is accumulated depth by alpha, whose rounding error it magnifies: compared before that division.
    depth = out.depth * out.alpha.detach()
    images = {"rgb": out.rgb, "alpha": out.alpha, "depth": depth}
    loss = sum((torch.randn(image.shape, generator=generator) * image).sum() for image in images.values())
    (loss + out.meta["depths"].sum()).backward()
    means2d = out.meta["means2d"]
    gradients = {name: parameter.grad for name, parameter in gaussians.params().items()}
    gradients |= {"background": background.grad, "means2d": means2d.grad, "absgrad": means2d.absgrad}
    assert out.median_depth is not None
    images |= {"median": out.median_depth, "means2d": means2d, "depths": out.meta["depths"]}
    return Everything({name: image.detach() for name, image in images.items()}, out.meta["radii"], gradients)


def compare(gaussians: Gaussians, cameras: Cameras, **options) -> Everything:
    """Images to 1e-5 (relative where they are not in [0, 1]), gradients to 1e-4 of their norm."""
    ours, cpu = run("triton", gaussians, cameras, **options), run("cpu", gaussians, cameras, **options)
    for name, image in cpu.images.items():
        torch.testing.assert_close(ours.images[name], image, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(ours.radii, cpu.radii)
    for name, gradient in cpu.gradients.items():
        assert ours.gradients[name].shape == gradient.shape, name
        assert (ours.gradients[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    return ours


def test_batches_of_a_gpu():
    """Several in a row, and pixels that are done before the last."""
    gaussians = random_scene(1, n=10, scale=0.3)
    gaussians.opacities += 3
    ours = compare(gaussians, odd_cameras(15, 13)[:1])
    assert ours.images["alpha"].max() > 0.999


@pytest.mark.usefixtures("large_batches")
@pytest.mark.parametrize("sh_degree", [0, *(pytest.param(n, marks=pytest.mark.full) for n in (1, 2)), 3])
def test_degrees(sh_degree):
    compare(random_scene(sh_degree, n=16, sh_degree=sh_degree), odd_cameras(19, 13)[1:], antialiased=sh_degree % 2 == 1)


@pytest.mark.usefixtures("large_batches")
@pytest.mark.parametrize("scene", SCENES)
def test_degenerate_gaussians(scene):
    compare(SCENES[scene]().select(torch.arange(20)), odd_cameras(21, 9)[:1], antialiased=scene in ("needles", "tiny"))


@pytest.mark.usefixtures("large_batches")
def test_fewer_bands_than_there_are_and_one_gaussian_and_none_and_one_pixel():
    ours = compare(random_scene(3, n=10, sh_degree=3), odd_cameras(9, 7)[:1], sh_degree=1)
    assert ours.gradients["shN"][:, :3].any()
    assert not ours.gradients["shN"][:, 3:].any()
    for n in (0, 1):
        compare(random_scene(6, n=16).select(torch.arange(n)), odd_cameras(17, 5)[:1])
    compare(random_scene(4, n=10), odd_cameras(1, 1)[:1])


@pytest.mark.usefixtures("large_batches")
def test_unusable_gaussians_are_invisible():
    gaussians = random_scene(12, n=12)
    gaussians.quats[0] = 0
    gaussians.means[1] = torch.nan
    gaussians.scales[2] = torch.inf
    gaussians.opacities[3] = torch.nan
    gaussians.opacities[4] = -20.0
    ours = compare(gaussians, odd_cameras(9, 7)[:1])
    assert not ours.radii[:, :5].any()
    assert all(gradient.isfinite().all() for gradient in ours.gradients.values())


@pytest.mark.usefixtures("large_batches")
def test_equal_from_run_to_run_and_gradients_of_one_output_alone():
    gaussians, cameras = random_scene(5, n=8), odd_cameras(9, 7)[:1]
    first, second = run("triton", gaussians, cameras), run("triton", gaussians, cameras)
    assert all(torch.equal(first.images[name], second.images[name]) for name in first.images)
    assert all(torch.equal(first.gradients[name], second.gradients[name]) for name in first.gradients)
    gaussians = gaussians.map(lambda p: p.requires_grad_())
    means2d = render(gaussians, cameras, backend="triton").meta["means2d"]
    means2d.sum().backward()
    assert gaussians.means.grad.any()
    assert not gaussians.sh0.grad.any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_first_picture_may_be_one_without_gradients(mode):
    choose.trouble_with_triton.cache_clear()
    with mode():
        assert render(random_scene(0, n=3), odd_cameras(9, 7)[:1], backend="triton").rgb.isfinite().all()


def test_contract_errors_come_before_kernels():
    with pytest.raises(InputError, match=r"cameras\.to"):
        render(random_scene(0, n=3), replace(odd_cameras(), Ks=odd_cameras().Ks.to("meta")), backend="triton")
