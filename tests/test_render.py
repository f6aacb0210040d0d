"""render() on the CPU against the dense float64 reference, and its contract."""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch
from reference import Reference, render_dense
from torch import Tensor

from psd_gs.cameras import Cameras, orbit, turntable
from psd_gs.errors import BackendError, ConfigError, InputError
from psd_gs.gaussians import Gaussians, from_points
from psd_gs.render import RenderOutput, render


def random_scene(seed: int, n: int = 200, sh_degree: int = 0, scale: float = 0.07) -> Gaussians:
    """Anisotropic Gaussians of all opacities; some off screen, some behind the cameras."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    gaussians = Gaussians(
        means=0.4 * normal(n, 3),
        quats=normal(n, 4),
        scales=math.log(scale) + 0.5 * normal(n, 3),
        opacities=2 * normal(n),
        sh0=normal(n, 1, 3),
        shN=0.3 * normal(n, (sh_degree + 1) ** 2 - 1, 3),
    )
    gaussians.means[::10] *= 8
    return gaussians


def odd_cameras(width: int = 53, height: int = 37) -> Cameras:
    """Three unlike views, with unequal focal lengths and off-centre principal points."""
    azimuth, elevation = torch.tensor([0.0, 75.0, 200.0]), torch.tensor([0.0, 40.0, -25.0])
    cameras = orbit(azimuth, elevation, torch.tensor([1.5, 2.0, 1.2]), torch.tensor([50.0, 35.0, 70.0]), width, height)
    cameras.Ks[1, 0, 0] *= 1.2
    cameras.Ks[2, :2, 2] += torch.tensor([3.3, -2.1])
    return cameras


def needles() -> Gaussians:
    gaussians = random_scene(7)
    gaussians.scales[:, 0] = 0.5
    gaussians.scales[:, 1:] = -7.0
    return gaussians


def pancakes() -> Gaussians:
    gaussians = random_scene(8)
    gaussians.scales[:, :2] = -1.0
    gaussians.scales[:, 2] = -9.0
    return gaussians


def huge() -> Gaussians:
    gaussians = random_scene(9, n=40)
    gaussians.scales += 3.0
    return gaussians


def opaque() -> Gaussians:
    gaussians = random_scene(10, n=150)
    gaussians.opacities[:] = 12.0
    return gaussians


def tiny() -> Gaussians:
    return random_scene(11, scale=1e-4)


SCENES = {"needles": needles, "pancakes": pancakes, "huge": huge, "opaque": opaque, "tiny": tiny}


def assert_images_match(output: RenderOutput, expected: Reference, tolerance: float) -> None:
    for name in ("rgb", "alpha"):
        error = (getattr(output, name).cpu() - getattr(expected, name)).abs().amax(-1)
        assert (error < tolerance).float().mean() >= 0.999, name
        assert error.max() < 5e-3, name
    clear = expected.margin > 1e-3
    for name in ("depth", "median_depth"):
        error = (getattr(output, name).cpu() - getattr(expected, name)).abs() / getattr(expected, name).clamp_min(1)
        assert (error[clear] < tolerance).float().mean() >= 0.999, name


def assert_gradients_match(actual: Tensor, wanted: Tensor, tolerance: float, name: str) -> None:
    if wanted.numel():
        assert (actual.cpu() - wanted).norm() <= tolerance * wanted.norm() + 1e-7, name


@dataclass
class Comparison:
    """A backend against the reference, with its bars for images and for gradients."""

    backend: str
    device: str
    image_tolerance: float
    gradient_tolerance: float

    def __call__(self, gaussians: Gaussians, cameras: Cameras, seed: int = 0, **options) -> None:
        """Images, and the gradients of a random linear loss in all of them."""
        generator = torch.Generator().manual_seed(seed)
        background = torch.rand(len(cameras), 3, generator=generator)
        ours, theirs = gaussians.to(self.device).map(torch.clone), gaussians.map(torch.Tensor.double)
        our_background, their_background = background.to(self.device).clone(), background.double()
        for leaf in (*ours.params().values(), *theirs.params().values(), our_background, their_background):
            leaf.requires_grad_()
        options_of_ours = {"median_depth": True, "backend": self.backend, **options}
        output = render(ours, cameras.to(self.device), our_background, **options_of_ours)
        expected = render_dense(theirs, cameras, their_background, **options)
        assert_images_match(output, expected, self.image_tolerance)
        output.meta["means2d"].retain_grad()
        expected.means2d.retain_grad()
        # Where a decision at a threshold hangs by a hair, float32 may take the other side: not part of the loss.
        clear = (expected.margin > 1e-3).float()
        assert clear.mean() > 0.7
        weights = [clear * torch.randn(image.shape, generator=generator) for image in (expected.rgb, clear, clear)]
        for result in (output, expected):
            images = (result.rgb, result.alpha, result.depth)
            sum((weight * image.cpu()).sum() for weight, image in zip(weights, images, strict=True)).backward()
        for name, parameter in ours.params().items():
            assert_gradients_match(parameter.grad, theirs.params()[name].grad, self.gradient_tolerance, name)
        assert_gradients_match(our_background.grad, their_background.grad, self.gradient_tolerance, "background")
        assert_gradients_match(output.meta["means2d"].grad, expected.means2d.grad, self.gradient_tolerance, "means2d")

    def absgrad(self, gaussians: Gaussians, cameras: Cameras) -> None:
        ours = gaussians.to(self.device).map(lambda p: p.clone().requires_grad_())
        output = render(ours, cameras.to(self.device), absgrad=True, backend=self.backend)
        expected = render_dense(gaussians.map(torch.Tensor.double), cameras, absgrad=True)
        weight = (expected.margin > 1e-3) * torch.randn(expected.rgb.shape, generator=torch.Generator().manual_seed(0))
        (output.rgb.cpu() * weight).sum().backward()
        (expected.rgb * weight).sum().backward()
        assert_gradients_match(output.meta["means2d"].absgrad, expected.absgrad(), self.gradient_tolerance, "absgrad")


GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
"""Triton's kernels run on the CPU: see test_render_triton.py."""


