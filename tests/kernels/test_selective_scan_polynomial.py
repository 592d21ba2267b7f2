"""The exponentials that the Triton scan computes without the exponential unit, alone and inside of the scan."""

import pytest
import torch
import triton
import triton.language as tl

from kernels import tuning
from kernels.implementations import interpreted
from kernels.selective_scan.exponentials import exp2_product, softplus
from kernels.selective_scan.op import selective_scan
from kernels.selective_scan.problem import SelectiveScanProblem as Problem
from tests.kernels.scans import assert_defined, triton_in_segments

pytestmark = pytest.mark.usefixtures("poison_uninitialised_memory")

# the interpreter rounds a fused multiply-add twice: once more for each of the polynomial's steps near its end
LARGEST = 2**-21.5 if interpreted() else 2**-22.4


@triton.jit
def exp2_kernel(a_ptr, b_ptr, y_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y_ptr + at, exp2_product(tl.load(a_ptr + at), tl.load(b_ptr + at)))


@triton.jit
def softplus_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y_ptr + at, softplus(tl.load(x_ptr + at), True))


def exp2(a, b):
    y = torch.empty_like(a)
    exp2_kernel[(1,)](a, b, y, SIZE=len(a))
    return y


def softplus_of(x):
    y = torch.empty_like(x)
    softplus_kernel[(1,)](x, y, SIZE=len(x))
    return y


def test_exp2_over_its_range(device):
    """Against float64, from the least normal number to the largest power."""
    b = torch.linspace(-125.99, 126.4, 1 << 16, device=device)
    a = torch.ones_like(b)
    gold = torch.exp2(b.double())
    assert ((exp2(a, b).double() - gold).abs() / gold).max() < LARGEST


def test_exp2_is_exact_where_it_can_be(device):
    b = torch.arange(-126.0, 2.0, device=device)  # 128 powers of two
    assert torch.equal(exp2(torch.ones_like(b), b), torch.exp2(b))
    zero = torch.zeros(128, device=device)
    assert torch.equal(exp2(zero, zero + 3), torch.ones_like(zero))


def test_exp2_below_the_least_normal_number(device):
    """It errs by less than that number, and never below 0."""
    b = torch.linspace(-126.9999, -126, 1 << 12, device=device)
    y = exp2(torch.ones_like(b), b)
    assert (y >= 0).all()
    assert (y <= 2.0**-126).all()


def test_exp2_does_not_round_the_product(device):
    """a b = 100 + 2^-18, of which float32 keeps 2^-17: the error would be a hundred times that of the polynomial."""
    if interpreted():
        pytest.skip("the interpreter rounds a fused multiply-add twice")
    a = torch.full((128,), 1 + 2.0**-20, device=device)
    b = torch.linspace(90, 110, 128, device=device)
    gold = torch.exp2(a.double() * b.double())
    assert ((exp2(a, b).double() - gold).abs() / gold).max() < LARGEST


@pytest.mark.parametrize("x", [-1e4, -100.0, -88.1, -torch.inf, 1e4, torch.inf])
def test_softplus_at_its_ends(x, device):
    y = softplus_of(torch.full((32,), x, device=device))
    if x > 0:
        assert (y == x).all()
    else:
        assert (y >= 0).all()
        assert (y < 1e-38).all()


def test_softplus_does_not_hide_a_nan(device):
    assert softplus_of(torch.full((32,), torch.nan, device=device)).isnan().all()


def polynomials(n):
    return tuning.using(selective_scan_fwd={"POLY": n, "POLY_STATES": n})


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 4, 99])
@pytest.mark.parametrize("softplus", [False, True])
def test_any_number_of_them(count, split, softplus, device):
    problem = Problem(1, 9, 20, 3, has_initial_state=True, delta_softplus=softplus)
    inputs = problem.inputs(device=device)
    with polynomials(count):
        assert_defined(inputs, triton_in_segments(inputs, split))


@pytest.mark.parametrize("step", [0.0, 1e-6, 1e3, -1e3])
@pytest.mark.parametrize("rate", [-torch.inf, -1e20, -1.0, -1e-20, 0.0])
def test_extreme_decays(step, rate, device):
    """As the exponential unit has them: 1 where nothing decays, else nearly 0; growth stays positive."""
    inputs = Problem(1, 1, 8, 2, has_initial_state=True, has_bias=False, delta_softplus=False)
    inputs = inputs.inputs(device=device)
    inputs["delta"].fill_(step)
    inputs["u"].zero_()
    inputs["initial_state"].fill_(1.0)
    inputs["A"].fill_(rate)
    with polynomials(2):
        _, state = selective_scan(**inputs, return_last_state=True, impl="triton")
    if step == 0 or rate == 0 or abs(step * rate) < 1e-15:
        assert (state == 1).all()
    elif step > 0 and step * rate < -127:
        assert (state >= 0).all()
        assert (state < 1e-38).all()
    elif step < 0:
        assert (state > 1e38).all()
    else:
        gold = torch.exp(torch.tensor(step * rate, dtype=torch.float64)).item()
        assert ((state.double() - gold).abs() < 2**-20 * gold).all()


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("name", ["u", "delta", "A"])
def test_nan_is_not_hidden(name, count, device):
    inputs = Problem(1, 5, 4, 2).inputs(device=device)
    inputs[name][(1, 0) if name == "A" else (0, 1, 2)] = torch.nan
    with polynomials(count):
        y = selective_scan(**inputs, impl="triton")
    assert y[0, 1, 2:].isnan().all()
    assert not y[0, [0, 2, 3]].isnan().any()
