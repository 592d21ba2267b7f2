"""The mixer that `models.bind` puts in the place of transformers' `Mamba2Mixer`."""

import torch

from kernels.causal_conv1d.op import causal_conv1d, causal_conv1d_update
from kernels.selective_scan.op import selective_state_update
from kernels.ssd_scan.op import ssd_scan
from models.mamba_mixer import BoundMixer, rates


class Mamba2OperatorMixer(BoundMixer):
    """Mamba-2's mixer on our operators, channel-last throughout.

    in_proj writes (batch, seqlen, gate + inputs + step sizes); convolution and scan get views of that memory. With a
    cache, both continue from its states for a chunk of any length; one token without a gradient updates them in place.
    """

    def __init__(self, mixer, impl):
        if tuple(mixer.time_step_limit) != (0.0, float("inf")):
            raise NotImplementedError(
                f"a bounded step size (time_step_limit={mixer.time_step_limit}) has no implementation of ours; "
                "use impl 'hf'"
            )
        super().__init__(mixer)
        self.impl = impl

    def forward(self, hidden_states, cache_params=None, attention_mask=None, **kwargs):
        """hidden_states: (batch, seqlen, hidden); attention_mask: (batch, at least seqlen), 0 where padded."""
        if attention_mask is not None:
            attention_mask = attention_mask[:, -hidden_states.shape[1] :, None]
            attention_mask = attention_mask.to(hidden_states.dtype)
            hidden_states = hidden_states * attention_mask
        past = None
        if cache_params is not None and cache_params.has_previous_state(self.layer_idx):
            past = cache_params.layers[self.layer_idx]
        sizes = [self.intermediate_size, self.conv_dim, self.num_heads]
        z, inputs, dt = self.in_proj(hidden_states).split(sizes, dim=-1)
        if past is not None and inputs.shape[1] == 1 and not torch.is_grad_enabled():
            y = self._step(inputs[:, 0], dt[:, 0], past, attention_mask)
        else:
            y = self._run(inputs, dt, past, cache_params, attention_mask)
        return self.out_proj(self.norm(y, z))

    def _run(self, inputs, dt, past, cache_params, attention_mask):
        """A prompt, or the next chunk of it: (batch, seqlen, dim)."""
        width = self.conv_kernel_size
        conv = causal_conv1d(
            inputs.transpose(1, 2),
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            # the cache keeps one input more than the convolution needs
            initial_state=None if past is None else past.conv_states[0][..., 1 - width :],
            activation="silu",
            impl=self.impl,
        ).transpose(1, 2)
        if attention_mask is not None:
            conv = conv * attention_mask
        x, B, C = self._operands(conv)
        y, last_state = ssd_scan(
            x.unflatten(-1, (self.num_heads, self.head_dim)),
            dt,
            rates(self),
            B,
            C,
            D=self.D,
            dt_bias=self.dt_bias,
            dt_softplus=True,
            initial_state=None if past is None else past.recurrent_states[0],
            return_last_state=True,
            impl=self.impl,
        )
        if cache_params is not None:
            # only the end of the inputs, or the cache would copy all of them
            end = inputs[:, -width:].transpose(1, 2)
            cache_params.update_conv_state(end, self.layer_idx, conv_kernel_size=width)
            cache_params.update_recurrent_state(last_state, self.layer_idx)
        return y.flatten(2)

    def _step(self, inputs, dt, past, attention_mask):
        """One token (batch, conv_dim): (batch, 1, dim), with the states of `past` moved on."""
        conv = causal_conv1d_update(
            inputs,
            past.conv_states[0],
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            activation="silu",
            impl=self.impl,
        )
        if attention_mask is not None:
            conv = conv * attention_mask[:, 0]
        x, B, C = self._operands(conv)
        channels = lambda t: t.repeat_interleave(self.head_dim, dim=-1)
        state = past.recurrent_states[0]
        y = selective_state_update(
            state.view(state.shape[0], -1, state.shape[-1]),  # of the cache, which it moves on
            x,
            channels(dt),
            channels(rates(self))[:, None].expand(-1, self.ssm_state_size),
            B,
            C,
            D=channels(self.D),
            dt_bias=channels(self.dt_bias),
            dt_softplus=True,
            impl=self.impl,
        )
        return y[:, None]

    def _operands(self, conv):
        """x (…, dim), B and C (…, ngroups, dstate) of what the convolution gave."""
        grouped = self.n_groups * self.ssm_state_size
        x, *rows = conv.split([self.intermediate_size, grouped, grouped], dim=-1)
        return x, *(row.unflatten(-1, (self.n_groups, -1)) for row in rows)