@pytest.fixture(
    params=[
        pytest.param(Comparison("cpu", "cpu", 1e-4, 1e-3), id="cpu"),
        pytest.param(Comparison("gsplat", "cuda", 1e-3, 1e-2), id="gsplat", marks=GPU),
        pytest.param(
            Comparison("triton", "cpu" if INTERPRETED else "cuda", 1e-4, 1e-3),
            id="triton",
            marks=[] if INTERPRETED else GPU,
        ),
    ]
)
def compare(request):
    if request.param.backend == "triton" and INTERPRETED:
        request.getfixturevalue("large_batches")
    return request.param


@pytest.fixture
def large_batches(monkeypatch):
    """Fewer operations for Triton's interpreter, which pays for each; by default batches are as on a GPU."""
    from psd_gs.render import triton

    for name in ("FORWARD", "BACKWARD"):
        monkeypatch.setattr(triton, name, {**getattr(triton, name), "BATCH": 16})


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_matches_reference(compare, sh_degree, antialiased):
    compare(random_scene(sh_degree, sh_degree=sh_degree), odd_cameras(), seed=sh_degree, antialiased=antialiased)


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("scene", SCENES)
def test_matches_reference_on_degenerate_gaussians(compare, scene, antialiased):
    compare(SCENES[scene](), odd_cameras(), antialiased=antialiased)


def test_lower_sh_degree_ignores_the_higher_bands(compare):
    compare(random_scene(3, sh_degree=3), odd_cameras(), sh_degree=1)


def test_a_pixel_and_a_line_of_pixels(compare):
    compare(random_scene(4), odd_cameras(1, 1))
    compare(random_scene(4), odd_cameras(1, 40))


def test_gradient_of_a_view_that_grazes_the_near_plane(compare):
    gaussians = random_scene(5)
    gaussians.means[:, 2] += 1.4
    compare(gaussians, odd_cameras())


def test_absolute_gradients(compare):
    compare.absgrad(random_scene(6, n=60), odd_cameras(24, 20))


