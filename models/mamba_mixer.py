"""The two mixers that `models.bind` puts in the place of transformers' `MambaMixer`."""

import inspect
import sys
from functools import cache
from types import FunctionType, MethodType

import torch
import torch.nn.functional as F
from torch import nn

from kernels.causal_conv1d.op import causal_conv1d, causal_conv1d_update
from kernels.implementations import note
from kernels.observation import tell
from kernels.selective_scan.op import selective_scan, selective_state_update
from profiles.ranges import annotate


class BoundMixer(nn.Module):
    """Another forward on the parameters, submodules, hooks and settings of a `MambaMixer`: the same objects."""

    def __init__(self, mixer):
        super().__init__()
        self.__dict__.update(mixer.__dict__)


class OperatorMixer(BoundMixer):
    """Mamba's mixer on our operators, channel-last throughout: no transposition copies anything.

    in_proj writes (batch, seqlen, 2 dim); convolution and scan get (batch, dim, seqlen) views of such memory, with
    stride 1 along dim, and write their outputs so. With a cache, convolution and scan continue from its states for a
    chunk of any length (transformers restarts the scan unless the chunk is one token); one token without a gradient
    updates the states in place.
    """

    def __init__(self, mixer, impl):
        super().__init__(mixer)
        self.impl = impl

    def forward(self, hidden_states, cache_params=None, attention_mask=None, **kwargs):
        """hidden_states: (batch, seqlen, hidden); attention_mask: (batch, at least seqlen), 0 where padded."""
        if attention_mask is not None:
            attention_mask = attention_mask[:, -hidden_states.shape[1] :, None].to(
                hidden_states.dtype
            )
            hidden_states = hidden_states * attention_mask
        past = None
        if cache_params is not None and cache_params.has_previous_state(self.layer_idx):
            past = cache_params.layers[self.layer_idx]
        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)
        if past is not None and x.shape[2] == 1 and not torch.is_grad_enabled():
            y = self._step(x[..., 0], z[..., 0], past, attention_mask)
        else:
            y = self._run(x, z, past, cache_params, attention_mask)
        return self.out_proj(y)

    def _run(self, x, z, past, cache_params, attention_mask):
        """A prompt, or the next chunk of it: (batch, seqlen, dim)."""
        width = self.conv_kernel_size
        # the cache keeps one input more than the convolution needs
        conv = self._convolve(x, None if past is None else past.conv_states[0][..., 1 - width :])
        if attention_mask is not None:
            conv = conv * attention_mask.transpose(1, 2)
        selected = self._selection(conv.transpose(1, 2))
        state = None if past is None else past.recurrent_states[0]
        y, last_state = self._scan(conv, *selected, z, state)
        if cache_params is not None:
            # only the end of x, or the cache would copy all of it
            cache_params.update_conv_state(x[..., -width:], self.layer_idx, conv_kernel_size=width)
            cache_params.update_recurrent_state(last_state, self.layer_idx)
        return y.transpose(1, 2)

    def _convolve(self, x, before):
        """x (batch, dim, seqlen) after the inputs `before` (batch, dim, width - 1), or None for zeros."""
        return causal_conv1d(
            x,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            initial_state=before,
            activation="silu",
            impl=self.impl,
        )

    def _scan(self, conv, delta, B, C, z, state):
        """(y, last state) from `state` (batch, dim, dstate), or None for zeros; delta, B, C as `_selection` gives."""
        return selective_scan(
            conv,
            delta.transpose(1, 2),
            rates(self),
            B.transpose(1, 2),
            C.transpose(1, 2),
            D=self.D,
            z=z,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            initial_state=state,
            return_last_state=True,
            impl=self.impl,
        )

    def _step(self, x, z, past, attention_mask):
        """One token (batch, dim): (batch, 1, dim), with the states of `past` moved on."""
        conv = causal_conv1d_update(
            x,
            past.conv_states[0],
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            activation="silu",
            impl=self.impl,
        )
        if attention_mask is not None:
            conv = conv * attention_mask[:, 0]
        delta, B, C = self._selection(conv)
        y = selective_state_update(
            past.recurrent_states[0],
            conv,
            delta,
            rates(self),
            B,
            C,
            D=self.D,
            z=z,
            dt_bias=self.dt_proj.bias,
            dt_softplus=True,
            impl=self.impl,
        )
        return y[:, None]

    def _selection(self, conv):
        """delta before its bias, which the scan adds, and B and C: of (…, dim) in (…, dim) and twice (…, dstate)."""
        sizes = [self.time_step_rank, self.ssm_state_size, self.ssm_state_size]
        dt, B, C = self.x_proj(conv).split(sizes, dim=-1)
        if hasattr(self, "dt_layernorm"):  # Falcon's
            dt, B, C = self.dt_layernorm(dt), self.b_layernorm(B), self.c_layernorm(C)
        return F.linear(dt, self.dt_proj.weight), B, C


