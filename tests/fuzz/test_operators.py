"""Any arguments of the public operators: the right result, or an error that names an argument."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernels
from tests.fuzz.examples import PROFILE, check_one_line, examples
from tests.fuzz.operands import FLOATS, OPERATORS, broken, run

IMPLS = ("torch", "cpu", "hf", "reference")
WRONG_IMPLS = ("cuda", "", "Torch", None, 3, [])
REFUSALS = (ValueError, TypeError, NotImplementedError, kernels.Unavailable)


def check(call, impl):
    """Run a call and judge what comes of it."""
    found = refusal = None
    try:
        found = run(call, impl)
    except REFUSALS as error:
        refusal = error
    if refusal is not None:
        names = inspect.signature(getattr(kernels, call.operator)).parameters
        cannot = isinstance(refusal, NotImplementedError | kernels.Unavailable)
        check_one_line(str(refusal), *([call.operator] if cannot else ()), *names)
        assert cannot or not call.moderate, f"right arguments are refused: {refusal}"
    elif call.moderate:
        check_results(call, found)


def check_results(call, found):
    assert [(tuple(t.shape), t.dtype) for t in found] == list(call.results)
    assert all(t.isfinite().all() for t in found), "moderate arguments give NaN or infinity"


def dtypes(impl):
    """Compiling cpu's kernels for a dtype takes seconds: in CI only for the one that other tests compile too."""
    return (torch.float32,) if impl == "cpu" and PROFILE == "ci" else FLOATS


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("operator", OPERATORS)
@given(data=st.data())
@examples(8)
def test_right_arguments_give_finite_results(operator, impl, data):
    check(data.draw(OPERATORS[operator](dtypes(impl))), impl)


@pytest.mark.parametrize("operator", OPERATORS)
@given(data=st.data())
@examples(60)
def test_wrong_arguments_are_named(operator, data):
    impl = data.draw(st.sampled_from((*IMPLS, *IMPLS, *IMPLS, *WRONG_IMPLS)))
    floats = dtypes(impl)
    check(data.draw(broken(OPERATORS[operator](floats), floats)), impl)


@pytest.mark.parametrize("operator", OPERATORS)
@given(data=st.data())
@examples(2)
def test_right_arguments_of_triton(operator, data):
    """Through the interpreter here, so few of them."""
    check(data.draw(OPERATORS[operator]()), "triton")


# numpy, which interprets the kernels, warns of the infinities that wild values give
@pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")
@pytest.mark.parametrize("operator", OPERATORS)
@given(data=st.data())
@examples(10)
def test_wrong_arguments_of_triton(operator, data):
    check(data.draw(broken(OPERATORS[operator]())), "triton")


def test_there_is_a_strategy_for_every_operator():
    assert set(OPERATORS) == {
        name for name in kernels.__all__ if name not in ("Unavailable", "implementations")
    }
    assert torch.float32 in FLOATS
