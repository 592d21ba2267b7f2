"""Device code: exponentials and logarithms, on the exponential unit or beside it."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def exp2_product(a, b):
    """2^(a b) without the exponential unit, for |a b| < 127: relative error 2^-22.6, about that of the unit.

    round(a b) goes to the exponent's bits; 2^f of the rest, -0.5 .. 0.5, is a polynomial that is 1 at 0. Its
    coefficients have the least largest relative error (Lawson's weights, float64), each rounded to float32 before those
    after it are fitted again. Below 2^-126 it is denormal, and small, but not the nearest number.
    """
    shifted = tl.fma(a, b, 12582912.0)  # 1.5 * 2^23, whose last bit is worth 1
    f = tl.fma(a, b, 12582912.0 - shifted)
    p = tl.fma(f, 0.0013269555056467652, 0.009671293199062347)
    p = tl.fma(f, p, 0.0555071085691452)
    p = tl.fma(f, p, 0.24022246897220612)
    p = tl.fma(f, p, 0.6931470036506653)
    p = tl.fma(f, p, 1.0)
    bits = p.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def softplus(x, POLY: tl.constexpr = False):
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|), with log1p(e) / e as a minimax polynomial (3e-8 on 0..1).

    The hardware's logarithm errs by 2^-22 near 1, which is all of a small step size. POLY: the exponential is a
    polynomial too, for five instructions more.
    """
    if POLY:
        e = exp2_product(tl.minimum(tl.abs(x), 88.0296), -LOG2E)  # just inside of 2^-127
    else:
        t = tl.abs(x) * -LOG2E
        lost = tl.fma(tl.abs(x), LOG2E, t)  # what rounding t lost
        e = tl.exp2(t)
        e = tl.fma(e, lost * -LN2, e)
    p = tl.fma(e, 0.0052323836292632615, -0.029504854178905443)
    p = tl.fma(e, p, 0.07822699377928641)
    p = tl.fma(e, p, -0.13663505598797418)
    p = tl.fma(e, p, 0.1910622860210183)
    p = tl.fma(e, p, -0.24843071230572322)
    p = tl.fma(e, p, 0.3331911332122851)
    p = tl.fma(e, p, -0.49999494283250223)
    p = tl.fma(e, p, 0.9999999700104023)
    return tl.fma(e, p, tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL))
