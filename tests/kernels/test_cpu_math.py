"""The vectorised elementary functions, against numpy in float64."""

import numpy as np
import pytest
from numba import njit

from kernels import cpu_math

ULP = np.finfo(np.float32).eps


@njit
def apply(x, out):
    for i in range(x.size):
        out[0, i] = cpu_math.exp2(x[i])
        out[1, i] = cpu_math.exp(x[i])
        out[2, i] = cpu_math.silu(x[i])
        out[3, i] = cpu_math.softplus(x[i])


def exact(x):
    x = x.astype(np.float64)
    return np.exp2(x), np.exp(x), x / (1 + np.exp(-x)), np.logaddexp(0, x)


@pytest.mark.parametrize("bounds", [(-87, 87), (-1, 1), (-1e-3, 1e-3)])
def test_float32_is_accurate_to_two_ulps(bounds):
    x = np.linspace(*bounds, 100_001).astype(np.float32)
    out = np.empty((4, x.size), np.float32)
    apply(x, out)
    for name, found, true in zip(("exp2", "exp", "silu", "softplus"), out, exact(x), strict=True):
        nonzero = true != 0
        assert np.abs(found[nonzero] / true[nonzero] - 1).max() < 2 * ULP, name


def test_extreme_float32():
    x = np.array([-1e30, -300, 300, 1e30, np.nan, 0], np.float32)
    out = np.empty((4, x.size), np.float32)
    apply(x, out)
    np.testing.assert_array_equal(out[0], np.array([0, 0, np.inf, np.inf, np.nan, 1], np.float32))
    np.testing.assert_array_equal(out[1], np.array([0, 0, np.inf, np.inf, np.nan, 1], np.float32))
    np.testing.assert_array_equal(out[2, 2:], np.array([300, 1e30, np.nan, 0], np.float32))
    assert np.abs(out[2, :2]).max() == 0
    np.testing.assert_allclose(
        out[3], np.array([0, 0, 300, 1e30, np.nan, np.log(2)], np.float32), rtol=2 * ULP
    )


def test_float64_is_numpys():
    x = np.linspace(-30, 30, 1001)
    out = np.empty((4, x.size))
    apply(x, out)
    for found, true in zip(out, exact(x), strict=True):
        np.testing.assert_allclose(found, true, rtol=1e-13)
