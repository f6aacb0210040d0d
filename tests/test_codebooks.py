"""Codebooks and palettes: exact when they can be, close to the optimum when they cannot."""

import numpy as np

from psd_gs.export.codebooks import codebook, nearest_code, palette


def test_few_values_are_kept_exactly():
    values = np.repeat(np.array([3.0, -1.5, 0.25], np.float32), 50)
    codes = codebook(values)
    assert codes.shape == (256,)
    assert (np.diff(codes) >= 0).all()
    assert np.array_equal(codes[nearest_code(codes, values)], values)
    assert np.array_equal(codebook(np.array([7.0])), np.full(256, 7.0, np.float32))


def test_codebook_of_a_normal_distribution():
    """Panter and Dite: the mean squared error of the best 256 levels is sqrt(3) pi / 2 / 256**2."""
    values = np.random.default_rng(0).normal(size=200_000)
    codes = codebook(values)
    error = values - codes[nearest_code(codes, values)]
    optimum = np.sqrt(3) * np.pi / 2 / 256**2
    assert (error**2).mean() < 1.3 * optimum
    assert np.abs(error).max() < 0.05


def test_nearest_code():
    codes = np.array([-1.0, 0.0, 0.5, 4.0])
    values = np.random.default_rng(0).uniform(-2, 6, 500)
    assert np.array_equal(nearest_code(codes, values), np.abs(values[:, None] - codes).argmin(1))


def test_palette():
    rng = np.random.default_rng(0)
    few = rng.normal(size=(20, 9)).astype(np.float32)
    centres, labels = palette(few, 32)
    assert np.array_equal(centres[labels], few)
    clusters = rng.normal(size=(16, 9))
    which = rng.permutation(np.repeat(np.arange(16), 40))
    many = (clusters[which] + 1e-4 * rng.normal(size=(640, 9))).astype(np.float32)
    centres, labels = palette(many, 16)
    assert centres.shape == (16, 9)
    assert np.bincount(labels).tolist() == [40] * 16
    for label in range(16):
        np.testing.assert_allclose(centres[label], many[labels == label].mean(0), rtol=1e-5)
    uniform = rng.uniform(size=(4096, 3)).astype(np.float32)
    centres, labels = palette(uniform, 512)  # the ideal cells are cubes of an eighth
    assert (((uniform - centres[labels]) ** 2).mean()) < 2 * (1 / 8) ** 2 / 12
