"""The path of Mamba's true recurrent state, S_t in R^(dim x dstate), which no hidden state of a model shows.

The scan runs again over the recorded operands, a chunk of tokens at a time with the state carried over, and gives the
state after every token of the chunk; only numbers per token are kept. Velocity, drift, variance, stability and norm
are those of `analysis.hidden_states` with the Frobenius norm (S_0 is the state after the first token). Two more are
the state's own:

    cosine      of S_t and S_{t-1}: direction alone, without the growth of the norm; not defined where one is zero
    half_life   ln 2 / (|A| d_t) tokens with the step size d_t: after how long half of a state is forgotten, if all
                steps were as this one; per state index and token, the median over channels. It needs no scan.
                A step size of zero forgets nothing: infinity.
"""

import math

import torch
import torch.nn.functional as F

from analysis.hidden_states import Path, path_series, quotient
from analysis.measured import series
from kernels import selective_scan
from kernels.observation import observing_operators

INSTRUMENT = "ssm state"
BLOCK = 16  # tokens whose half-lives are held at once


@torch.no_grad()
def state_series(operands, window=50, chunk=64, *, impl="torch"):
    """All metrics of the states of one layer, instrument `ssm state`, in O(chunk * dim * dstate) memory.

    Args:
        operands: u, delta, A, B, C, delta_bias and delta_softplus by the names of `kernels.selective_scan`, as in a
            `models.observe.Mixing`; D and z, which no state sees, may be there too.
        window: tokens of the trailing window of variance and stability, at least 2.
        chunk: tokens whose states are held at once (in float64, with those of the window before them).
        impl: what computes the scan; one that returns states: torch, triton, cpu or reference.

    Returns:
        list of `Series`: velocity, velocity_relative, drift, drift_relative, variance, stability, norm, cosine with
        values (batch, positions), and half_life (batch * dstate, positions). States are float32 (float64 if u is), as
        the scan gives them; everything after that is float64.

    Raises:
        ValueError: `chunk` is below 1, or as `kernels.selective_scan` and `analysis.hidden_states` raise.
    """
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be a whole number of at least 1 token, got {chunk!r}")
    path = Path(window)
    # whoever watches the operators of the model is not to see this scan
    with observing_operators(None):
        for states in _states(operands, chunk, impl):
            path.extend(states.flatten(-2))
    norm = path["norm"]
    both = norm[..., 1:] * norm[..., :-1]
    return [
        *path_series(INSTRUMENT, path),
        quotient(INSTRUMENT, "cosine", path["dot"], both, torch.arange(1, norm.shape[-1])),
        series(INSTRUMENT, "half_life", _half_life(operands).flatten(0, 1)),
    ]


def _states(operands, chunk, impl):
    """Yield (batch, tokens, dim, dstate), chunk by chunk."""
    u, delta, B, C = (operands[name] for name in ("u", "delta", "B", "C"))
    fixed = {name: operands.get(name) for name in ("A", "delta_bias")}
    state = None
    for start in range(0, u.shape[-1], chunk):
        tokens = slice(start, start + chunk)
        _, states = selective_scan(
            u[..., tokens], delta[..., tokens], B=B[..., tokens], C=C[..., tokens], **fixed,
            delta_softplus=operands.get("delta_softplus", False), initial_state=state,
            return_states=1, impl=impl,
        )  # fmt: skip
        state = states[:, -1].contiguous()
        yield states


def _half_life(operands):
    """(batch, dstate, seqlen) float64, in tokens."""
    rates = operands["A"].double().abs().T  # (dstate, dim)
    bias = operands.get("delta_bias")
    found = []
    for delta in operands["delta"].split(BLOCK, dim=-1):
        steps = delta.double()
        if bias is not None:
            steps = steps + bias.double()[:, None]
        if operands.get("delta_softplus", False):
            steps = F.softplus(steps)
        life = (rates[:, None] * steps.mT[:, None]).reciprocal_()  # (batch, dstate, tokens, dim)
        # torch's median is the lower of the two in the middle; the upper one is that of the negatives
        lower, upper = life.median(-1).values, -life.neg_().median(-1).values
        found.append((lower + upper) / 2)
    return math.log(2) * torch.cat(found, -1)
