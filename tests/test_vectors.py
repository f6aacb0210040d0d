"""Vectors as values of a kernel, against NumPy."""

import numpy as np
import pytest

from psd_gs.kernels import njit
from psd_gs.render._vectors import bits, fetch, held, load, lowest, root, select, size, smaller, spread, store, sums


@njit(error_model="numpy")
def calculate(x, y, out):
    fetch(x)
    a, b, two = load(x, 0), load(y, 0), np.float32(2.0)
    store(out, 0, a + two * b)
    store(out, 8, two - a / b)
    store(out, 16, select((a < b) & (a > np.float32(0.0)), b, two))
    store(out, 24, root(size(smaller(a, b))))
    store(out, 32, spread(two) * held(two))
    store(out, 40, sums(a, b, a + b, a - b, a * a, b * b, a * b, spread(two)))


@njit(error_model="numpy")
def reached(x, bound):
    return bits(load(x, 2) <= bound)


@njit(error_model="numpy")
def first_of(number):
    return lowest(number)


def test_vectors_calculate_as_arrays_do():
    x, y = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    out = np.empty(48, np.float32)
    calculate(x, y, out)
    two = np.full(8, 2.0)
    terms = x, y, x + y, x - y, x * x, y * y, x * y, two
    expected = [
        *(x + 2 * y, 2 - x / y, np.where((x < y) & (x > 0), y, 2), np.sqrt(np.abs(np.minimum(x, y))), 2 * two),
        [term.sum() for term in terms],
    ]
    np.testing.assert_allclose(out.reshape(6, 8), expected, rtol=1e-5, atol=1e-6)


def test_a_mask_as_a_number():
    x = np.arange(12, dtype=np.float32)
    assert reached(x, np.float32(4.0)) == 0b111  # elements 2 to 4 of 2 to 9
    assert reached(np.full(12, np.nan, np.float32), np.float32(4.0)) == 0


@pytest.mark.parametrize("place", [0, 7, 31])
def test_the_lowest_bit(place):
    assert first_of(np.uint64(0b101 << place)) == place
