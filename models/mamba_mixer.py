"""The two mixers that `models.bind` puts in the place of transformers' `MambaMixer`."""

import inspect
from functools import cache
from types import FunctionType, MethodType

import torch
import torch.nn.functional as F
from torch import nn

from kernels.causal_conv1d.op import causal_conv1d
from kernels.implementations import note
from kernels.selective_scan.op import selective_scan
from models.huggingface import transformers
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
    chunk of any length (transformers restarts the scan unless the chunk is one token).
    """

    def __init__(self, mixer, impl):
        super().__init__(mixer)
        self.impl = impl

    def forward(self, hidden_states, cache_params=None, attention_mask=None, **kwargs):
        """hidden_states: (batch, seqlen, hidden); attention_mask: (batch, at least seqlen), 0 where padded."""
        seqlen, width = hidden_states.shape[1], self.conv_kernel_size
        if attention_mask is not None:
            attention_mask = attention_mask[:, -seqlen:, None].to(hidden_states.dtype)
            hidden_states = hidden_states * attention_mask

        conv_state = ssm_state = None
        if cache_params is not None and cache_params.has_previous_state(self.layer_idx):
            past = cache_params.layers[self.layer_idx]
            # the cache keeps one input more than the convolution needs
            conv_state, ssm_state = past.conv_states[0][..., 1 - width :], past.recurrent_states[0]

        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)
        conv = causal_conv1d(
            x,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            initial_state=conv_state,
            activation="silu",
            impl=self.impl,
        )
        if attention_mask is not None:
            conv = conv * attention_mask.transpose(1, 2)

        dt, B, C = self.x_proj(conv.transpose(1, 2)).split(
            [self.time_step_rank, self.ssm_state_size, self.ssm_state_size], dim=-1
        )
        delta = F.linear(dt, self.dt_proj.weight)  # its bias is added in the scan
        y, last_state = selective_scan(
            conv,
            delta.transpose(1, 2),
            -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32))),
            B.transpose(1, 2),
            C.transpose(1, 2),
            D=self.D,
            z=z,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            initial_state=ssm_state,
            return_last_state=True,
            impl=self.impl,
        )
        if cache_params is not None:
            # only the end of x, or the cache would copy all of it
            cache_params.update_conv_state(x[..., -width:], self.layer_idx, conv_kernel_size=width)
            cache_params.update_recurrent_state(last_state, self.layer_idx)
        return self.out_proj(y.transpose(1, 2))


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
        self._forward = pure_forward()

    def forward(self, hidden_states, cache_params=None, attention_mask=None, **kwargs):
        """As `MambaMixer.forward`, which cannot continue the scan from a cache by more than one token."""
        continues = cache_params is not None and cache_params.has_previous_state(self.layer_idx)
        if continues and hidden_states.shape[1] > 1:
            raise NotImplementedError(
                f"impl 'hf' restarts the scan in a chunk of {hidden_states.shape[1]} tokens after a cache; "
                "give one token at a time, or use impl 'torch'"
            )
        return MethodType(self._forward, self)(
            hidden_states, cache_params=cache_params, attention_mask=attention_mask, **kwargs
        )


# function in transformers' modeling_mamba -> the operator that it computes
OPERATORS = {
    "mamba_selective_scan": "selective_scan",
    "mamba_selective_state_update": "selective_state_update",
    "causal_conv1d_fn": "causal_conv1d",
    "causal_conv1d_update": "causal_conv1d_update",
}


@cache
def pure_forward():
    """The innermost function of `MambaMixer.forward`, with the innermost PyTorch functions as its globals."""
    hf = transformers()
    module = hf.models.mamba.modeling_mamba
    # without __name__: torch.compile would look the globals up in the module of that name
    scope = {name: value for name, value in vars(module).items() if name != "__name__"}
    scope["mamba_inner_fn"] = inspect.unwrap(module.mamba_inner_fn)
    for name, operator in OPERATORS.items():
        scope[name] = _noted(operator, inspect.unwrap(getattr(module, name)))
    forward = inspect.unwrap(module.MambaMixer.forward)
    pure = FunctionType(forward.__code__, scope, "forward", forward.__defaults__)
    pure.__kwdefaults__ = forward.__kwdefaults__
    return pure


def _noted(operator, function):
    kernel = f"transformers.{function.__name__}"

    def call(*args, **kwargs):
        note(operator, kernel)
        with annotate(f"op/{operator}"):
            return function(*args, **kwargs)

    return call
