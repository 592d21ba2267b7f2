"""Elementary functions that LLVM turns into vector instructions, for the numba kernels.

libm's expf is a call per element; in float32 these are a polynomial between a rounding and an exponent shift, to
about 1 ulp: a dozen vector instructions for 8 or 16 elements. float64 goes to numpy's. Call them inside `njit`.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

F32 = np.float32
ONE = F32(1.0)
LOG2E = F32(math.log2(math.e))
LN2_HIGH = F32(0.693359375)  # few bits, so that its product with an integer is exact
LN2_LOW = F32(-2.12194440e-4)
ROUND = F32(12582912.0)  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits
ROUND_BITS = np.int32(0x4B400000 - 127)
# 2^f on -0.5 .. 0.5, minimax, relative error 2e-9
E1, E2, E3 = F32(0.6931472057352278), F32(0.24022646890156518), F32(0.05550328779939607)
E4, E5, E6 = F32(0.009618489010915476), F32(0.0013399930431994625), F32(0.00015345798438186307)
# log1p(e) / e on 0 .. 1, minimax, relative error 3e-8
L0, L1, L2 = F32(0.9999999700104023), F32(-0.49999494283250223), F32(0.3331911332122851)
L3, L4, L5 = F32(-0.24843071230572322), F32(0.1910622860210183), F32(-0.13663505598797418)
L6, L7, L8 = F32(0.07822699377928641), F32(-0.029504854178905443), F32(0.0052323836292632615)


def exp2(x):
    """2^x in the dtype of `x`; results below 2^-126 become 0, NaN stays."""


def exp(x):
    """e^x, likewise."""


def softplus(x):
    """log(1 + e^x), accurate however small."""


def silu(x):
    """x / (1 + e^-x)."""


@overload(exp2, inline="always")
def _exp2(x):
    if x == types.float64:
        return lambda x: np.exp2(x)

    def exp2_f32(x):
        top = F32(128.0) if x > F32(128.0) else x  # from 127.5 on the result is infinity
        rounded = F32(top + ROUND)
        f = top - (rounded - ROUND)
        p = ((((((E6 * f + E5) * f + E4) * f + E3) * f + E2) * f) + E1) * f + ONE
        bits = np.int32((rounded.view(np.int32) - ROUND_BITS) << np.int32(23))
        return F32(0.0) if x < F32(-126.0) else p * bits.view(np.float32)

    return exp2_f32


@overload(exp, inline="always")
def _exp(x):
    if x == types.float64:
        return lambda x: np.exp(x)

    def exp_f32(x):
        n = (x * LOG2E + ROUND) - ROUND
        n = F32(128.0) if n > F32(128.0) else (F32(-127.0) if n < F32(-127.0) else n)
        f = ((x - n * LN2_HIGH) - n * LN2_LOW) * LOG2E
        p = ((((((E6 * f + E5) * f + E4) * f + E3) * f + E2) * f) + E1) * f + ONE
        return F32(0.0) if n < F32(-126.0) else p * exp2(n)

    return exp_f32


@overload(softplus, inline="always")
def _softplus(x):
    if x == types.float64:
        return lambda x: max(x, 0.0) + np.log1p(np.exp(-abs(x)))

    def softplus_f32(x):
        e = exp(-abs(x))
        p = (((L8 * e + L7) * e + L6) * e + L5) * e + L4
        p = (((p * e + L3) * e + L2) * e + L1) * e + L0
        return (x if x > F32(0.0) else F32(0.0)) + p * e

    return softplus_f32


@overload(silu, inline="always")
def _silu(x):
    if x == types.float64:
        return lambda x: x / (1.0 + np.exp(-x))
    return lambda x: x / (ONE + exp(-x))
