"""Draws of initial values in float64, and the two that several architectures share."""

import math

import torch


def normal(shape, std, generator):
    return torch.empty(shape, dtype=torch.float64).normal_(0.0, std, generator=generator)


def uniform(shape, bound, generator):
    """U(-bound, bound)."""
    return torch.empty(shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator)


def step_bias(shape, generator):
    """softplus⁻¹(dt), where log(dt) ~ U(log 0.001, log 0.1) and dt ≥ 0.0001 (Gu and Dao 2023)."""
    low, high = math.log(0.001), math.log(0.1)
    dt = torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=generator)
    dt = dt.exp().clamp(min=0.0001)
    return dt + torch.log(-torch.expm1(-dt))


def state_rates(shape):
    """A_log of (dim, dstate): log(1..dstate) for every channel (S4D-real)."""
    dim, dstate = shape
    return torch.arange(1, dstate + 1, dtype=torch.float64).log().expand(dim, dstate)