def test_one_isotropic_gaussian_in_closed_form():
    """Seen head on, alpha = o exp(-r^2 / 2 (f^2 s^2 / z^2 + 0.3))."""
    cameras = turntable(1, elevation=0.0, size=65)
    distance, focal = float(cameras.positions[0].norm()), float(cameras.Ks[0, 0, 0])
    gaussians = from_points(torch.zeros(1, 3), torch.tensor([[0.9, 0.5, 0.1]]), scale=0.1, opacity=0.8)
    output = render(gaussians, cameras, torch.tensor([0.2, 0.4, 0.6]), median_depth=True)
    r2 = (torch.arange(65) - 32.0) ** 2
    variance = (focal * 0.1 / distance) ** 2 + 0.3
    alpha = 0.8 * torch.exp(-(r2[:, None] + r2) / (2 * variance))
    alpha = torch.where(alpha < 1 / 255, 0.0, alpha)
    torch.testing.assert_close(output.alpha[0, ..., 0], alpha, atol=1e-5, rtol=0)
    rgb = alpha[..., None] * torch.tensor([0.9, 0.5, 0.1]) + (1 - alpha[..., None]) * torch.tensor([0.2, 0.4, 0.6])
    torch.testing.assert_close(output.rgb[0], rgb, atol=1e-5, rtol=0)
    depth = torch.where(alpha > 0, distance, 0.0)
    torch.testing.assert_close(output.depth[0, ..., 0], depth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.median_depth[0, ..., 0], torch.where(alpha >= 0.5, distance, 0.0))
    assert output.meta["radii"][0, 0].tolist() == [math.ceil(math.sqrt(2 * math.log(0.8 * 255) * variance))] * 2
    torch.testing.assert_close(output.meta["means2d"][0, 0], torch.tensor([32.5, 32.5]))
    torch.testing.assert_close(output.meta["depths"][0, 0], torch.tensor(distance))


def test_equal_depths_are_composited_in_index_order():
    rgb = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    gaussians = from_points(torch.zeros(2, 3), rgb, scale=0.3, opacity=0.6)
    pixel = render(gaussians, turntable(1, size=9)).rgb[0, 4, 4]
    torch.testing.assert_close(pixel, torch.tensor([0.6, 0.24, 0.0]), atol=1e-4, rtol=0)


def test_unusable_gaussians_are_invisible_and_get_zero_gradients():
    clean = random_scene(12, n=50)
    dirty = clean.map(torch.clone)
    dirty = replace(dirty, **{k: torch.cat([v, v[:6]]) for k, v in dirty.params().items()})
    dirty.quats[50] = 0
    dirty.means[51] = math.nan
    dirty.scales[52] = math.inf
    dirty.opacities[53] = math.nan
    dirty.quats[54] = math.nan
    dirty.opacities[55] = -20.0
    dirty = dirty.map(lambda p: p.requires_grad_())
    output = render(dirty, odd_cameras())
    assert torch.equal(output.rgb, render(clean, odd_cameras()).rgb)
    assert (output.meta["radii"][:, 50:] == 0).all()
    output.rgb.sum().backward()
    for name, parameter in dirty.params().items():
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad[50:] == 0).all(), name


def test_no_gaussians(compare):
    empty = random_scene(0).select(torch.zeros(200, dtype=torch.bool)).to(compare.device)
    empty = empty.map(lambda p: p.requires_grad_())
    background = torch.tensor([0.1, 0.2, 0.3], device=compare.device, requires_grad=True)
    cameras = odd_cameras().to(compare.device)
    output = render(empty, cameras, background, median_depth=True, backend=compare.backend)
    assert output.rgb.shape == (3, 37, 53, 3)
    assert (output.rgb == background).all()
    assert not output.alpha.any()
    assert not output.depth.any()
    assert output.meta["means2d"].shape == (3, 0, 2)
    output.rgb.sum().backward()
    torch.testing.assert_close(background.grad.cpu(), torch.full((3,), 3.0 * 37 * 53))


def everything(gaussians: Gaussians, cameras: Cameras) -> list[Tensor]:
    gaussians = gaussians.map(lambda p: p.detach().clone().requires_grad_())
    background = torch.full((3,), 0.5, requires_grad=True)
    output = render(gaussians, cameras, background, median_depth=True, absgrad=True)
    output.meta["means2d"].retain_grad()
    (output.rgb.square().sum() + output.alpha.sum() + output.depth.sum()).backward()
    gradients = [parameter.grad for parameter in (*gaussians.params().values(), background, output.meta["means2d"])]
    images = [output.rgb, output.alpha, output.depth, output.median_depth, output.meta["means2d"].absgrad]
    return [tensor.detach() for tensor in images + gradients]


def test_bits_are_equal_between_runs_threads_and_callers():
    gaussians, cameras = random_scene(13, n=1000, sh_degree=1), odd_cameras(90, 70)
    torch.set_num_threads(1)
    first = everything(gaussians, cameras)
    torch.set_num_threads(3)
    with ThreadPoolExecutor(2) as pool:
        others = [everything(gaussians, cameras), *pool.map(lambda _: everything(gaussians, cameras), range(4))]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_views_do_not_depend_on_their_neighbours():
    gaussians, cameras = random_scene(14), odd_cameras()
    together = render(gaussians, cameras).rgb
    for c in range(3):
        assert torch.equal(together[c : c + 1], render(gaussians, cameras[c : c + 1]).rgb)