def rates(mixer):
    """A of a mixer in float32, or in float64 if the model is."""
    return -torch.exp(mixer.A_log.to(torch.promote_types(mixer.A_log.dtype, torch.float32)))


class TransformersMixer(BoundMixer):
    """transformers' own mixer in pure PyTorch, whatever packages are installed.

    `MambaMixer.forward` calls module-level functions that were bound to mamba-ssm and causal-conv1d at import if those
    are there. Here the very code of that forward runs with other globals, in which the names stand for the PyTorch
    functions beneath (`pure_forward`). So the arithmetic is that of the installed transformers to the bit, no global is
    patched, and nothing of it is repeated here.
    """

    def __init__(self, mixer):
        super().__init__(mixer)
        self.use_mambapy = False
        self._forward = pure_forward(type(mixer))
        self._scan_continues = hasattr(mixer, "n_groups")  # Mamba-2's scan takes an initial state

    def forward(self, hidden_states, cache_params=None, attention_mask=None, **kwargs):
        """As the mixer's own; Mamba's cannot continue the scan from a cache by more than one token."""
        continues = cache_params is not None and cache_params.has_previous_state(self.layer_idx)
        if continues and hidden_states.shape[1] > 1 and not self._scan_continues:
            raise NotImplementedError(
                f"impl 'hf' restarts the scan in a chunk of {hidden_states.shape[1]} tokens after a cache; "
                "give one token at a time, or use impl 'torch'"
            )
        return MethodType(self._forward, self)(
            hidden_states, cache_params=cache_params, attention_mask=attention_mask, **kwargs
        )


# function in transformers' module of a mixer -> the operator that it computes
OPERATORS = {
    "mamba_selective_scan": "selective_scan",
    "mamba_selective_state_update": "selective_state_update",
    "mamba2_chunk_scan": "ssd_scan",
    "mamba2_selective_state_update": "selective_state_update",
    "causal_conv1d_fn": "causal_conv1d",
    "causal_conv1d_update": "causal_conv1d_update",
}
# functions of a whole mixer, which only packages have: beneath, transformers' own return None
FUSED = {"mamba_inner_fn", "mamba2_split_conv1d_scan_combined"}


@cache
def pure_forward(mixer):
    """The innermost function of the `forward` of a mixer class, with the innermost PyTorch functions as its globals."""
    module = sys.modules[mixer.__module__]
    # without __name__: torch.compile would look the globals up in the module of that name
    scope = {name: value for name, value in vars(module).items() if name != "__name__"}
    for name in FUSED & scope.keys():
        scope[name] = inspect.unwrap(scope[name])
    for name in OPERATORS.keys() & scope.keys():
        scope[name] = _noted(OPERATORS[name], inspect.unwrap(scope[name]))
    forward = inspect.unwrap(mixer.forward)
    pure = FunctionType(forward.__code__, scope, "forward", forward.__defaults__)
    pure.__kwdefaults__ = forward.__kwdefaults__
    return pure


def _noted(operator, function):
    kernel = f"transformers.{function.__name__}"

    def call(*args, **kwargs):
        note(operator, kernel)
        if operator == "selective_scan":
            tell(operator, **_scan_operands(*args, **kwargs))
        with annotate(f"op/{operator}"):
            return function(*args, **kwargs)

    return call


def _scan_operands(
    hidden_states, dt, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, **kwargs
):
    """What transformers' `mamba_selective_scan` gets, by the names of our operator."""
    return {
        "u": hidden_states, "delta": dt, "A": A, "B": B[:, None], "C": C[:, None], "D": D, "z": z,
        "delta_bias": delta_bias, "delta_softplus": delta_softplus,
    }  # fmt: skip