def test_double_precision_inputs_are_rendered_in_single_precision():
    gaussians, cameras = random_scene(15).map(lambda p: p.double().requires_grad_()), odd_cameras()
    cameras = replace(cameras, viewmats=cameras.viewmats.double(), Ks=cameras.Ks.double())
    output = render(gaussians, cameras)
    assert output.rgb.dtype == torch.float32
    output.rgb.sum().backward()
    assert gaussians.means.grad.dtype == torch.float64


@pytest.mark.parametrize("name", ["alpha", "depth", "means2d", "depths"])
def test_gradient_of_one_output_alone(name):
    gaussians, cameras = random_scene(17, n=50).map(lambda p: p.requires_grad_()), odd_cameras()

    def means_gradient(weights: dict[str, float]) -> Tensor:
        gaussians.means.grad = None
        output = render(gaussians, cameras)
        values = {"rgb": output.rgb, "alpha": output.alpha, "depth": output.depth, **output.meta}
        sum(weight * values[key].sum() for key, weight in weights.items()).backward()
        return gaussians.means.grad

    everything_else = {"rgb": 1.0, "alpha": 1.0, "depth": 1.0, "means2d": 1.0, "depths": 1.0}
    alone, total = means_gradient({name: 1.0}), means_gradient(everything_else)
    del everything_else[name]
    assert alone.norm() > 0
    assert (alone + means_gradient(everything_else) - total).norm() <= 1e-4 * total.norm()


def test_changing_a_parameter_before_the_backward_pass_is_noticed():
    gaussians = random_scene(16, n=10).map(lambda p: p.requires_grad_())
    loss = render(gaussians, odd_cameras()).rgb.sum()
    with torch.no_grad():
        gaussians.means += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_pictures_are_clamped_and_learn_all_the_same():
    rgb = torch.tensor([0.0, 0.3, 1.3, 1e9]).view(1, 2, 2, 1).expand(1, 2, 2, 3).clone().requires_grad_()
    pictures = RenderOutput(rgb, rgb[..., :1], rgb[..., :1], None, {}).pictures
    assert torch.equal(pictures, rgb.detach().clamp(0, 1).permute(0, 3, 1, 2))
    weight = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0))
    (weight * pictures).sum().backward()
    assert torch.equal(rgb.grad, weight.permute(0, 2, 3, 1))


def test_contract_errors():
    gaussians, cameras = random_scene(0, n=3, sh_degree=1), odd_cameras()
    with pytest.raises(ConfigError, match="0 to 1"):
        render(gaussians, cameras, sh_degree=2)
    with pytest.raises(ConfigError, match="'auto', 'gsplat', 'triton' or 'cpu', received 'cuda'"):
        render(gaussians, cameras, backend="cuda")
    with pytest.raises(InputError, match=r"\(3,\) or \(3, 3\), received \(2, 3\)"):
        render(gaussians, cameras, torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"cameras\.to"):
        render(gaussians, cameras.to("meta"))
    with pytest.raises(BackendError, match=r"gaussians\.to"):
        render(gaussians.to("meta"), cameras.to("meta"), backend="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without CUDA")
def test_gsplat_without_cuda_is_refused_with_a_remedy():
    with pytest.raises(BackendError, match="backend 'cpu'"):
        render(random_scene(0, n=3), odd_cameras(), backend="gsplat")


def seconds(image, gaussians: Gaussians, cameras: Cameras) -> float:
    start = time.perf_counter()
    image(gaussians, cameras).rgb.sum().backward()
    return time.perf_counter() - start


@pytest.mark.full
def test_much_faster_than_a_dense_renderer():
    gaussians = random_scene(0, n=4000, scale=0.03).map(lambda p: p.requires_grad_())
    cameras = turntable(1, size=64)
    ours = min(seconds(render, gaussians, cameras) for _ in range(5))
    assert seconds(render_dense, gaussians, cameras) > 50 * ours


@pytest.mark.full
def test_memory_follows_intersections_not_pixels_times_gaussians():
    gaussians = random_scene(0, n=100_000, scale=0.006).map(lambda p: p.requires_grad_())
    render(gaussians, turntable(1, size=512)).rgb.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in gaussians.params().values())
